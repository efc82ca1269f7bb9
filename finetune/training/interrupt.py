"""Ending a run early, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stop:
    """Whether the run was asked to end: by Ctrl-C, SIGTERM or the caller's event.

    A second Ctrl-C ends it at once, without a checkpoint.
    """

    def __init__(self, cancel: threading.Event | None) -> None:
        self._cancel = cancel
        self._requested = False
        self._previous_handlers: dict[int, Any] = {}
        self.training = False
        """Whether there is something to save; before that, Ctrl-C ends the run at once."""

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether the run should end after the current step."""
        return self._requested or (self._cancel is not None and self._cancel.is_set())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested or not self.training:
            raise KeyboardInterrupt
        self._requested = True
