"""Forked processes of tests end, whatever one of them does."""

from __future__ import annotations

import os
import signal
import threading

from tests.forked import _ended, _fork, needs_fork

pytestmark = needs_fork


def forever() -> None:
    threading.Event().wait()


def test_who_waits_for_one_that_failed_is_ended() -> None:
    def fails() -> None:
        raise SystemExit

    statuses = _ended([_fork(forever, {}), _fork(fails, {})])
    assert os.WTERMSIG(statuses[0]) == signal.SIGKILL
    assert os.WEXITSTATUS(statuses[1]) == 1


def test_the_time_is_limited() -> None:
    (status,) = _ended([_fork(forever, {})], 0.1)
    assert os.WTERMSIG(status) == signal.SIGKILL
