"""The output of the commands `check-data` and `show-sample`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from finetune.config import FinetuneConfig
from finetune.data.preflight import (
    FIX_FILE_HINT,
    DatasetSummary,
    Preflight,
    check_rows,
    find_leaks,
    mixture_lines,
    summarize_samples,
)
from finetune.data.read import (
    FOR_TESTING,
    FOR_TRAINING,
    Problem,
    ReadRows,
    Row,
    check_sources,
    read_rows,
)
from finetune.data.samples import Sample, make_samples
from finetune.progress import Progress, ProgressDisplay, pluralize
from vqa_app.checkpoints.source import find, find_local
from vqa_app.errors import DataError, UsageError, VqaError

if TYPE_CHECKING:
    from rich.console import Console

    from vqa_app.pictures.picture import Picture

_BAR_WIDTH = 40
_MAX_SIMILAR = 5
"""Similar problems shown on a terminal."""
_MAX_EXAMPLES = 5
_SPECIFIC_WORD = re.compile(r"\S*[./'\d]\S*")
"""Matches the words of a problem that differ between similar problems: names, paths, numbers."""
_THUMBNAIL = (48, 24)
"""Columns and rows of a picture on a terminal; each character shows two pixels, one above the
other."""


def check_data(config: FinetuneConfig, stream: TextIO) -> None:
    """Print counts, lengths, duplicate and leaking rows, the longest rows, and all problems.

    Args:
        config: The data, the model, and the number of bad rows allowed.
        stream: Where to print.

    Raises:
        DataError: There are more problems than `config.max_bad`.
    """
    console = _make_console(stream)
    tokenization = _load_tokenization(config, config.eval_data)
    checked: dict[str, Preflight] = {}
    parts = ("Training", config.data, FOR_TRAINING), ("Held out", config.eval_data, FOR_TESTING)
    with ProgressDisplay() as display:
        for name, sources, purpose in parts:
            if sources:
                checked[name] = _check(config, sources, purpose, tokenization, display)
    for name, found in checked.items():
        for note in found.notes:
            console.print(f"Note: {note}", markup=False)
        _print_problems(console, found.problems)
        if found.samples:
            _print_summary(console, name, summarize_samples(found.samples))
            _print_duplicates(console, found)
    if len(checked) == 2:
        leaks = find_leaks(checked["Training"], checked["Held out"])
        label = "Held-out rows that repeat a training row or show its picture"
        console.print(f"{label}: {len(leaks):,}")
        for sample in leaks[:_MAX_EXAMPLES]:
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
        usable = all(found.samples for found in checked.values())
        skip = f", or skip these rows with --max-bad {bad}" if usable else ""
        raise DataError(f"{problems} in the data.", f"Fix what is listed above{skip}.")


def show_sample(config: FinetuneConfig, number: str | None, stream: TextIO) -> None:
    """Print one row as the model reads it.

    Args:
        config: The data and the model.
        number: The row's number, as in problems, or `file:number`; None for the first good row.
        stream: Where to print.

    Raises:
        DataError: There is no such row, or it is bad.
        UsageError: `number` is malformed or ambiguous.
    """
    console = _make_console(stream)
    tokenization = _load_tokenization(config)
    processor = tokenization.processor
    row = _find_row(read_rows(config.data, config.images), number)
    try:
        conversation = row.conversation()
        samples = make_samples(
            row,
            conversation,
            processor,
            turns=config.turns,
            share_prefix=tokenization.share_prefix,
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


def _make_console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, soft_wrap=True)


def _find_row(data: ReadRows, number: str | None) -> Row:
    if number is None and data.rows:
        return data.rows[0]
    file, _, digits = (number or "1").rpartition(":")
    if not digits.isdigit():
        raise UsageError(f"--row is {number!r}.", "Give a row's number, or FILE:NUMBER.")

    def is_in_file(found: Row | Problem) -> bool:
        return file in ("", found.file, Path(found.file).name)

    rows = [row for row in data.rows if row.number == int(digits) and is_in_file(row)]
    problems = [p for p in data.problems if p.row == int(digits) and is_in_file(p)]
    files = list(dict.fromkeys([*(row.file for row in rows), *(p.file for p in problems)]))
    if len(files) > 1:
        raise UsageError(
            f"Several files have a row {digits}: {', '.join(files)}.",
            f"Choose one: --row {files[0]}:{digits}.",
        )
    if problems:
        raise DataError(str(problems[0]))
    if not (rows or data.rows) and data.problems:
        raise DataError(str(data.problems[0]))
    if not rows:
        numbers = [row.number for row in data.rows if is_in_file(row)]
        existing = (
            f"the rows are {min(numbers):,} to {max(numbers):,}"
            if numbers
            else "the data has no rows"
        )
        raise DataError(f"There is no row {number or 1}; {existing}.", "Give another --row.")
    return rows[0]


@dataclass(frozen=True)
class _Tokenization:
    """What determines how rows become samples of a model. Needs no weights."""

    processor: Any
    context_length: int
    """In tokens."""
    share_prefix: bool
    """See `make_samples`."""


def _check(
    config: FinetuneConfig,
    sources: Sequence[str],
    purpose: str,
    tokenization: _Tokenization,
    display: ProgressDisplay,
) -> Preflight:
    return check_rows(
        read_rows(sources, config.images, purpose),
        tokenization.processor,
        max_length=config.max_length or tokenization.context_length,
        turns=config.turns,
        share_prefix=tokenization.share_prefix,
        workers=config.workers,
        on_progress=lambda done, of: display(Progress("checking", done, of)),
    )


def _load_tokenization(config: FinetuneConfig, eval_data: Sequence[str] = ()) -> _Tokenization:
    if not config.data:
        raise UsageError("There is no data.", "Give --data.")
    check_sources((*config.data, *eval_data), config.images)
    find_local(config.model, config.revision)

    # These imports take seconds, on a busy machine minutes.
    from vqa_app.checkpoints.loader import base_source, load_config
    from vqa_app.checkpoints.processor import load_processor
    from vqa_app.checkpoints.validation import skeleton
    from vqa_app.models.architecture import Capabilities

    source = base_source(find(config.model, config.revision, weights=False), weights=False)
    model_config = load_config(source)
    processor = load_processor(source, model_config)
    capabilities = Capabilities.of(skeleton(source.name, model_config), processor)
    return _Tokenization(
        processor, capabilities.context_length, capabilities.trains_shared_prefixes
    )


def _print_summary(console: Console, name: str, summary: DatasetSummary) -> None:
    minimum, median, high, maximum = summary.quantiles
    rows, answers = pluralize(summary.rows, "row"), pluralize(summary.answers, "answer")
    console.print(f"{name}: {rows}, {answers}")
    for line in mixture_lines(summary):
        console.print(line, markup=False)
    counts = ", ".join(f"{number} in {count:,}" for number, count in summary.picture_counts)
    pictures = pluralize(summary.pictures, "different picture")
    console.print(f"  {pictures}; per sequence: {counts}")
    if summary.sequences != summary.rows:
        console.print(f"  {pluralize(summary.sequences, 'sequence')} to train on")
    console.print(
        f"  {summary.tokens:,} tokens, {summary.trained_tokens:,} of them trained; per sequence "
        f"{minimum:,} to {maximum:,}, median {median:,}, 95 % up to {high:,}"
    )
    _print_histogram(console, summary.histogram)
    console.print("  Longest:")
    for sample in summary.longest:
        console.print(f"    {len(sample):,} tokens: {sample.row.place}", markup=False)


def _print_histogram(console: Console, histogram: Sequence[tuple[int, int, int]]) -> None:
    from rich.bar import Bar
    from rich.table import Table

    highest = max(count for _, _, count in histogram)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column(width=_BAR_WIDTH)
    table.add_column(justify="right")
    for start, end, count in histogram:
        tokens = f"  {start:,} to {end - 1:,} tokens"
        table.add_row(tokens, Bar(highest, 0, count, width=_BAR_WIDTH), f"{count:,}")
    console.print(table)


def _print_problems(console: Console, problems: Sequence[Problem]) -> None:
    """Print every problem; on a terminal, a few of each kind, the most frequent kind first."""
    kinds: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        start = " ".join(_SPECIFIC_WORD.sub("", problem.message).split()[:2])
        kinds.setdefault((problem.file, start, problem.hint), []).append(problem)
    groups = [list(problems)]
    if console.is_terminal:
        groups = sorted(kinds.values(), key=len, reverse=True)
    shown = _MAX_SIMILAR if console.is_terminal else len(problems)
    for similar in groups:
        for problem in similar[:shown]:
            console.print(str(problem), markup=False)
        if more := len(similar[shown:]):
            console.print(f"  ... and {pluralize(more, 'similar problem')}")
    if any(similar[shown:] for similar in groups):
        console.print("To list all problems, write the output to a file: > problems.txt")


def _print_duplicates(console: Console, found: Preflight) -> None:
    duplicates = found.duplicates()
    console.print(f"  Duplicate rows: {len(duplicates):,}")
    for first, later in duplicates[:_MAX_EXAMPLES]:
        console.print(f"    {later.row.place} repeats {first.row.place}", markup=False)


def _print_tokens(console: Console, processor: Any, sample: Sample) -> None:
    """Print the tokens, with image tokens and trained tokens marked.

    If questions share a prefix, each begins on a new line.
    """
    from rich.text import Text

    from vqa_app.prompts.prompt import image_token_id

    image = image_token_id(processor)
    segments = sample.segments if sample.segments is not None else np.zeros(len(sample))
    kinds = np.where(sample.input_ids == image, 2, sample.answer_mask)  # 2 image, 1 trained
    marks = zip(segments, kinds, range(len(sample)), strict=True)
    shown = Text()
    for (segment, kind), run in itertools.groupby(marks, key=lambda mark: mark[:2]):
        positions = [position for _, _, position in run]
        if segment and shown.plain and segments[positions[0] - 1] != segment:
            shown.append(f"\n── question {int(segment)}, independent of the others ──\n", "dim")
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
    context = len(sample) - images - sample.trained_tokens
    console.print(
        f"{len(sample):,} tokens: {images:,} image, {context:,} context, "
        f"{sample.trained_tokens:,} trained (⟦green⟧)"
    )


def _print_picture(console: Console, processor: Any, picture: Picture) -> None:
    """Print the preprocessed picture: its size, and on a terminal its pixels."""
    from rich.text import Text

    from vqa_app.engine.model_view import model_view

    tiles = model_view(processor, picture)
    if not tiles:  # as for Qwen-VL
        console.print("Preprocessed: patches")
        return
    width, height = tiles[0].size
    first = "first tile, " if len(tiles) > 1 else ""
    console.print(f"Preprocessed: {first}{width}×{height}")
    if not console.is_terminal:
        return
    columns, rows = _THUMBNAIL
    pixels = np.asarray(tiles[0].resize((columns, 2 * rows)))
    shown = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            shown.append(
                "▀", f"rgb({','.join(map(str, top))}) on rgb({','.join(map(str, bottom))})"
            )
        shown.append("\n")
    console.print(shown)
