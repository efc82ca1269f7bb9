"""What `check-data` and `show-sample` print."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from finetune.config import FinetuneConfig
from finetune.preflight import ONLY_ROWS, Preflight, Summary, check, leaking, summarize
from finetune.progress import Display, Progress
from finetune.samples import Sample, samples_of
from vqa_app.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from vqa_app.images import Picture

_BAR = 40
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
    with Display() as display:
        for name, sources in (("Training", config.data), ("Held out", config.eval_data)):
            if sources:
                checked[name] = _check(config, sources, reader, display)
    for name, found in checked.items():
        for note in found.notes:
            console.print(f"Note: {note}", markup=False)
        for problem in found.problems:
            console.print(str(problem), markup=False)
        if found.samples:
            _print_summary(console, name, summarize(found.samples))
            _print_copies(console, found)
    if len(checked) == 2:
        leaks = leaking(checked["Training"], checked["Held out"])
        what = "Held-out rows that repeat a training row or show its picture"
        console.print(f"{what}: {len(leaks):,}")
        for sample in leaks[:5]:
            console.print(f"  {sample.row.place}", markup=False)
    for name, found in checked.items():
        if not (found.samples or found.problems):
            raise DataError(f"{name} data: there are no rows.", "Check the files.")
    bad = sum(len(found.problems) for found in checked.values())
    counted = f"{bad:,} problem{'s' if bad > 1 else ''}"
    console.print("No problems." if not bad else f"{counted}, listed above.")
    if any(problem.row is None for found in checked.values() for problem in found.problems):
        raise DataError(f"{counted} in the data.", ONLY_ROWS)
    if bad > config.max_bad:
        raise DataError(
            f"{counted} in the data.",
            f"Fix what is listed above, or train without these rows with --max-bad {bad}.",
        )


def show_sample(config: FinetuneConfig, number: int, stream: IO[str]) -> None:
    """Prints one row as the model reads it.

    Raises:
        DataError: there is no such row, or it is bad.
    """
    from rich.console import Console

    from finetune.datasets import read_rows

    console = Console(file=stream, highlight=False, soft_wrap=True)
    reader = _reader(config)
    processor, shares = reader.processor, reader.shares_prefixes
    data = read_rows(config.data, config.images)
    if number > len(data.rows):
        first = f" The first problem: {data.problems[0]}" if data.problems else ""
        raise DataError(
            f"There are {len(data.rows):,} good rows, so no row {number:,}.{first}",
            "Give a smaller --row.",
        )
    row = data.rows[number - 1]
    conversation = row.conversation()
    samples = samples_of(row, conversation, processor, turns=config.turns, share_prefix=shares)
    console.print(f"{row.place}, id {row.id}", markup=False)
    for picture in conversation.pictures:
        changes = f" ({', '.join(picture.changes)})" if picture.changes else ""
        width, height = picture.image.size
        console.print(f"{picture.name}: {width}×{height}{changes}", markup=False)
        _print_picture(console, processor, picture)
    for sample in samples:
        _print_tokens(console, processor, sample)


@dataclass(frozen=True)
class _Reader:
    """What a model does with rows, known without its weights."""

    processor: Any
    context: int
    """Tokens."""
    shares_prefixes: bool
    """Whether it trains several questions in one sequence."""


def _check(
    config: FinetuneConfig, sources: Sequence[str], reader: _Reader, display: Display
) -> Preflight:
    from finetune.datasets import read_rows

    return check(
        read_rows(sources, config.images),
        reader.processor,
        max_length=config.max_length or reader.context,
        turns=config.turns,
        share_prefix=reader.shares_prefixes,
        workers=config.workers,
        on_progress=lambda done, of: display(Progress("checking", done, of)),
    )


def _reader(config: FinetuneConfig, further: Sequence[str] = ()) -> _Reader:
    from finetune.architecture import config_shares_prefixes, context_length
    from finetune.datasets import check_sources
    from vqa_app import sources
    from vqa_app.loading import base_source, load_config
    from vqa_app.processors import load_processor

    if not config.data:
        raise UsageError("There is no data.", "Give --data.")
    check_sources((*config.data, *further), config.images)
    source = base_source(sources.find(config.model, config.revision, weights=False), weights=False)
    known = load_config(source)
    return _Reader(
        load_processor(source, known), context_length(known), config_shares_prefixes(known)
    )


def _print_summary(console: Console, name: str, counted: Summary) -> None:
    least, median, high, most = counted.quantiles
    console.print(f"{name}: {counted.rows:,} rows, {counted.answers:,} answers")
    each = ", ".join(f"{number} in {count:,}" for number, count in counted.pictures_each)
    console.print(f"  {counted.pictures:,} different pictures; in a sequence: {each}")
    if counted.sequences != counted.rows:
        console.print(f"  {counted.sequences:,} sequences to train")
    console.print(
        f"  {counted.tokens:,} tokens, {counted.trained_tokens:,} of them trained; a sequence has "
        f"{least:,} to {most:,}, median {median:,}, 95 % up to {high:,}"
    )
    tallest = max(count for _, _, count in counted.histogram)
    for start, end, count in counted.histogram:
        bar = "█" * max(1 if count else 0, round(_BAR * count / tallest))
        console.print(f"  {start:>7,} to {end - 1:>7,} tokens {bar} {count:,}")
    console.print("  Longest:")
    for sample in counted.longest:
        console.print(f"    {len(sample):,} tokens: {sample.row.place}", markup=False)


def _print_copies(console: Console, found: Preflight) -> None:
    copies = found.duplicates()
    console.print(f"  Duplicate rows: {len(copies):,}")
    for first, later in copies[:5]:
        console.print(f"    {later.row.place} repeats {first.row.place}", markup=False)


def _print_tokens(console: Console, processor: Any, sample: Sample) -> None:
    """Runs of tokens of one kind: read, picture, trained; one question a line where a prefix is
    shared."""
    from rich.text import Text

    from vqa_app.prompting import image_token_id

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
        f"{len(sample) - images - sample.trained:,} read, {sample.trained:,} trained (⟦green⟧)"
    )


def _print_picture(console: Console, processor: Any, picture: Picture) -> None:
    """The picture as the model is given it: resized and normalised, and turned back to colours."""
    from rich.text import Text

    from vqa_app.model_view import model_view

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
