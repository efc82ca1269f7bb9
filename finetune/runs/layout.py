"""Names of the files in a run's directory; `vqa_app.checkpoints.adapters` has those of weights."""

from __future__ import annotations

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
SKIPPED_FILE = "skipped.jsonl"
"""Rows of the data that were left out."""
SKIPPED_EVAL_FILE = "skipped_eval.jsonl"
