"""Wait for another thread, but not forever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0
"""Seconds that a test waits for another thread or process before it fails. Usually it only waits
for an instant, but on a busy machine a thread may not run for many seconds."""


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait until a condition is true.

    Raises:
        AssertionError: It is still false after `seconds`.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.01)
