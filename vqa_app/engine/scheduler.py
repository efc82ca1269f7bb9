"""One thread that runs the model: several jobs at once, in rounds between two tokens.

A job is a generator function. What it yields says what happens next:

- an item for its consumer, who iterates over `Scheduler.stream`;
- None after a piece of work, such as a chunk of a prompt, so that others can go on;
- a `Pause` after a whole prompt if more are to be read, so that jobs which read take turns;
- an `EncodeStep` or a `DecodeStep`, which is run together with those of other jobs; the job
  receives the result;
- a `Reservation` of memory, after which the job waits until there is enough.

In each round every job that decodes gets one token, and one of these is done: a job begins, a few
pictures are encoded, or one job reads a chunk of its prompt. So nobody's stream stops for longer
than a chunk, however many questions arrive. Only this thread uses the model, and it never waits for
a consumer, so a slow one delays nobody.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

from vqa_app.devices import clear_frames
from vqa_app.engine.protocol import Status
from vqa_app.errors import ModelError

T = TypeVar("T")
Cancelled: TypeAlias = Callable[[], bool]
"""Returns whether a job should end."""
Job: TypeAlias = Callable[
    [Cancelled], "Iterator[T | EncodeStep | DecodeStep | Reservation | Pause | None]"
]
Steps: TypeAlias = Generator["EncodeStep | Pause | None", Any, T]
"""Work that yields wherever it can be interrupted or done together with others, and returns a
result."""

POLL_SECONDS = 0.02
"""Interval at which a waiting consumer checks its cancel event."""
PACE_SECONDS = 0.01
"""Interval at which a consumer looks for more items. Waking it for every token of a small model
would cost more than the token, because it and the scheduler share the interpreter's lock."""
HAND_OVER_SECONDS = 1e-4
"""Pause of the scheduler after a job's first item, so that the consumer gets the interpreter's lock
at once instead of after the interpreter's switch interval of 5 ms."""


@dataclass(frozen=True, eq=False)
class EncodeStep:
    """Model inputs with a picture to encode; the job that yields it receives the features."""

    encoder: Any
    """A `vqa_app.engine.vision.ImageEncoder`."""
    inputs: Mapping[str, Any]
    key: str
    """Equal for equal pictures, which are encoded once."""


@dataclass(frozen=True)
class DecodeStep:
    """A token to append to a sequence; the job that yields it receives the next token's logits."""

    sequence: Any
    """A `vqa_app.engine.runtime.Generation`."""
    token: int
    sampled: Any = None
    """The token as a tensor [] on the model's device, so that it need not be copied there."""


@dataclass(frozen=True)
class Reservation:
    """Memory that a job needs from now on, until it ends."""

    nbytes: int


@dataclass(frozen=True)
class Pause:
    """The end of a prompt, after which other jobs that read come first."""


_REQUESTS = (EncodeStep, DecodeStep, Reservation, Pause)
"""What a job yields for the scheduler and not for its consumer, besides None."""


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
    place: int | None = None
    """Number of jobs before it in the queue, as its consumer was told."""
    request: EncodeStep | DecodeStep | Reservation | None = None
    """What the job is waiting for."""
    reads: bool = False
    """Whether it has begun to read its prompt."""
    turn: int = 0
    """Those that read go on in this order."""
    reserved: int = 0
    """Memory granted to it, in bytes."""
    delivered: bool = False
    """Whether its consumer got an item other than a `Status`."""

    def cancelled(self) -> bool:
        return self.abandoned.is_set() or (self.cancel is not None and self.cancel.is_set())

    def end(self, error: BaseException | None = None) -> None:
        self.outbox.put(_End(error))
        self.ended.set()


@dataclass(frozen=True)
class _End:
    """The last item of an outbox."""

    error: BaseException | None = None


def _run_no_steps(steps: Sequence[DecodeStep]) -> Sequence[Any]:
    raise NotImplementedError("This scheduler was created without `decode`.")


def _run_one_encode_step(steps: Sequence[EncodeStep]) -> Mapping[str, Any]:
    return {steps[0].key: steps[0].encoder.run(steps[0].inputs)}


