"""One thread that runs the model, one job at a time, in the order of arrival.

A job is a generator function. Its items go to the consumer that iterates over `Worker.stream`,
except None, which marks a point where a background job may be paused for other jobs. Only this
thread uses the model, and it never waits for a consumer, so a slow one delays nobody.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

from vqa_app.devices import clear_frames
from vqa_app.engine.protocol import Status
from vqa_app.errors import ModelError

T = TypeVar("T")
Cancelled: TypeAlias = Callable[[], bool]
"""Returns whether a job should end."""
Job: TypeAlias = Callable[[Cancelled], "Iterator[T | None]"]
Steps: TypeAlias = Generator[None, None, T]
"""Work that yields wherever it can be interrupted, and returns a result."""

POLL_SECONDS = 0.02
"""Interval at which a waiting consumer checks its cancel event."""
PACE_SECONDS = 0.01
"""Interval at which a consumer looks for more items. Waking it for every token of a small model
would cost more than the token, because it and the worker share the interpreter's lock."""
HAND_OVER_SECONDS = 1e-4
"""Pause of the worker after its first item, so that the consumer gets the interpreter's lock at
once instead of after the interpreter's switch interval of 5 ms."""


@dataclass(eq=False)
class _Task:
    """A job with its queue of results."""

    job: Job[Any]
    cancel: threading.Event | None
    background: bool
    outbox: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    ended: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)
    steps: Iterator[Any] | None = None
    """None until the job starts."""
    place: int = 0
    """Number of jobs ahead of it."""

    def cancelled(self) -> bool:
        return self.abandoned.is_set() or (self.cancel is not None and self.cancel.is_set())

    def end(self, error: BaseException | None = None) -> None:
        self.outbox.put(_End(error))
        self.ended.set()


@dataclass(frozen=True)
class _End:
    """The last item of an outbox."""

    error: BaseException | None = None


class Worker:
    """Run jobs first come, first served; background jobs only while no other job is waiting.

    Args:
        context: Entered once on the thread, around all jobs (such as `torch.inference_mode`).
        on_idle: Called on every thread that becomes idle: the worker's own between jobs, a
            consumer's while its job runs.
    """

    def __init__(
        self,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._context = context
        self._on_idle = on_idle
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._background: deque[_Task] = deque()
        self._current: _Task | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def stream(
        self, job: Job[T], cancel: threading.Event | None = None, *, background: bool = False
    ) -> Iterator[T | Status]:
        """Run a job and yield its items.

        Closing the iterator makes the job's `cancelled()` true. If `cancel` is set before the job
        starts, it never does and the iterator just ends.

        Args:
            job: Called on the worker's thread with a function that returns whether to end.
            cancel: Makes the job's `cancelled()` true.
            background: Run it only while no other job is waiting.

        Yields:
            `Status("waiting", place)` whenever the place in the queue changes, then the job's
            items: the first at once, later ones at most every `PACE_SECONDS` if that is slower
            than they come.

        Raises:
            ModelError: The worker is closed.
            BaseException: Whatever the job raised.
        """
        task = _Task(job, cancel, background)
        self._on_idle()
        self._enqueue(task)
        try:
            while True:
                item = self._receive(task)
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
                if not isinstance(item, Status) and task.outbox.empty():
                    task.ended.wait(PACE_SECONDS)
        finally:
            task.abandoned.set()
            self._dequeue(task)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the worker's thread and return its result."""

        def job(cancelled: Cancelled) -> Iterator[tuple[T]]:
            yield (function(),)

        for item in self.stream(job):
            if not isinstance(item, Status):
                return item[0]
        raise _closed_error()

    @property
    def in_demand(self) -> bool:
        """Whether a question is waiting, so that background work should pause."""
        return bool(self._waiting)

    def close(self) -> None:
        """End the running job at its next step, waiting jobs at once, then the thread."""
        with self._changed:
            self._closed = True
            waiting = [*self._waiting, *self._background]
            self._waiting.clear()
            self._background.clear()
            if self._current is not None:
                self._current.abandoned.set()
            self._changed.notify_all()
        for task in waiting:
            task.end(_closed_error())
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _enqueue(self, task: _Task) -> None:
        with self._changed:
            if self._closed:
                raise _closed_error()
            (self._background if task.background else self._waiting).append(task)
            self._report_places()
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="vqa-engine", daemon=True)
                self._thread.start()

    def _dequeue(self, task: _Task) -> bool:
        """Remove a waiting task; False if it has started or ended."""
        with self._changed:
            waiting = self._background if task.background else self._waiting
            if task not in waiting or task.steps is not None:
                return False
            waiting.remove(task)
            self._report_places()
            return True

    def _receive(self, task: _Task) -> Any:
        """Return the next item, checking the cancel event while the task is waiting."""
        while task.cancel is not None and task.steps is None:
            try:
                return task.outbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if task.cancel.is_set() and self._dequeue(task):
                    return _End()
        return task.outbox.get()

    def _report_places(self) -> None:
        """Send a status to each task whose place changed; called with the lock held."""
        ahead = 1 if self._current is not None and not self._current.background else 0
        for place, task in enumerate(self._waiting, start=ahead):
            if place != task.place:
                task.place = place
                task.outbox.put(Status("waiting", place))

    def _next(self) -> _Task | None:
        """Wait for the next task and start it; None when the worker closes."""
        with self._changed:
            self._current = None
            idle = not (self._waiting or self._background or self._closed)
        if idle:
            self._on_idle()
        with self._changed:
            while not (self._waiting or self._background or self._closed):
                self._changed.wait()
            if self._closed:
                return None
            task = (self._waiting or self._background).popleft()
            self._current = task
            if task.steps is None:
                task.steps = task.job(task.cancelled)
            self._report_places()
            return task

    def _serve(self) -> None:
        """Run tasks until the worker closes; the thread's main function."""
        with self._context():
            while (task := self._next()) is not None:
                try:
                    finished = self._advance(task)
                except BaseException as error:  # passed on to the consumer, whatever it is
                    clear_frames(error)  # whoever keeps the error would keep the job's tensors
                    task.end(error)
                    continue
                if finished:
                    task.end()
                else:
                    self._requeue(task)

    def _advance(self, task: _Task) -> bool:
        """Run a task to its end, or a background task until another one is waiting."""
        assert task.steps is not None
        first = True
        for item in task.steps:
            if item is not None:
                task.outbox.put(item)
                if first and not isinstance(item, Status):
                    first = False
                    time.sleep(HAND_OVER_SECONDS)
            elif task.background and self.in_demand and not task.cancelled():
                return False
        return True

    def _requeue(self, task: _Task) -> None:
        """Put a paused background task back to the front."""
        with self._changed:
            if not self._closed:
                self._background.appendleft(task)
                return
        task.end(_closed_error())


def _closed_error() -> ModelError:
    return ModelError("The engine was closed.", "Load the model again.")


def run_to_end(steps: Steps[T]) -> T:
    """Run all steps without a pause and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)
