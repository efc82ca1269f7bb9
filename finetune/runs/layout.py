"""Names of the files in a run's directory; `vqa_app.checkpoints.adapters` has those of weights."""

from __future__ import annotations

import os
from pathlib import Path

from vqa_app.errors import ModelError
from vqa_app.suggestions import suggest

METRICS_FILE = "metrics.jsonl"
"""One JSON object a line, as `transformers.Trainer` logs: `step`, `epoch`, `loss`, `learning_rate`;
or `step`, `eval_loss`, `eval_vqa_accuracy`, `eval_image_gain`; the last line has `final` and
`eval_questions`, the number of questions of each evaluation."""
WATCH_FILE = "watch.jsonl"
"""One `WatchAnswer` a line."""
WATCH_FOLDER = "watch"
"""Pictures of the watch questions, by digest."""
PLOTS = "plots"
REPORT_FILE = "report.html"
CARD_FILE = "README.md"
FREQUENT_ANSWERS_FILE = "frequent_answers.json"
"""The most frequent answers of the training rows, overall and by type of question."""
SKIPPED_FILE = "skipped.jsonl"
"""Rows of the data that were left out."""
SKIPPED_EVAL_FILE = "skipped_eval.jsonl"


def require_folder(run: str | os.PathLike[str]) -> None:
    """Check that a run's directory exists.

    Raises:
        ModelError: It does not.
    """
    if not os.path.isdir(run):  # also False if the text is too long for a path
        hint = suggest(run, path=Path.is_dir, otherwise="Give the folder of a run.")
        raise ModelError(f"There is no folder {os.fspath(run)}.", hint)
