"""Waiting for what another thread does, without waiting for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    """Machines are shared, so the limit is long. Raises AssertionError at its end."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
