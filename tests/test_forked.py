"""Forked processes of tests always end."""

from __future__ import annotations

import os
import signal
import threading

from tests.forked import _fork, _wait, needs_fork

pytestmark = needs_fork


def forever() -> None:
    threading.Event().wait()


def test_the_others_are_killed_if_one_fails() -> None:
    def fails() -> None:
        raise SystemExit

    statuses = _wait([_fork(forever, {}), _fork(fails, {})])
    assert os.WTERMSIG(statuses[0]) == signal.SIGKILL
    assert os.WEXITSTATUS(statuses[1]) == 1


def test_processes_are_killed_after_the_time_limit() -> None:
    (status,) = _wait([_fork(forever, {})], 0.1)
    assert os.WTERMSIG(status) == signal.SIGKILL
