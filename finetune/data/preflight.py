"""Check data before training: every row is tokenised and measured, every picture decoded.

The result is also what is trained on: the tokens are kept, so that no row is tokenised twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.read import Problem, ReadRows, Row, split_by_picture
from finetune.data.samples import Sample, TurnMode, make_samples
from finetune.parallel import parallel_map
from finetune.progress import pluralize
from vqa_app.errors import DataError, VqaError, library_reason

MAX_LONGEST = 5
"""Longest samples in a summary."""
FIX_FILE_HINT = "Fix the file: --max-bad skips single rows, not unreadable files."


@dataclass(frozen=True)
class Preflight:
    """Samples that can be trained on, and the problems of the other rows."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the samples, each once."""
        return tuple({id(sample.row): sample.row for sample in self.samples}.values())

    def duplicates(self) -> list[tuple[Sample, Sample]]:
        """Return pairs (first, later) of samples with the same pictures and tokens."""
        first: dict[str, Sample] = {}
        pairs = []
        for sample in self.samples:
            if (earlier := first.setdefault(content_key(sample), sample)) is not sample:
                pairs.append((earlier, sample))
        return pairs

    def data_hash(self) -> str:
        """Return a hash of all trained tokens and pictures."""
        total = hashlib.sha256()
        for sample in self.samples:
            total.update(sample.input_ids.tobytes() + sample.answer_mask.tobytes())
            total.update("".join(sample.digests).encode())
        return total.hexdigest()

    def enforce_limit(self, max_bad: int, skipped: Path | None = None) -> None:
        """Raise if there are too many problems, else write the skipped rows to a file.

        Args:
            max_bad: Number of bad rows allowed.
            skipped: JSONL file to write.

        Raises:
            DataError: See `raise_for_problems`; or no sample is left.
        """
        raise_for_problems(self.problems, max_bad)
        if not self.samples:
            message = f"All rows are bad, the first: {self.problems[0]}" if self.problems else ""
            raise DataError(message or "The data has no rows.", "Check --data.")
        if self.problems and skipped is not None:
            skipped.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(problem.to_json(), ensure_ascii=False) for problem in self.problems]
            skipped.write_text("\n".join(lines) + "\n", encoding="utf-8")


def raise_for_problems(problems: Sequence[Problem], max_bad: int) -> None:
    """Raise if there are more bad rows than allowed, or any problem of a whole file.

    Raises:
        DataError: The message has the number of problems, and the first with file and row.
    """
    if file_problems := [problem for problem in problems if problem.row is None]:
        raise DataError(str(file_problems[0]), FIX_FILE_HINT)
    if len(problems) > max_bad:
        raise DataError(
            f"{pluralize(len(problems), 'problem')} in the data, the first: {problems[0]}",
            f"Fix what check-data lists, or skip these rows with --max-bad {len(problems)}.",
        )


