"""Checks data before a single step: every row rendered and measured, every picture decoded.

What comes out is also what trains: the rows' tokens are kept, so that no epoch renders them again.
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

from finetune.data.read import Problem, ReadRows, Row, Split, split_by_picture
from finetune.data.samples import Sample, TurnMode, make_samples
from finetune.parallel import parallel_map
from finetune.progress import pluralize
from vqa_app.errors import DataError, VqaError

LONGEST_SHOWN = 5
ONLY_ROWS = "Fix the file: --max-bad leaves out single rows, not what a file may have held."


@dataclass(frozen=True)
class Preflight:
    """Samples that can be trained, and everything that was wrong with the others."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """Each once, also where it became several samples."""
        return tuple({id(sample.row): sample.row for sample in self.samples}.values())

    def duplicates(self) -> list[tuple[Sample, Sample]]:
        """Pairs (first, later) of rows with the same pictures and words."""
        first: dict[bytes, Sample] = {}
        pairs = []
        for sample in self.samples:
            if (earlier := first.setdefault(content_key(sample), sample)) is not sample:
                pairs.append((earlier, sample))
        return pairs

    def data_hash(self) -> str:
        """Names the data: changes with any trained token or picture."""
        total = hashlib.sha256()
        for sample in self.samples:
            total.update(sample.input_ids.tobytes() + sample.answer_mask.tobytes())
            total.update("".join(sample.digests).encode())
        return total.hexdigest()

    def enforce_limit(self, max_bad: int, skipped: Path | None = None) -> None:
        """Stops for more problems than are allowed; else writes the rows left out to `skipped`.

        Raises:
            DataError: see `raise_for_problems`.
        """
        raise_for_problems(self.problems, max_bad)
        if not self.samples:
            what = f"All rows are bad, the first: {self.problems[0]}" if self.problems else ""
            raise DataError(what or "The data holds no rows.", "Check --data.")
        if self.problems and skipped is not None:
            skipped.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(problem.to_json(), ensure_ascii=False) for problem in self.problems]
            skipped.write_text("\n".join(lines) + "\n", encoding="utf-8")


def raise_for_problems(problems: Sequence[Problem], max_bad: int) -> None:
    """Only rows can be left out: what is wrong with a whole file always stops.

    Raises:
        DataError: there are more than `max_bad`; how many, and the first with file and row.
    """
    if files := [problem for problem in problems if problem.row is None]:
        raise DataError(str(files[0]), ONLY_ROWS)
    if len(problems) > max_bad:
        raise DataError(
            f"{pluralize(len(problems), 'problem')} in the data, the first: {problems[0]}",
            f"Fix what check-data lists, or leave it out with --max-bad {len(problems)}.",
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
    """Renders and measures every row.

    Args:
        max_length: longest row in tokens that is no problem.
        turns, share_prefix: see `make_samples`.
        workers: threads; decoding pictures and tokenising leave Python's lock.
        on_progress: called with (done, of).
    """

    def measure(row: Row) -> list[Sample] | Problem:
        return _samples(row, processor, max_length, turns, share_prefix)

    samples: list[Sample] = []
    problems = list(data.problems)
    for done, result in enumerate(parallel_map(measure, data.rows, workers), 1):
        if isinstance(result, Problem):
            problems.append(result)
        else:
            samples += result
        if on_progress and (done % 32 == 0 or done == len(data.rows)):
            on_progress(done, len(data.rows))
    return Preflight(tuple(samples), tuple(problems), data.notes)


def check_distributed(data: ReadRows, processor: Any, **options: Any) -> Preflight:
    """`check` with the work shared among the processes of a distributed run; all get everything."""
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes == 1:
        return check_rows(data, processor, **options)
    from accelerate.utils import gather_object

    mine = replace(data, rows=data.rows[state.process_index :: state.num_processes], problems=())
    found = check_rows(mine, processor, **options)
    order = {(row.file, row.number): place for place, row in enumerate(data.rows)}
    samples = gather_object(list(found.samples))
    problems = gather_object(list(found.problems))
    return Preflight(
        tuple(sorted(samples, key=lambda sample: order[sample.row.file, sample.row.number])),
        (*data.problems, *sorted(problems, key=lambda p: order[p.file, p.row or 0])),
        data.notes,
    )


def _samples(
    row: Row, processor: Any, max_length: int, turns: TurnMode, share_prefix: bool
) -> list[Sample] | Problem:
    try:
        samples = make_samples(
            row, row.conversation(), processor, turns=turns, share_prefix=share_prefix
        )
    except VqaError as error:
        return row.problem(error.problem, error.hint)
    except Exception as error:  # templates and tokenizers raise many kinds; the row is to be named
        reason = (str(error).splitlines() or [""])[0][:100]
        return row.problem(f"The row cannot be rendered ({type(error).__name__}: {reason}).")
    longest = max(sample.positions_needed for sample in samples)
    if longest > max_length:
        return row.problem(
            f"The row has {longest:,} tokens, more than {max_length:,}.",
            "Split it, or raise --max-length if the model can take it.",
        )
    if not all(sample.trained_tokens for sample in samples):
        return row.problem("No token of an answer is trained.", "Does the answer hold any text?")
    return samples


@dataclass(frozen=True)
class Summary:
    """Counts over samples."""

    rows: int
    answers: int
    sequences: int
    """What the rows became; questions about one picture share one."""
    pictures: int
    tokens: int
    trained_tokens: int
    quantiles: tuple[int, int, int, int]
    """Tokens a sequence: least, median, 95 %, most."""
    histogram: tuple[tuple[int, int, int], ...]
    """(from, to, sequences) by tokens, `to` not included."""
    pictures_each: tuple[tuple[int, int], ...]
    """(pictures, sequences), ascending."""
    longest: tuple[Sample, ...]
    sources: tuple[tuple[str, int, float], ...]
    """(file, rows, share of an epoch, with weights counted), largest first."""


def summarize_samples(samples: Sequence[Sample]) -> Summary:
    """Measures samples; there must be at least one."""
    lengths = np.array([len(sample) for sample in samples])
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, 11).astype(int))
    counts, edges = np.histogram(lengths, edges) if len(edges) > 1 else ([len(lengths)], edges)
    ends = edges[1:] if len(edges) > 1 else edges + 1
    low, middle, high, most = np.quantile(lengths, (0, 0.5, 0.95, 1)).astype(int)
    shown = Counter(len(sample.digests) for sample in samples)
    rows = {id(sample.row): sample.row for sample in samples}.values()
    return Summary(
        rows=len({(row.file, row.number) for row in rows}),
        answers=sum(len(row.references) for row in rows),
        sequences=len(samples),
        pictures=len({digest for sample in samples for digest in sample.digests}),
        tokens=int(lengths.sum()),
        trained_tokens=sum(sample.trained_tokens for sample in samples),
        quantiles=(int(low), int(middle), int(high), int(most)),
        histogram=tuple(
            (int(a), int(b), int(n)) for a, b, n in zip(edges, ends, counts, strict=False)
        ),
        pictures_each=tuple(sorted(shown.items())),
        longest=tuple(sorted(samples, key=len, reverse=True)[:LONGEST_SHOWN]),
        sources=_sources({(row.file, row.number): row for row in rows}.values()),
    )


def _sources(rows: Iterable[Row]) -> tuple[tuple[str, int, float], ...]:
    count: Counter[str] = Counter()
    weight: Counter[str] = Counter()
    for row in rows:
        count[row.file] += 1
        weight[row.file] += row.weight  # type: ignore[assignment]
    total = sum(weight.values())
    return tuple((file, count[file], share / total) for file, share in weight.most_common())


def mixture_lines(summary: Summary) -> list[str]:
    """A line for each of several sources: how much of an epoch it is."""
    if len(summary.sources) < 2:
        return []
    return [
        f"  {share:6.1%} of an epoch: {pluralize(rows, 'row')} of {file}"
        for file, rows, share in summary.sources
    ]


def find_leaks(train: Preflight, held_out: Preflight) -> list[Sample]:
    """Held-out samples that show a picture which training samples show too, or that repeat one."""
    known = {digest for sample in train.samples for digest in sample.digests}
    known |= {content_key(sample) for sample in train.samples}
    return [s for s in held_out.samples if not known.isdisjoint((*s.digests, content_key(s)))]


def content_key(sample: Sample) -> bytes:
    """Equal for samples of the same words and pictures."""
    content = sample.input_ids.tobytes() + "".join(sample.digests).encode()
    return hashlib.sha256(content).digest()


def split_samples(
    preflight: Preflight, fraction: float | None, seed: int
) -> tuple[Preflight, Preflight]:
    """Training and held-out samples; a picture never stands on both sides."""
    digests: dict[int, tuple[str, ...]] = {}
    for sample in preflight.samples:
        digests[id(sample.row)] = (*digests.get(id(sample.row), ()), *sample.digests)
    rows = preflight.rows
    parts: Split = split_by_picture(rows, [digests[id(row)] for row in rows], fraction, seed)
    held = {id(row) for row in parts.held_out}
    train = tuple(sample for sample in preflight.samples if id(sample.row) not in held)
    rest = tuple(sample for sample in preflight.samples if id(sample.row) in held)
    return Preflight(train, preflight.problems, preflight.notes), Preflight(rest, ())
