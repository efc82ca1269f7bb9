"""The scheduler: when items arrive, what runs together, and which threads are left when idle."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE, until
from vqa_app.engine import scheduler as module
from vqa_app.engine.protocol import Status
from vqa_app.engine.scheduler import (
    Cancelled,
    DecodeStep,
    EncodeStep,
    Job,
    Pause,
    Reservation,
    Scheduler,
    Steps,
)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler()
    yield scheduler
    scheduler.close()


def test_the_first_item_comes_at_once_and_the_others_in_order(scheduler: Scheduler) -> None:
    gate = threading.Event()

    def job(cancelled: Cancelled) -> Iterator[int]:
        yield 0
        assert gate.wait(PATIENCE)
        yield from range(1, 1000)

    items = scheduler.stream(job)
    assert next(items) == 0
    gate.set()
    assert list(items) == list(range(1, 1000))


def test_the_end_arrives_without_waiting_for_the_pace(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACE_SECONDS", 600.0)
    began = time.perf_counter()
    assert list(scheduler.stream(lambda cancelled: iter("abc"))) == ["a", "b", "c"]
    assert time.perf_counter() - began < PATIENCE


def test_an_error_arrives_without_waiting_for_the_pace(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACE_SECONDS", 600.0)

    def job(cancelled: Cancelled) -> Iterator[str]:
        yield "a"
        raise ValueError("b")

    began = time.perf_counter()
    with pytest.raises(ValueError, match="b"):
        list(scheduler.stream(job))
    assert time.perf_counter() - began < PATIENCE


def test_the_idle_callback_is_called_on_the_schedulers_thread() -> None:
    called = threading.Event()
    scheduler = Scheduler(on_idle=lambda: called.set() if in_thread() else None)

    def in_thread() -> bool:
        return threading.current_thread() is not threading.main_thread()

    def steps() -> Steps[int]:
        yield None
        return 7

    assert scheduler.run(steps) == 7
    assert called.wait(PATIENCE)
    scheduler.close()


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


class Adder:
    """Decodes by adding 100 to tokens, and records which were decoded together."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []

    def __call__(self, steps: Sequence[DecodeStep]) -> list[Any]:
        self.rounds.append([step.token for step in steps])
        return [ZeroDivisionError("13") if step.token == 13 else step.token + 100 for step in steps]


def decode_tokens(*tokens: int) -> Job[int]:
    def job(cancelled: Cancelled) -> Generator[Any, Any, None]:
        for token in tokens:
            if cancelled():
                return
            yield (yield DecodeStep(None, token))

    return job


@pytest.fixture
def together() -> Iterator[tuple[Scheduler, Callable[..., list[Any]]]]:
    """Return a scheduler, and a function that runs jobs that all arrive while it is busy."""
    scheduler = Scheduler(decode=Adder(), concurrency=8, memory=lambda: 100)

    def run(*jobs: Job[Any]) -> list[Any]:
        gate = threading.Event()

        def hold(cancelled: Cancelled) -> Iterator[None]:
            assert gate.wait(PATIENCE)
            yield

        first = threading.Thread(target=lambda: list(scheduler.stream(hold)))
        first.start()
        until(lambda: scheduler.in_demand)
        results: list[Any] = [None] * len(jobs)

        def consume(number: int) -> None:
            try:
                results[number] = list(scheduler.stream(jobs[number]))
            except Exception as error:
                results[number] = error

        threads = []
        for number in range(len(jobs)):
            arrived = scheduler.count
            threads.append(threading.Thread(target=consume, args=(number,)))
            threads[-1].start()
            until(lambda arrived=arrived: scheduler.count == arrived + 1)
        gate.set()
        for thread in (first, *threads):
            thread.join(PATIENCE)
        return results

    yield scheduler, run
    scheduler.close()


def test_jobs_that_decode_get_their_tokens_together(together: Any) -> None:
    scheduler, run = together
    assert run(decode_tokens(1, 2, 3), decode_tokens(4, 5)) == [[101, 102, 103], [104, 105]]
    assert scheduler._decode.rounds == [[1], [2, 4], [3, 5]]


def test_an_error_in_one_sequence_ends_that_one_alone(together: Any) -> None:
    _, run = together
    good, bad, other = run(decode_tokens(1, 2), decode_tokens(3, 13, 5), decode_tokens(6, 7))
    assert (good, other) == ([101, 102], [106, 107])
    assert isinstance(bad, ZeroDivisionError)


def test_a_long_prompt_is_read_between_the_tokens_of_others(together: Any) -> None:
    scheduler, run = together
    read: list[int] = []

    def read_prompt(cancelled: Cancelled) -> Iterator[None]:
        for _ in range(5):
            read.append(len(scheduler._decode.rounds))
            yield

    run(decode_tokens(*range(20, 30)), read_prompt)
    assert len(set(read[1:])) == 4, "each chunk is followed by a token"


def test_chunks_of_two_prompts_are_read_in_the_order_of_arrival(together: Any) -> None:
    _, run = together
    order: list[str] = []

    def read_prompt(name: str) -> Job[None]:
        def job(cancelled: Cancelled) -> Iterator[None]:
            for _ in range(3):
                order.append(name)
                yield

        return job

    run(read_prompt("a"), read_prompt("b"))
    assert order == list("abaabb"), "both begin, then one after the other is read"