def check_rows(
    data: ReadRows,
    processor: Any,
    *,
    max_length: int,
    turns: TurnMode = "auto",
    share_prefix: bool = True,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Preflight:
    """Tokenise and measure every row.

    Args:
        data: The rows.
        processor: The model's processor.
        max_length: The longest allowed row, in tokens.
        turns: See `make_samples`.
        share_prefix: See `make_samples`.
        workers: Number of threads; decoding pictures and tokenising release Python's lock.
        on_progress: Called with the number of rows done and the total.
    """

    def check(row: Row) -> list[Sample] | Problem:
        return _check_row(row, processor, max_length, turns, share_prefix)

    samples: list[Sample] = []
    problems = list(data.problems)
    for done, result in enumerate(parallel_map(check, data.rows, workers), 1):
        if isinstance(result, Problem):
            problems.append(result)
        else:
            samples += result
        if on_progress and (done % 32 == 0 or done == len(data.rows)):
            on_progress(done, len(data.rows))
    return Preflight(tuple(samples), tuple(problems), data.notes)


def check_distributed(
    data: ReadRows, processor: Any, *, process: int, processes: int, **options: Any
) -> Preflight:
    """Divide `check_rows` among the processes of a distributed run; each returns the whole.

    Args:
        data: The rows.
        processor: The model's processor.
        process: Number of this process, from 0.
        processes: Number of processes; all of them must call this.
        **options: See `check_rows`.
    """
    if processes == 1:
        return check_rows(data, processor, **options)
    from accelerate.utils import gather_object

    part = replace(data, rows=data.rows[process::processes], problems=())
    checked = check_rows(part, processor, **options)
    order = {(row.file, row.number): position for position, row in enumerate(data.rows)}
    samples = gather_object(list(checked.samples))
    problems = gather_object(list(checked.problems))
    return Preflight(
        tuple(sorted(samples, key=lambda sample: order[sample.row.file, sample.row.number])),
        (*data.problems, *sorted(problems, key=lambda p: order[p.file, p.row or 0])),
        data.notes,
    )


def _check_row(
    row: Row, processor: Any, max_length: int, turns: TurnMode, share_prefix: bool
) -> list[Sample] | Problem:
    try:
        samples = make_samples(
            row, row.conversation(), processor, turns=turns, share_prefix=share_prefix
        )
    except VqaError as error:
        return row.problem(error.problem, error.hint)
    except Exception as error:  # templates and tokenizers raise many types; report the row
        problem = f"The row cannot be rendered{library_reason(error, 100)}"
        return row.problem(problem, "Compare it with the other rows.")
    longest = max((sample.positions_needed for sample in samples), default=0)
    if longest > max_length:
        return row.problem(
            f"The row has {longest:,} tokens, more than {max_length:,}.",
            "Split it, or raise --max-length if the model supports it.",
        )
    if not samples or not all(sample.trained_tokens for sample in samples):
        return row.problem(
            "No token of an answer would be trained.", "Check that the answer contains text."
        )
    return samples


@dataclass(frozen=True)
class DatasetSummary:
    """Counts over samples."""

    rows: int
    answers: int
    sequences: int
    """Number of samples; questions about one picture may share one."""
    pictures: int
    """Number of different pictures."""
    tokens: int
    trained_tokens: int
    quantiles: tuple[int, int, int, int]
    """Minimum, median, 95 % quantile and maximum of the tokens per sequence."""
    histogram: tuple[tuple[int, int, int], ...]
    """(from, to, number of sequences) by tokens; `to` is exclusive."""
    picture_counts: tuple[tuple[int, int], ...]
    """(pictures in a sequence, number of sequences), ascending."""
    longest: tuple[Sample, ...]
    sources: tuple[tuple[str, int, float], ...]
    """(file, rows, share of an epoch including weights), largest share first."""


def summarize_samples(samples: Sequence[Sample]) -> DatasetSummary:
    """Count rows, pictures and tokens of at least one sample."""
    lengths = np.array([len(sample) for sample in samples])
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, 11).astype(int))
    counts, edges = np.histogram(lengths, edges) if len(edges) > 1 else ([len(lengths)], edges)
    ends = edges[1:] if len(edges) > 1 else edges + 1
    minimum, median, high, maximum = np.quantile(lengths, (0, 0.5, 0.95, 1)).astype(int)
    picture_counts = Counter(len(sample.digests) for sample in samples)
    rows = {id(sample.row): sample.row for sample in samples}.values()
    return DatasetSummary(
        rows=len({(row.file, row.number) for row in rows}),
        answers=sum(len(row.references) for row in rows),
        sequences=len(samples),
        pictures=len({digest for sample in samples for digest in sample.digests}),
        tokens=int(lengths.sum()),
        trained_tokens=sum(sample.trained_tokens for sample in samples),
        quantiles=(int(minimum), int(median), int(high), int(maximum)),
        histogram=tuple(
            (int(a), int(b), int(n)) for a, b, n in zip(edges, ends, counts, strict=False)
        ),
        picture_counts=tuple(sorted(picture_counts.items())),
        longest=tuple(sorted(samples, key=len, reverse=True)[:MAX_LONGEST]),
        sources=_source_shares({(row.file, row.number): row for row in rows}.values()),
    )


def _source_shares(rows: Iterable[Row]) -> tuple[tuple[str, int, float], ...]:
    counts: Counter[str] = Counter()
    weights: dict[str, float] = {}
    for row in rows:
        counts[row.file] += 1
        weights[row.file] = weights.get(row.file, 0.0) + row.weight
    total = sum(weights.values())
    largest_first = sorted(weights.items(), key=lambda item: -item[1])
    return tuple((file, counts[file], weight / total) for file, weight in largest_first)


def mixture_lines(summary: DatasetSummary) -> list[str]:
    """Return a line per source with its share of an epoch, if there are several sources."""
    if len(summary.sources) < 2:
        return []
    return [
        f"  {share:6.1%} of an epoch: {pluralize(rows, 'row')} of {file}"
        for file, rows, share in summary.sources
    ]


def find_leaks(train: Preflight, held_out: Preflight) -> list[Sample]:
    """Return the held-out samples that share a picture or all tokens with a training sample."""
    known = {digest for sample in train.samples for digest in sample.digests}
    known |= {content_key(sample) for sample in train.samples}
    return [s for s in held_out.samples if not known.isdisjoint((*s.digests, content_key(s)))]


def content_key(sample: Sample) -> str:
    """Return a key that is equal for samples with the same tokens and pictures."""
    content = sample.input_ids.tobytes() + "".join(sample.digests).encode()
    return f"content:{hashlib.sha256(content).hexdigest()}"


def split_samples(
    preflight: Preflight, fraction: float | None, seed: int
) -> tuple[Preflight, Preflight]:
    """Split samples into training and held-out ones that share no picture.

    Args:
        preflight: The samples.
        fraction: See `split_by_picture`.
        seed: See `split_by_picture`.
    """
    digests: dict[int, tuple[str, ...]] = {}
    for sample in preflight.samples:
        digests[id(sample.row)] = (*digests.get(id(sample.row), ()), *sample.digests)
    rows = preflight.rows
    parts = split_by_picture(rows, [digests[id(row)] for row in rows], fraction, seed)
    held = {id(row) for row in parts.held_out}
    train = tuple(sample for sample in preflight.samples if id(sample.row) not in held)
    rest = tuple(sample for sample in preflight.samples if id(sample.row) in held)
    return Preflight(train, preflight.problems, preflight.notes), Preflight(rest, ())
