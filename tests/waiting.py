"""Waiting for what another thread does, without waiting for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0
"""Seconds that a test waits for another thread or process before it fails. What it waits for comes
at once on a machine that has time; on a shared one it may stand still for many seconds."""


def until(true: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Machines are shared, so the limit is long. Raises AssertionError at its end."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
