"""Processes of tests always end."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.forked import needs_fork, run_all

pytestmark = [needs_fork, pytest.mark.slow]


def fail_or_wait() -> None:
    if os.environ["RANK"] == "1":
        raise SystemExit(1)
    threading.Event().wait()


def test_the_others_are_killed_if_one_fails() -> None:
    assert run_all([{"RANK": 0}, {"RANK": 1}], fail_or_wait) == [-signal.SIGKILL, 1]


def test_processes_are_killed_after_the_time_limit() -> None:
    assert run_all([{"RANK": 0}], fail_or_wait, seconds=0.1) == [-signal.SIGKILL]
