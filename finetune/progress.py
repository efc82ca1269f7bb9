"""Progress of a run: values for callers, bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO, TypeAlias

if TYPE_CHECKING:
    import rich.progress

Phase: TypeAlias = Literal[
    "loading", "checking", "encoding", "training", "evaluating", "saving", "done"
]

CONTINUE_HINT = "Run the same command to continue."

_LINE_SECONDS = 10.0
"""Time between lines on a stream that is no terminal."""


@dataclass(frozen=True)
class Progress:
    """The state of a run. Values that are not yet known are None."""

    phase: Phase
    done: int = 0
    """Rows, pictures, questions or steps, depending on the phase."""
    of: int = 0
    message: str = ""
    """A message to be kept on the screen, instead of progress."""
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    samples_per_second: float | None = None
    seconds_left: float | None = None
    evaluation: dict[str, float] = field(default_factory=dict)
    """The last evaluation: vqa_accuracy (0 to 1), loss and image_gain (nats per token)."""


OnProgress: TypeAlias = Callable[[Progress], None]


class ProgressDisplay:
    """Show progress on a stream: a bar on a terminal, elsewhere a line every few seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._bar: rich.progress.Progress | None = None
        self._shown_at = -1e9
        self._phase = ""
        self._done = 0
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as ProgressBar

            self._bar = ProgressBar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[details]}", markup=False),
                console=Console(file=self.stream, highlight=False),
                refresh_per_second=5,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, visible=False, details="")

    def __enter__(self) -> ProgressDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show progress, or print its message."""
        if self._bar:
            if progress.message:
                self._bar.console.print(progress.message, markup=False)
                return
            self._bar.update(
                self._task,
                description=progress.phase,
                completed=progress.done,
                total=progress.of or None,
                details="  ".join(_details(progress)),
                visible=True,
            )
        elif progress.message:
            print(progress.message, file=self.stream, flush=True)
        elif self._is_due(progress):
            print("  ".join((progress.phase, *_details(progress))), file=self.stream, flush=True)

    def _is_due(self, progress: Progress) -> bool:
        """Return whether to print a line: a phase begins or ends, or some time has passed."""
        begins = progress.phase != self._phase
        ends = 0 < progress.of <= progress.done != self._done
        now = time.monotonic()
        if not (begins or ends) and now - self._shown_at < _LINE_SECONDS:
            return False
        self._shown_at, self._phase, self._done = now, progress.phase, progress.done
        return True


@contextmanager
def progress_bar(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr if it is a terminal; yield a function that takes (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBar

    with ProgressBar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _details(progress: Progress) -> list[str]:
    """Return step, epoch, loss, learning rate, speed, time left and last evaluation, if known."""
    details: list[str] = []
    if progress.of:
        details.append(f"{progress.done:,}/{progress.of:,}")
    if progress.epoch is not None:
        details.append(f"epoch {progress.epoch:.2f}")
    if progress.loss is not None:
        details.append(f"loss {progress.loss:.4f}")
    if progress.learning_rate is not None:
        details.append(f"lr {progress.learning_rate:.2e}")
    if progress.samples_per_second is not None:
        details.append(f"{progress.samples_per_second:.1f} samples/s")
    if progress.seconds_left is not None:
        details.append(f"{format_duration(progress.seconds_left)} left")
    return details + [format_metric(name, value) for name, value in progress.evaluation.items()]


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun: "1 row", "1,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_metric(name: str, value: float) -> str:
    """Return a metric of `Progress.evaluation` with its name, such as "accuracy 50.0 %"."""
    if name == "vqa_accuracy":
        return f"accuracy {100 * value:.1f} %"
    return f"{'eval loss' if name == 'loss' else name.replace('_', ' ')} {value:.3f}"


def format_duration(seconds: float) -> str:
    """Return seconds as "1:05" or "1:01:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
