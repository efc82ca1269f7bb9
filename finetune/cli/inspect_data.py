"""What `check-data` and `show-sample` print."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from finetune.config import FinetuneConfig
from finetune.data.preflight import (
    FIX_FILE_HINT,
    Preflight,
    Summary,
    check_rows,
    find_leaks,
    mixture_lines,
    summarize_samples,
)
from finetune.data.read import FOR_TESTING, FOR_TRAINING, Problem, ReadRows, Row, read_rows
from finetune.data.samples import Sample, make_samples
from finetune.progress import Progress, ProgressDisplay, pluralize
from vqa_app.errors import DataError, UsageError, VqaError

if TYPE_CHECKING:
    from rich.console import Console

    from vqa_app.pictures.picture import Picture

_BAR = 40
_ALIKE_SHOWN = 5
_PARTICULAR = re.compile(r"\S*[./'\d]\S*")
"""Words of a problem that tell it from others of its kind: names, paths, numbers."""
_THUMBNAIL = (48, 24)
"""Columns and rows of half characters, so that the picture keeps its shape."""


def check_data(config: FinetuneConfig, stream: IO[str]) -> None:
    """Prints counts, lengths, repeated and leaking rows, the longest rows, and every problem.

    Raises:
        DataError: there are more problems than `max_bad`.
    """
    from rich.console import Console

    console = Console(file=stream, highlight=False, soft_wrap=True)
    reader = _reader(config, config.eval_data)
    checked: dict[str, Preflight] = {}
    given = ("Training", config.data, FOR_TRAINING), ("Held out", config.eval_data, FOR_TESTING)
    with ProgressDisplay() as display:
        for name, sources, purpose in given:
            if sources:
                checked[name] = _check(config, sources, purpose, reader, display)
    for name, found in checked.items():
        for note in found.notes:
            console.print(f"Note: {note}", markup=False)
        _print_problems(console, found.problems)
        if found.samples:
            _print_summary(console, name, summarize_samples(found.samples))
            _print_copies(console, found)
    if len(checked) == 2:
        leaks = find_leaks(checked["Training"], checked["Held out"])
        what = "Held-out rows that repeat a training row or show its picture"
        console.print(f"{what}: {len(leaks):,}")
        for sample in leaks[:5]:
            console.print(f"  {sample.row.place}", markup=False)
    for name, found in checked.items():
        if not (found.samples or found.problems):
            raise DataError(f"{name} data: there are no rows.", "Check the files.")
    bad = sum(len(found.problems) for found in checked.values())
    problems = pluralize(bad, "problem")
    console.print("No problems." if not bad else f"{problems}, listed above.")
    if any(problem.row is None for found in checked.values() for problem in found.problems):
        raise DataError(f"{problems} in the data.", FIX_FILE_HINT)
    if bad > config.max_bad:
        raise DataError(
            f"{problems} in the data.",
            f"Fix what is listed above, or train without these rows with --max-bad {bad}.",
        )


def show_sample(config: FinetuneConfig, which: str | None, stream: IO[str]) -> None:
    """Prints one row as the model reads it.

    Args:
        which: its number, as problems name it, or `file:number`; None for the first good row.

    Raises:
        DataError: there is no such row, or it is bad.
    """
    from rich.console import Console

    console = Console(file=stream, highlight=False, soft_wrap=True)
    reader = _reader(config)
    processor, shares = reader.processor, reader.shares_prefixes
    row = _row(read_rows(config.data, config.images), which)
    try:
        conversation = row.conversation()
        samples = make_samples(
            row, conversation, processor, turns=config.turns, share_prefix=shares
        )
    except VqaError as error:
        raise DataError(f"{row.place}: {error.problem}", error.hint) from error
    console.print(f"{row.place}, id {row.id}", markup=False)
    for picture in conversation.pictures:
        changes = f" ({', '.join(picture.changes)})" if picture.changes else ""
        width, height = picture.image.size
        console.print(f"{picture.name}: {width}×{height}{changes}", markup=False)
        _print_picture(console, processor, picture)
    for sample in samples:
        _print_tokens(console, processor, sample)


def _row(data: ReadRows, which: str | None) -> Row:
    if which is None and data.rows:
        return data.rows[0]
    file, _, number = (which or "1").rpartition(":")
    if not number.isdigit():
        raise UsageError(f"--row is {which!r}.", "Give a row's number, or FILE:NUMBER.")

    def meant(found: Row | Problem) -> bool:
        at = found.number if isinstance(found, Row) else found.row
        return at == int(number) and file in ("", found.file, Path(found.file).name)

    rows = [row for row in data.rows if meant(row)]
    problems = [problem for problem in data.problems if meant(problem)]
    files = list(dict.fromkeys(found.file for found in (*rows, *problems)))
    if len(files) > 1:
        raise UsageError(
            f"Several files have a row {number}: {', '.join(files)}.",
            f"Say which: --row {files[0]}:{number}.",
        )
    if problems:
        raise DataError(str(problems[0]))
    if not (rows or data.rows) and data.problems:
        raise DataError(str(data.problems[0]))
    if not rows:
        numbers = [row.number for row in data.rows if file in ("", row.file, Path(row.file).name)]
        there = f"they are {min(numbers):,} to {max(numbers):,}" if numbers else "there are none"
        raise DataError(f"There is no row {which or 1}: {there}.", "Give another --row.")
    return rows[0]


@dataclass(frozen=True)
class _Reader:
    """What a model does with rows, known without its weights."""

    processor: Any
    context: int
    """Tokens."""
    shares_prefixes: bool
    """Whether it trains several questions in one sequence."""


def _check(
    config: FinetuneConfig,
    sources: Sequence[str],
    purpose: str,
    reader: _Reader,
    display: ProgressDisplay,
) -> Preflight:
    return check_rows(
        read_rows(sources, config.images, purpose),
        reader.processor,
        max_length=config.max_length or reader.context,
        turns=config.turns,
        share_prefix=reader.shares_prefixes,
        workers=config.workers,
        on_progress=lambda done, of: display(Progress("checking", done, of)),
    )


def _reader(config: FinetuneConfig, further: Sequence[str] = ()) -> _Reader:
    from finetune.data.read import check_sources
    from vqa_app.checkpoints.loader import base_source, load_config
    from vqa_app.checkpoints.processor import load_processor
    from vqa_app.checkpoints.source import find
    from vqa_app.checkpoints.validation import skeleton
    from vqa_app.models.architecture import Capabilities

    if not config.data:
        raise UsageError("There is no data.", "Give --data.")
    check_sources((*config.data, *further), config.images)
    source = base_source(find(config.model, config.revision, weights=False), weights=False)
    known = load_config(source)
    processor = load_processor(source, known)
    allowed = Capabilities.of(skeleton(source.name, known), processor)
    return _Reader(processor, allowed.context_length, allowed.trains_shared_prefixes)


def _print_summary(console: Console, name: str, summary: Summary) -> None:
    least, median, high, most = summary.quantiles
    rows, answers = pluralize(summary.rows, "row"), pluralize(summary.answers, "answer")
    console.print(f"{name}: {rows}, {answers}")
    for line in mixture_lines(summary):
        console.print(line, markup=False)
    each = ", ".join(f"{number} in {count:,}" for number, count in summary.picture_counts)
    pictures = pluralize(summary.pictures, "different picture")
    console.print(f"  {pictures}; in a sequence: {each}")
    if summary.sequences != summary.rows:
        console.print(f"  {pluralize(summary.sequences, 'sequence')} to train")
    console.print(
        f"  {summary.tokens:,} tokens, {summary.trained_tokens:,} of them trained; a sequence has "
        f"{least:,} to {most:,}, median {median:,}, 95 % up to {high:,}"
    )
    tallest = max(count for _, _, count in summary.histogram)
    for start, end, count in summary.histogram:
        bar = "█" * max(1 if count else 0, round(_BAR * count / tallest))
        console.print(f"  {start:>7,} to {end - 1:>7,} tokens {bar} {count:,}")
    console.print("  Longest:")
    for sample in summary.longest:
        console.print(f"    {len(sample):,} tokens: {sample.row.place}", markup=False)


def _print_problems(console: Console, problems: Sequence[Problem]) -> None:
    """Every one; on a terminal a few of each kind, the commonest first."""
    kinds: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        begins = " ".join(_PARTICULAR.sub("", problem.message).split()[:2])
        kinds.setdefault((problem.file, begins, problem.hint), []).append(problem)
    groups = [list(problems)]
    if console.is_terminal:
        groups = sorted(kinds.values(), key=len, reverse=True)
    shown = _ALIKE_SHOWN if console.is_terminal else len(problems)
    for alike in groups:
        for problem in alike[:shown]:
            console.print(str(problem), markup=False)
        if more := len(alike[shown:]):
            console.print(f"  ... and {pluralize(more, 'problem')} like these")
    if any(alike[shown:] for alike in groups):
        console.print("Written to a file, with > problems.txt, all of them are listed.")


def _print_copies(console: Console, found: Preflight) -> None:
    copies = found.duplicates()
    console.print(f"  Duplicate rows: {len(copies):,}")
    for first, later in copies[:5]:
        console.print(f"    {later.row.place} repeats {first.row.place}", markup=False)


def _print_tokens(console: Console, processor: Any, sample: Sample) -> None:
    """Runs of tokens of one kind: read, picture, trained; one question a line where a prefix is
    shared.
    """
    from rich.text import Text

    from vqa_app.prompts.prompt import image_token_id

    image = image_token_id(processor)
    segments = sample.segments if sample.segments is not None else np.zeros(len(sample))
    kinds = np.where(sample.input_ids == image, 2, sample.answer_mask)
    marks = zip(segments, kinds, range(len(sample)), strict=True)
    shown = Text()
    for (segment, kind), run in itertools.groupby(marks, key=lambda mark: mark[:2]):
        positions = [position for _, _, position in run]
        if segment and shown.plain and segments[positions[0] - 1] != segment:
            shown.append(f"\n── question {int(segment)}, blind to the others ──\n", "dim")
        if kind == 2:
            shown.append(f"⟨{len(positions)} image tokens⟩", "cyan")
            continue
        for position in positions:
            text = processor.tokenizer.decode([int(sample.input_ids[position])])
            if kind:
                shown.append("⟦" + text + "⟧", "bold green")
            else:
                shown.append(text)
    console.print(shown)
    images = int((sample.input_ids == image).sum())
    console.print(
        f"{len(sample):,} tokens: {images:,} of pictures, "
        f"{len(sample) - images - sample.trained_tokens:,} read, "
        f"{sample.trained_tokens:,} trained (⟦green⟧)"
    )


def _print_picture(console: Console, processor: Any, picture: Picture) -> None:
    """The picture as the model is given it: resized and normalised, and turned back to colours."""
    from rich.text import Text

    from vqa_app.engine.model_view import model_view

    tiles = model_view(processor, picture)
    if not tiles:  # cut into patches, as Qwen-VL reads them
        console.print("As the model is given it: patches")
        return
    width, height = tiles[0].size
    first = "its first tile, " if len(tiles) > 1 else ""
    console.print(f"As the model is given it: {first}{width}×{height}")
    if not console.is_terminal:
        return
    columns, rows = _THUMBNAIL
    small = np.asarray(tiles[0].resize((columns, 2 * rows)))
    shown = Text()
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            shown.append(
                "▀", f"rgb({','.join(map(str, top))}) on rgb({','.join(map(str, bottom))})"
            )
        shown.append("\n")
    console.print(shown)
