"""Read, check and split the data of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.preflight import (
    DatasetSummary,
    Preflight,
    check_distributed,
    find_leaks,
    mixture_lines,
    split_samples,
    summarize_samples,
)
from finetune.data.read import FOR_TESTING, FOR_TRAINING, read_rows
from finetune.progress import OnProgress, Progress, pluralize
from finetune.runs.layout import SKIPPED_EVAL_FILE, SKIPPED_FILE
from finetune.training.device import Machine
from vqa_app.checkpoints.loader import LoadedModel

SHOWN_PROBLEMS = 20
FEW_QUESTIONS = 30
"""With fewer held-out questions, one answer changes the accuracy by more than 3 points."""


@dataclass(frozen=True)
class Data:
    """The rows that train, and those of the evaluations."""

    train: Preflight
    held_out: Preflight
    leaks: int = 0
    """Held-out rows that the training rows repeat, or whose pictures they show."""


def read_data(
    config: FinetuneConfig, machine: Machine, loaded: LoadedModel, on_progress: OnProgress
) -> Data:
    """Read and check all data, and hold rows out.

    Raises:
        DataError: There are more problems than the config allows.
    """

    def announce(message: str) -> None:
        on_progress(Progress("checking", message=message))

    def checked(sources: Sequence[str], purpose: str, skipped: Path) -> Preflight:
        announce(f"Reading {', '.join(sources)}.")
        found = check_distributed(
            read_rows(sources, config.images, purpose),
            loaded.processor,
            process=machine.process,
            processes=machine.processes,
            max_length=config.max_length or loaded.capabilities.context_length,
            turns=config.turns,
            share_prefix=loaded.capabilities.trains_shared_prefixes,
            workers=config.workers,
            on_progress=lambda done, of: on_progress(Progress("checking", done, of)),
        )
        for note in found.notes:
            announce(str(note))
        for problem in found.problems[:SHOWN_PROBLEMS]:
            announce(str(problem))
        if (more := len(found.problems) - SHOWN_PROBLEMS) > 0:
            announce(f"... and {more:,} more problems.")
        found.enforce_limit(config.max_bad, skipped)
        if found.problems:
            announce(f"Skipped bad rows: {len(found.problems):,}, listed in {skipped}.")
        return found

    train_data = checked(config.data, FOR_TRAINING, Path(config.out) / SKIPPED_FILE)
    leaks = 0
    if config.eval_data:
        held_out = checked(config.eval_data, FOR_TESTING, Path(config.out) / SKIPPED_EVAL_FILE)
        if leaks := len(find_leaks(train_data, held_out)):
            rows = pluralize(leaks, "held-out row")
            announce(f"Note: training rows repeat, or show the pictures of, {rows}.")
    else:
        train_data, held_out = split_samples(train_data, config.eval_fraction, config.seed)
    if copies := train_data.duplicates():
        later = copies[0][1].row.place
        announce(f"Note: duplicate rows: {len(copies):,}, the first at {later}.")
    summary = summarize_samples(train_data.samples)
    announce(describe(summary, held_out))
    for line in mixture_lines(summary):
        announce(line)
    if warning := validation_warning(held_out, config.eval_fraction):
        announce(f"Note: {warning}")
    return Data(train_data, held_out, leaks)


def describe(summary: DatasetSummary, held_out: Preflight) -> str:
    """Return the training data in one line."""
    least, median, _, most = summary.quantiles
    pictures, rows = pluralize(summary.pictures, "picture"), pluralize(summary.rows, "row")
    questions = pluralize(_questions(held_out), "question")
    return (
        f"{rows}, {pluralize(summary.answers, 'answer')}, {pictures}; "
        f"{least:,} to {most:,} tokens, median {median:,}; {summary.trained_tokens:,} trained. "
        f"Held out: {pluralize(len(held_out.rows), 'row')} with {questions}."
    )


def validation_warning(held_out: Preflight, eval_fraction: float | None) -> str:
    """Return a warning if too few questions are held out, else ""."""
    if (count := _questions(held_out)) >= FEW_QUESTIONS:
        return ""
    if count:
        return (
            f"Only {pluralize(count, 'question')} held out, so accuracy and the choice of the best "
            "checkpoint depend largely on chance."
        )
    if eval_fraction == 0:
        return ""
    return "No validation split: every row shares a picture with another."


def _questions(held_out: Preflight) -> int:
    return sum(len(row.references) for row in held_out.rows)
