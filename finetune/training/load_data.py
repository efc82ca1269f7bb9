"""All data of a run: read, checked, and rows held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.preflight import (
    Preflight,
    Summary,
    check_distributed,
    find_leaks,
    mixture_lines,
    split_samples,
    summarize_samples,
)
from finetune.data.read import FOR_TESTING, FOR_TRAINING, read_rows
from finetune.progress import OnProgress, Progress, pluralize
from finetune.runs.layout import SKIPPED_EVAL_FILE, SKIPPED_FILE
from vqa_app.checkpoints.loader import LoadedModel

SHOWN_PROBLEMS = 20
FEW_QUESTIONS = 30
"""One answer of so many changes the accuracy by 3 points."""


@dataclass(frozen=True)
class Data:
    """What trains, and what is asked at evaluations."""

    train: Preflight
    held_out: Preflight


def read_data(config: FinetuneConfig, loaded: LoadedModel, tell: OnProgress) -> Data:
    """Reads and checks all data, and holds rows out.

    Raises:
        DataError: more problems than allowed.
    """

    def checked(sources: Sequence[str], purpose: str, skipped: Path | None) -> Preflight:
        tell(Progress("checking", message=f"Reading {', '.join(sources)}."))
        found = check_distributed(
            read_rows(sources, config.images, purpose),
            loaded.processor,
            max_length=config.max_length or loaded.capabilities.context_length,
            turns=config.turns,
            share_prefix=loaded.capabilities.trains_shared_prefixes,
            workers=config.workers,
            on_progress=lambda done, of: tell(Progress("checking", done, of)),
        )
        for note in found.notes:
            tell(Progress("checking", message=str(note)))
        for problem in found.problems[:SHOWN_PROBLEMS]:
            tell(Progress("checking", message=str(problem)))
        if (more := len(found.problems) - SHOWN_PROBLEMS) > 0:
            tell(Progress("checking", message=f"... and {more:,} more problems."))
        found.enforce_limit(config.max_bad, skipped)
        if found.problems:
            left_out = pluralize(len(found.problems), "bad row")
            message = f"Left out: {left_out}, listed in {skipped}."
            tell(Progress("checking", message=message))
        return found

    train_data = checked(config.data, FOR_TRAINING, Path(config.out) / SKIPPED_FILE)
    if config.eval_data:
        held_out = checked(config.eval_data, FOR_TESTING, Path(config.out) / SKIPPED_EVAL_FILE)
        if leaks := find_leaks(train_data, held_out):
            known = pluralize(len(leaks), "held-out row")
            message = f"Note: training rows repeat, or show the pictures of, {known}."
            tell(Progress("checking", message=message))
    else:
        train_data, held_out = split_samples(train_data, config.eval_fraction, config.seed)
    if copies := train_data.duplicates():
        later = copies[0][1].row.place
        message = f"Note: {pluralize(len(copies), 'duplicate row')}, the first at {later}."
        tell(Progress("checking", message=message))
    summary = summarize_samples(train_data.samples)
    tell(Progress("checking", message=describe(summary, held_out)))
    for line in mixture_lines(summary):
        tell(Progress("checking", message=line))
    if doubt := doubts(config, held_out):
        tell(Progress("checking", message=f"Note: {doubt}"))
    return Data(train_data, held_out)


def describe(summary: Summary, held_out: Preflight) -> str:
    """The training data in one line."""
    least, median, _, most = summary.quantiles
    pictures, rows = pluralize(summary.pictures, "picture"), pluralize(summary.rows, "row")
    asked = pluralize(_questions(held_out), "question")
    return (
        f"{rows}, {pluralize(summary.answers, 'answer')}, {pictures}; "
        f"{least:,} to {most:,} tokens, median {median:,}; {summary.trained_tokens:,} trained. "
        f"Held out: {pluralize(len(held_out.rows), 'row')} with {asked}."
    )


def doubts(config: FinetuneConfig, held_out: Preflight) -> str:
    """Why evaluations will tell little; empty where they will tell enough."""
    if (asked := _questions(held_out)) >= FEW_QUESTIONS:
        return ""
    if asked:
        return (
            f"Only {pluralize(asked, 'question')} held out: accuracy, and the checkpoint that is "
            "kept for it, are by chance to a good part."
        )
    if config.eval_fraction == 0:
        return ""
    return "No validation split: every row shares a picture with another."


def _questions(held_out: Preflight) -> int:
    return sum(len(row.references) for row in held_out.rows)
