"""The samples of each step.

The plan does not depend on the number of processes and is the same after a restart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

GROUPED_BATCHES = 50
"""Samples are sorted by length within this many batches: little padding, and a random order."""


class MicroBatchSampler(Sampler[list[int]]):
    """The positions of the samples in each micro-batch of this process, for the whole run.

    Epochs follow each other without a gap, so that every step has the full batch. Which samples a
    step holds depends on the seed alone; within the step they are sorted by length and divided
    among micro-batches and processes. The step with the largest micro-batch comes first, so that a
    run that does not fit in memory fails in its first minute.

    Args:
        lengths: Tokens of each sample.
        weights: How often an epoch shows each sample; a fraction is a probability.
        batch_size: Samples of a step over all processes; at least `micro_batches * processes`, so
            that no micro-batch is empty.
        micro_batches: Number of micro-batches per process and step.
        steps: Number of steps in the whole run.
        seed: Seed of the order.
        process: Number of this process, from 0.
        processes: Number of processes that share each step.
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
        """Yield the samples of each step, sorted by falling length, without end."""
        remainder = np.array([], dtype=np.int64)
        for epoch in itertools.count():
            random = np.random.default_rng([self.seed, epoch])
            times = np.floor(self.weights).astype(int)
            times += random.random(len(times)) < self.weights - times
            order = random.permutation(np.repeat(np.arange(len(times)), times))
            order = np.concatenate([remainder, order])
            group = GROUPED_BATCHES * self.batch_size
            batches: list[np.ndarray] = []
            for start in range(0, len(order), group):
                part = order[start : start + group]
                if start + group >= len(order):  # an incomplete last batch moves to the next epoch
                    cut = len(part) - len(part) % self.batch_size
                    part, remainder = part[:cut], part[cut:]
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
        """Return the padded tokens of the step's largest micro-batch."""
        return max(len(chunk) * int(self.lengths[chunk].max()) for chunk in self._chunks(batch))


def make_loader(
    plan: MicroBatchSampler, collate: Callable[[Sequence[int]], dict[str, Any]]
) -> DataLoader[Any]:
    """Return the batches in the plan's order; `collate` gets a list of positions."""
    positions: Any = range(len(plan.lengths))  # any sequence serves as a dataset
    return DataLoader(positions, batch_sampler=plan, collate_fn=collate)


class Prefetcher:
    """Takes batches from an iterator in a thread, one step ahead."""

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source
        self._pool = ThreadPoolExecutor(1, "batches")
        self._next: Future[list[Any]] | None = None

    def take(self, count: int) -> list[Any]:
        """Return the next `count` batches and start to read as many again."""
        batches = self._next.result() if self._next else self._read(count)
        self._next = self._pool.submit(self._read, count)
        return batches

    def _read(self, count: int) -> list[Any]:
        return list(itertools.islice(self.source, count))
