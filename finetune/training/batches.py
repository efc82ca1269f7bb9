"""Which samples make up which step: a plan that is the same for every number of processes and every
restart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

GROUPED_BATCHES = 50
"""Samples are sorted by length within so many batches: little padding, and still a random order."""


class BatchPlan(Sampler[list[int]]):
    """Positions of samples, a list for each micro-batch of this process, for the whole run.

    Epochs follow each other without a gap, so that every step has the full batch. A step's samples
    are dealt to (micro-batch, process) by length; which samples a step holds depends on the seed
    alone. The step with the largest micro-batch comes first: what does not fit in memory fails in
    the first minute.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        *,
        batch_size: int,
        micro_batches: int,
        steps: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Args:
        weights: how often an epoch shows each sample; a fraction is a chance.
        batch_size: samples of a step over all processes; at least `micro_batches * processes`,
            else a micro-batch would be empty.
        micro_batches: for each process and step.
        """
        self.lengths = np.asarray(lengths)
        self.weights = np.asarray(weights)
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self.steps = steps
        self.seed = seed
        self.process = process
        self.processes = processes

    def __len__(self) -> int:
        return self.steps * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in itertools.islice(self.batches(), self.steps):
            for chunk in self._chunks(batch)[self.process :: self.processes]:
                yield chunk.tolist()

    def batches(self) -> Iterator[np.ndarray]:
        """The samples of every step, longest first, without end."""
        left = np.array([], dtype=np.int64)
        for epoch in itertools.count():
            random = np.random.default_rng([self.seed, epoch])
            whole = np.floor(self.weights).astype(int)
            times = whole + (random.random(len(whole)) < self.weights - whole)
            order = random.permutation(np.repeat(np.arange(len(whole)), times))
            order = np.concatenate([left, order])
            group = GROUPED_BATCHES * self.batch_size
            batches: list[np.ndarray] = []
            for start in range(0, len(order), group):
                part = order[start : start + group]
                if start + group >= len(order):  # the last batch of an epoch goes into the next
                    cut = len(part) - len(part) % self.batch_size
                    part, left = part[:cut], part[cut:]
                part = part[np.argsort(-self.lengths[part], kind="stable")]
                if len(part):
                    batches += np.split(part, range(self.batch_size, len(part), self.batch_size))
            random.shuffle(batches)
            if epoch == 0 and batches:
                largest = max(range(len(batches)), key=lambda b: self.tokens_at_once(batches[b]))
                batches.insert(0, batches.pop(largest))
            yield from batches

    def _chunks(self, batch: np.ndarray) -> list[np.ndarray]:
        return np.array_split(batch, self.micro_batches * self.processes)

    def tokens_at_once(self, batch: np.ndarray) -> int:
        """Padded tokens of the step's largest micro-batch."""
        return max(len(chunk) * int(self.lengths[chunk].max()) for chunk in self._chunks(batch))


def loader(plan: BatchPlan, collate: Any) -> DataLoader[Any]:
    """Batches in the plan's order; `collate` is given a list of positions."""
    return DataLoader(range(len(plan.lengths)), batch_sampler=plan, collate_fn=collate)


class Ahead:
    """Takes from an iterator in a thread, a step ahead."""

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source
        self._pool = ThreadPoolExecutor(1, "batches")
        self._next: Future[list[Any]] | None = None

    def take(self, count: int) -> list[Any]:
        batches = self._next.result() if self._next else self._some(count)
        self._next = self._pool.submit(self._some, count)
        return batches

    def _some(self, count: int) -> list[Any]:
        return [batch for _, batch in zip(range(count), self.source, strict=False)]
