"""What a run tells while it works: values for callers, a display for terminals, plain lines for
everything else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, TypeAlias

Phase: TypeAlias = Literal[
    "loading", "checking", "encoding", "training", "evaluating", "saving", "done"
]

_LINE_SECONDS = 10.0
_REFRESH_SECONDS = 0.2
_BAR = 24


@dataclass(frozen=True)
class Progress:
    """Where a run stands. What is not known yet is None."""

    phase: Phase
    done: int = 0
    """Rows, pictures, questions or steps, as the phase has them."""
    of: int = 0
    message: str = ""
    """A sentence to keep: a plan, a count, a finding."""
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    samples_per_second: float | None = None
    seconds_left: float | None = None
    evaluation: dict[str, float] = field(default_factory=dict)
    """The last one: vqa_accuracy (0 to 1), loss (nats a token), image_gain (nats a token)."""


def pluralize(number: int, what: str) -> str:
    """`1 row`, `1,000 rows`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


OnProgress: TypeAlias = Callable[[Progress], None]


class ProgressDisplay:
    """Shows progress on a stream. A terminal gets one line that is rewritten, anything else a line
    now and then.
    """

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stderr
        self.live = bool(getattr(self.stream, "isatty", lambda: False)())
        self._shown = -1e9
        self._phase = ""
        self._done = 0
        self._status: Any = None
        if self.live:
            from rich.console import Console
            from rich.live import Live

            self._status = Live(console=Console(file=self.stream), auto_refresh=False)

    def __enter__(self) -> ProgressDisplay:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status:
            self._status.update("", refresh=True)
            self._status.stop()

    def __call__(self, progress: Progress) -> None:
        if progress.message:
            self._keep(progress.message)
            return
        changed = progress.phase != self._phase
        finished = 0 < progress.of <= progress.done != self._done
        now = time.monotonic()
        wait = _REFRESH_SECONDS if self.live else _LINE_SECONDS
        if not (changed or finished) and now - self._shown < wait:
            return
        self._shown, self._phase, self._done = now, progress.phase, progress.done
        if self.live:
            self._status.update(describe(progress, bar=True), refresh=True)
        else:
            print(describe(progress), file=self.stream, flush=True)

    def _keep(self, text: str) -> None:
        if self.live:
            from rich.text import Text

            self._status.console.print(Text(text))
        else:
            print(text, file=self.stream, flush=True)


def describe(progress: Progress, bar: bool = False) -> str:
    """One line: phase, step, loss, learning rate, speed, time left, last evaluation."""
    parts = [progress.phase]
    if bar and progress.of:
        filled = round(_BAR * min(1.0, progress.done / progress.of))
        parts.append("█" * filled + "░" * (_BAR - filled))
    if progress.of:
        parts.append(f"{progress.done:,}/{progress.of:,}")
    if progress.epoch is not None:
        parts.append(f"epoch {progress.epoch:.2f}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.learning_rate is not None:
        parts.append(f"lr {progress.learning_rate:.2e}")
    if progress.samples_per_second is not None:
        parts.append(f"{progress.samples_per_second:.1f} samples/s")
    if progress.seconds_left is not None:
        parts.append(f"{format_duration(progress.seconds_left)} left")
    parts += [f"{format_metric(name, value)}" for name, value in progress.evaluation.items()]
    return "  ".join(parts)


def format_metric(name: str, value: float) -> str:
    if name == "vqa_accuracy":
        return f"accuracy {100 * value:.1f} %"
    return f"{'eval loss' if name == 'loss' else name.replace('_', ' ')} {value:.3f}"


def format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