def test_jobs_that_read_several_prompts_take_turns(together: Any) -> None:
    _, run = together
    order: list[str] = []

    def read_prompts(name: str, prompts: int) -> Job[None]:
        def job(cancelled: Cancelled) -> Generator[Any, Any, None]:
            for _ in range(prompts):
                for _ in range(2):
                    order.append(name)
                    yield None
                yield Pause()

        return job

    run(read_prompts("a", 3), read_prompts("b", 2), read_prompts("c", 1))
    assert order == list("abcabcaabbaa"), "a prompt is read whole, then another job's"


def test_steps_end_at_the_next_one_when_they_are_cancelled(scheduler: Scheduler) -> None:
    cancel = threading.Event()
    done: list[str] = []

    def steps() -> Steps[None]:
        try:
            for number in range(3):
                done.append(f"step {number}")
                if number == 1:
                    cancel.set()
                yield None
        finally:
            done.append("closed")

    with pytest.raises(CancelledError):
        scheduler.run(steps, cancel)
    assert done == ["step 0", "step 1", "closed"]
    with pytest.raises(CancelledError):  # before it starts
        scheduler.run(steps, cancel)
    assert len(done) == 3


def test_steps_receive_results_and_errors_of_what_they_yield(scheduler: Scheduler) -> None:
    class Encoder:
        def run(self, inputs: Any) -> str:
            return inputs["picture"][1]

    def steps() -> Steps[list[Any]]:
        found: list[Any] = [(yield EncodeStep(Encoder(), {"picture": "ab"}, "key"))]
        try:
            yield EncodeStep(Encoder(), {"picture": ""}, "other")
        except IndexError as error:
            found.append(type(error))
        return found

    assert scheduler.run(steps) == ["b", IndexError]


def test_an_interrupted_caller_leaves_no_steps_behind(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does while the caller waits."""
    started, closed = threading.Event(), threading.Event()

    def steps() -> Steps[None]:
        try:
            while True:
                started.set()
                yield None
        finally:
            closed.set()

    def interrupt(task: Any) -> None:
        assert started.wait(PATIENCE)
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "_receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        scheduler.run(steps)
    assert closed.wait(PATIENCE)
    until(lambda: not scheduler.in_demand)


def test_jobs_wait_in_line_for_memory_and_are_told_their_place(together: Any) -> None:
    _, run = together

    def reserving(nbytes: int, *tokens: int) -> Job[int]:
        def job(cancelled: Cancelled) -> Generator[Any, Any, None]:
            yield Reservation(nbytes)
            yield from decode_tokens(*tokens)(cancelled)

        return job

    # The third would fit beside the first, but is not let past the second.
    tokens = tuple(range(20, 30))
    first, second, third = run(reserving(60, *tokens), reserving(60, 3), reserving(10, 4))
    assert first == [token + 100 for token in tokens]
    assert second == [Status("waiting", 0), 103]
    assert third[-1] == 104
    assert Status("waiting", 1) in third


def test_a_job_cancelled_while_it_waits_for_memory_ends_before_others_have_it(
    together: Any,
) -> None:
    scheduler, run = together
    cancel = threading.Event()
    ended: list[list[int]] = []

    def hold(cancelled: Cancelled) -> Generator[Any, Any, None]:
        yield Reservation(80)
        cancel.set()
        while not ended:
            yield (yield DecodeStep(None, 1))

    def wait(cancelled: Cancelled) -> Generator[Any, Any, None]:
        yield Reservation(80)
        assert ended, "got memory while the first job had it"

    def give_up(cancelled: Cancelled) -> Generator[Any, Any, None]:
        yield Reservation(80)
        assert cancelled()
        ended.append(scheduler._decode.rounds[-1])

    stream = scheduler.stream
    scheduler.stream = lambda job: stream(job, cancel if job is give_up else None)
    assert not any(isinstance(one, Exception) for one in run(hold, wait, give_up))
    assert ended == [[1]]


def test_an_error_of_the_device_ends_the_jobs_and_not_the_thread() -> None:
    """Nobody would be answered again."""
    asked: list[int] = []

    def memory() -> int:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("no device")
        return 100

    def first(cancelled: Cancelled) -> Iterator[Any]:
        yield Reservation(10)
        yield "first"
        while not cancelled():
            yield None

    def second(cancelled: Cancelled) -> Iterator[Any]:
        yield Reservation(10)
        yield "second"

    scheduler = Scheduler(concurrency=2, memory=memory)
    running = scheduler.stream(first)
    assert next(running) == "first"
    with pytest.raises(RuntimeError, match="no device"):
        list(scheduler.stream(second))
    with pytest.raises(RuntimeError, match="no device"):
        list(running)
    assert list(scheduler.stream(second)) == ["second"]
    scheduler.close()


def test_a_single_job_gets_more_memory_than_there_is(together: Any) -> None:
    _, run = together

    def greedy(cancelled: Cancelled) -> Generator[Any, Any, None]:
        yield Reservation(1 << 40)
        yield 7

    assert run(greedy) == [[7]]


def test_background_jobs_give_way(together: Any) -> None:
    scheduler, run = together
    done: list[str] = []

    def warm(cancelled: Cancelled) -> Iterator[None]:
        for _ in range(3):
            done.append("warm")
            yield

    def ask(cancelled: Cancelled) -> Generator[Any, Any, None]:
        yield
        done.append("answered")

    warming = threading.Thread(target=lambda: list(scheduler.stream(warm, background=True)))
    gate_opened = run(ask, lambda cancelled: (warming.start(), iter(()))[1])
    warming.join(PATIENCE)
    assert gate_opened == [[], []]
    assert done.index("answered") == 0
    assert done.count("warm") == 3