class Scheduler:
    """Run jobs in the order of their arrival; background jobs only while there are no others.

    Args:
        decode: Runs the `DecodeStep`s of several jobs and returns a result for each; a result that
            is an exception is raised in its job and ends no other one.
        encode: Runs as many of the `EncodeStep`s of several jobs as is good at once, at least the
            first, and returns results or exceptions by their keys.
        concurrency: Largest number of jobs at once.
        memory: What all reservations together may take, in bytes. A single job gets what it asks
            for, whatever that is.
        context: Entered once on the thread, around all jobs (such as `torch.inference_mode`).
        on_idle: Called on every thread that becomes idle: the scheduler's own between jobs, a
            consumer's while its job runs.
    """

    def __init__(
        self,
        *,
        decode: Callable[[Sequence[DecodeStep]], Sequence[Any]] = _run_no_steps,
        encode: Callable[[Sequence[EncodeStep]], Mapping[str, Any]] = _run_one_encode_step,
        concurrency: int = 1,
        memory: Callable[[], int] = lambda: 0,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._decode, self._encode = decode, encode
        self._concurrency, self._memory = concurrency, memory
        self._context = context
        self._on_idle = on_idle
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._background: deque[_Task] = deque()
        self._active: list[_Task] = []
        """Jobs that have started, in the order of their arrival."""
        self._turns = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def stream(
        self, job: Job[T], cancel: threading.Event | None = None, *, background: bool = False
    ) -> Iterator[T | Status]:
        """Run a job and yield its items.

        Closing the iterator makes the job's `cancelled()` true. If `cancel` is set before the job
        starts, it never does and the iterator just ends.

        Args:
            job: Called on the scheduler's thread with a function that returns whether to end.
            cancel: Makes the job's `cancelled()` true.
            background: Run it only while there are no other jobs.

        Yields:
            `Status("waiting", place)` whenever the place in the queue changes, then the job's
            items: the first at once, later ones at most every `PACE_SECONDS` if that is slower
            than they come.

        Raises:
            ModelError: The scheduler is closed.
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

    def run(self, steps: Callable[[], Steps[T]], cancel: threading.Event | None = None) -> T:
        """Run steps on the scheduler's thread, between those of others; return their result.

        Raises:
            CancelledError: `cancel` was set, and the steps ended at the next one.
            ModelError: The scheduler is closed.
        """

        def job(cancelled: Cancelled) -> Generator[tuple[T] | EncodeStep | Pause | None, Any, None]:
            result = yield from _until_cancelled(steps(), cancelled)
            yield (result,)

        try:
            for item in self.stream(job, cancel):
                if isinstance(item, tuple):
                    return item[0]
        except CancelledError:
            if cancel is None or not cancel.is_set():
                raise _closed_error() from None
            raise
        raise CancelledError

    @property
    def in_demand(self) -> bool:
        """Whether there are jobs for which background jobs wait."""
        return self.count > 0

    @property
    def count(self) -> int:
        """Number of jobs that run or wait, background jobs not included."""
        return len(self._waiting) + len(self._active)

    @property
    def reserved(self) -> int:
        """Memory that running jobs have reserved, in bytes."""
        return sum(task.reserved for task in self._active)

    def close(self) -> None:
        """End running jobs at their next step, waiting ones at once, then the thread."""
        with self._changed:
            self._closed = True
            waiting = [*self._waiting, *self._background]
            self._waiting.clear()
            self._background.clear()
            for task in self._active:
                task.abandoned.set()
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
        free = self._concurrency - len(self._active)
        queued = [task for task in self._active if isinstance(task.request, Reservation)]
        queued += list(self._waiting)[max(0, free) :]
        for place, task in enumerate(queued):
            if place != task.place:
                task.place = place
                task.outbox.put(Status("waiting", place))

    def _serve(self) -> None:
        """Run rounds until the scheduler closes; the thread's main function."""
        with self._context():
            while self._wait_for_work():
                try:
                    self._run_round()
                except Exception as error:  # such as of a GPU that has gone: no job caused it
                    clear_frames(error)
                    for task in list(self._active):
                        self._end(task, error)

    def _wait_for_work(self) -> bool:
        """Start as many jobs as may run at once; False when the scheduler closes."""
        with self._changed:
            idle = not (self._active or self._waiting or self._background or self._closed)
        if idle:
            self._on_idle()
        with self._changed:
            while not (self._active or self._waiting or self._background or self._closed):
                self._changed.wait()
            while self._waiting and len(self._active) < self._concurrency:
                self._start(self._waiting.popleft())
            self._report_places()
            return bool(self._active or self._background)

    def _start(self, task: _Task) -> None:
        task.steps = task.job(task.cancelled)
        task.turn = next(self._turns)
        self._active.append(task)

    def _run_round(self) -> None:
        """Give each decoding job a token, and let others begin, encode or read."""
        decoding = [task for task in self._active if isinstance(task.request, DecodeStep)]
        if decoding:
            results = self._decode([cast(DecodeStep, task.request) for task in decoding])
            for task, result in zip(decoding, results, strict=True):
                self._advance(task, result)
        idle = [task for task in self._active if task.request is None]
        encoding = [task for task in self._active if isinstance(task.request, EncodeStep)]
        if beginning := [task for task in idle if not task.reads]:
            self._advance(beginning[0])
        elif encoding:
            self._encode_pictures(encoding)
        elif idle:
            self._advance(min(idle, key=lambda task: task.turn))
        else:
            self._run_background(busy=bool(self._active))
        self._grant_reservations()

    def _encode_pictures(self, tasks: Sequence[_Task]) -> None:
        """Encode some of the pictures that tasks wait for, and give them the features."""
        steps = [cast(EncodeStep, task.request) for task in tasks]
        try:
            found = self._encode(steps)
        except Exception as error:
            found = {steps[0].key: error}
        for task, step in zip(tasks, steps, strict=True):
            if step.key in found:
                self._advance(task, found[step.key])

    def _grant_reservations(self) -> None:
        """Let jobs go on that wait for memory, in their order, as far as there is enough."""
        blocked = False
        for task in list(self._active):
            if not isinstance(task.request, Reservation):
                continue
            reserved = self.reserved
            fits = reserved == 0 or reserved + task.request.nbytes <= self._memory()
            if (blocked or not fits) and not task.cancelled():  # who is cancelled ends at once
                blocked = True
                continue
            task.reserved, task.request = task.request.nbytes, None

    def _run_background(self, busy: bool) -> None:
        """Let the first background job take a step unless it has to give way."""
        with self._changed:
            candidates = [
                task for task in self._background if task.cancelled() or not (busy or self._waiting)
            ]
            if not candidates or self._closed:
                return
            task = candidates[0]
            if task.steps is None:
                task.steps = task.job(task.cancelled)
        if isinstance(task.request, EncodeStep):
            self._encode_pictures([task])
        else:
            self._advance(task)

    def _advance(self, task: _Task, received: Any = None) -> None:
        """Run a job until it waits for something or has done a piece of work."""
        steps: Any = task.steps
        task.request = None  # whoever gets an error must find the sequence's memory free
        try:
            if received is None:
                item = next(steps)
            elif isinstance(received, BaseException):
                item = steps.throw(received)
            else:
                item = steps.send(received)
            while not (item is None or isinstance(item, _REQUESTS)):
                self._deliver(task, item)
                item = next(steps)
        except StopIteration:
            self._end(task)
        except BaseException as error:  # passed on to the consumer, whatever it is
            clear_frames(error)  # whoever keeps the error would keep the job's tensors
            self._end(task, error)
        else:
            if isinstance(item, Pause):
                item, task.turn = None, next(self._turns)
            task.request = item
            task.reads |= item is None

    def _deliver(self, task: _Task, item: Any) -> None:
        task.outbox.put(item)
        if not task.delivered and not isinstance(item, Status):
            task.delivered = True
            time.sleep(HAND_OVER_SECONDS)

    def _end(self, task: _Task, error: BaseException | None = None) -> None:
        with self._changed:
            if task in self._active:
                self._active.remove(task)
            elif task in self._background:  # `close` has ended it otherwise
                self._background.remove(task)
        task.end(error)


def _closed_error() -> ModelError:
    return ModelError("The engine was closed.", "Load the model again.")


def run_to_end(steps: Steps[T]) -> T:
    """Run all steps without a pause and return their result."""
    received: Any = None
    while True:
        try:
            item = steps.send(received)
        except StopIteration as end:
            return cast(T, end.value)
        received = item.encoder.run(item.inputs) if isinstance(item, EncodeStep) else None


def _until_cancelled(steps: Steps[T], cancelled: Cancelled) -> Steps[T]:
    """Run steps as `yield from` does, but raise CancelledError after the one that was cancelled."""
    received: Any = None
    error: Exception | None = None
    try:
        while not cancelled():
            try:
                item = steps.send(received) if error is None else steps.throw(error)
            except StopIteration as end:
                return cast(T, end.value)
            received = error = None
            try:
                received = yield item
            except Exception as raised:
                error = raised
        raise CancelledError
    finally:
        steps.close()
