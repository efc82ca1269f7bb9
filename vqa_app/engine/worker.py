"""One thread that does the model's work, a job at a time, in the order in which jobs came.

A job is a generator function. What it yields goes to whoever iterates over `Worker.stream`; None
goes to nobody and marks a place where a background job may be put aside while others are in line.
The model is touched by this thread alone, so a slow consumer holds up nobody, and whoever wants to
decode several answers at once finds every running job in one loop (`Worker._serve`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from vqa_app.engine.protocol import Status
from vqa_app.errors import ModelError

T = TypeVar("T")
Cancelled: TypeAlias = Callable[[], bool]
Job: TypeAlias = Callable[[Cancelled], "Iterator[T | None]"]
Steps: TypeAlias = Generator[None, None, T]
"""Work that pauses wherever it can be interrupted, and has a result."""

POLL_SECONDS = 0.02
"""How often who is in line looks at the cancel event."""
PACE_SECONDS = 0.01
"""How often a consumer looks for more after it was given something. Waking it for every token of a
small model would cost more than the token: it and the worker share the interpreter's lock."""

HAND_OVER_SECONDS = 1e-4
"""How long the worker leaves the interpreter's lock to the consumer with the first it is given, or
it would get it no sooner than the interpreter takes it away from the worker, 5 ms later."""


@dataclass(eq=False)
class _Task:
    job: Job[Any]
    cancel: threading.Event | None
    background: bool
    outbox: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    ended: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)
    steps: Iterator[Any] | None = None
    place: int = 0

    def cancelled(self) -> bool:
        return self.abandoned.is_set() or (self.cancel is not None and self.cancel.is_set())

    def end(self, error: BaseException | None = None) -> None:
        self.outbox.put(_Ended(error))
        self.ended.set()


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None = None


class Worker:
    """Serves jobs first come, first served; background jobs only while nobody else wants anything.

    Args:
        context: entered once on the thread, around all jobs (such as `torch.inference_mode`).
        rest: called on every thread that has nothing to do for now: the worker's own between
            jobs, a consumer's while its job runs.
    """

    def __init__(
        self,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self._context = context
        self._rest = rest
        self._changed = threading.Condition()
        self._line: deque[_Task] = deque()
        self._background: deque[_Task] = deque()
        self._current: _Task | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def stream(
        self, job: Job[T], cancel: threading.Event | None = None, *, background: bool = False
    ) -> Iterator[T | Status]:
        """Yields what the job yields, before that `Status("waiting", place)` whenever the place
        changes. Whatever is no status comes at once the first time, then in steps of
        `PACE_SECONDS` while there is more than that.

        Closing the iterator makes the job's `cancelled()` true. A job whose `cancel` is set while
        it is in line never begins: the iterator just ends.

        Raises:
            ModelError: the worker is closed.
            BaseException: whatever the job raised.
        """
        task = _Task(job, cancel, background)
        self._rest()
        self._enter(task)
        try:
            while True:
                item = self._receive(task)
                if isinstance(item, _Ended):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
                if not isinstance(item, Status) and task.outbox.empty():
                    task.ended.wait(PACE_SECONDS)
        finally:
            task.abandoned.set()
            self._leave(task)

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function on the worker's thread and gives its result."""

        def job(cancelled: Cancelled) -> Iterator[tuple[T]]:
            yield (function(),)

        for item in self.stream(job):
            if not isinstance(item, Status):
                return item[0]
        raise ModelError("The engine was closed.", "Load the model again.")

    @property
    def in_demand(self) -> bool:
        """Whether a question is in line, so that background work should give way."""
        return bool(self._line)

    def close(self) -> None:
        """Ends the running job at its next step, those in line at once, and the thread."""
        with self._changed:
            self._closed = True
            waiting = [*self._line, *self._background]
            self._line.clear()
            self._background.clear()
            if self._current is not None:
                self._current.abandoned.set()
            self._changed.notify_all()
        for task in waiting:
            task.end(ModelError("The engine was closed.", "Load the model again."))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _enter(self, task: _Task) -> None:
        with self._changed:
            if self._closed:
                raise ModelError("The engine was closed.", "Load the model again.")
            (self._background if task.background else self._line).append(task)
            self._announce()
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="vqa-engine", daemon=True)
                self._thread.start()

    def _leave(self, task: _Task) -> bool:
        """Takes a task out of the line; False when it has begun or is done."""
        with self._changed:
            line = self._background if task.background else self._line
            if task not in line or task.steps is not None:
                return False
            line.remove(task)
            self._announce()
            return True

    def _receive(self, task: _Task) -> Any:
        """The next thing in a task's outbox, watching its cancel event while it is in line."""
        while task.cancel is not None and task.steps is None:
            try:
                return task.outbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if task.cancel.is_set() and self._leave(task):
                    return _Ended()
        return task.outbox.get()

    def _announce(self) -> None:
        """Tells everybody in line whose place has changed; called with the lock held."""
        ahead = 1 if self._current is not None and not self._current.background else 0
        for place, task in enumerate(self._line, start=ahead):
            if place != task.place:
                task.place = place
                task.outbox.put(Status("waiting", place))

    def _next(self) -> _Task | None:
        """Waits for the next task, None when the worker closes."""
        with self._changed:
            self._current = None
            idle = not (self._line or self._background or self._closed)
        if idle:
            self._rest()
        with self._changed:
            while not (self._line or self._background or self._closed):
                self._changed.wait()
            if self._closed:
                return None
            task = (self._line or self._background).popleft()
            self._current = task
            if task.steps is None:
                task.steps = task.job(task.cancelled)
            self._announce()
            return task

    def _serve(self) -> None:
        with self._context():
            while (task := self._next()) is not None:
                try:
                    finished = self._advance(task)
                except BaseException as error:  # whatever it was, it belongs to the consumer
                    task.end(error)
                    continue
                if finished:
                    task.end()
                else:
                    self._put_aside(task)

    def _advance(self, task: _Task) -> bool:
        """Runs a task to its end, or a background task until somebody is in line."""
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

    def _put_aside(self, task: _Task) -> None:
        with self._changed:
            if not self._closed:
                self._background.appendleft(task)
                return
        task.end(ModelError("The engine was closed.", "Load the model again."))


def finish(steps: Steps[T]) -> T:
    """Does all of it without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
