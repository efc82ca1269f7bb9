"""The worker thread: when items arrive, and which threads are left when it is idle."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import PATIENCE
from vqa_app.engine import worker as module
from vqa_app.engine.worker import Cancelled, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_the_first_item_comes_at_once_and_the_others_in_order(worker: Worker) -> None:
    gate = threading.Event()

    def job(cancelled: Cancelled) -> Iterator[int]:
        yield 0
        assert gate.wait(PATIENCE)
        yield from range(1, 1000)

    items = worker.stream(job)
    assert next(items) == 0
    gate.set()
    assert list(items) == list(range(1, 1000))


def test_the_end_arrives_without_waiting_for_the_pace(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACE_SECONDS", 600.0)
    began = time.perf_counter()
    assert list(worker.stream(lambda cancelled: iter("abc"))) == ["a", "b", "c"]
    assert time.perf_counter() - began < PATIENCE


def test_an_error_arrives_without_waiting_for_the_pace(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACE_SECONDS", 600.0)

    def job(cancelled: Cancelled) -> Iterator[str]:
        yield "a"
        raise ValueError("b")

    began = time.perf_counter()
    with pytest.raises(ValueError, match="b"):
        list(worker.stream(job))
    assert time.perf_counter() - began < PATIENCE


def test_the_idle_callback_is_called_on_the_workers_thread() -> None:
    called = threading.Event()
    worker = Worker(on_idle=lambda: called.set() if in_thread() else None)

    def in_thread() -> bool:
        return threading.current_thread() is not threading.main_thread()

    assert worker.call(lambda: 7) == 7
    assert called.wait(PATIENCE)
    worker.close()


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux counts them"
)
def test_release_threads_ends_the_openmp_threads() -> None:
    code = """
import os, time, torch
from vqa_app.engine.cpu_threads import _libgomp, release_threads
count = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
torch.ones(1 << 22).mul_(2)
during = count()
release_threads()
ends = time.monotonic() + 60
while _libgomp() and count() > during - 2 and time.monotonic() < ends:
    time.sleep(0.01)
assert not _libgomp() or count() == during - 2, (during, count())
assert torch.ones(1 << 22).mul_(2).sum() == 1 << 23
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
