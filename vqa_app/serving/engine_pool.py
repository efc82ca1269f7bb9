"""A pool of engines: models load in the background, are shared by everyone, and evicted when idle.

Which model answers is each person's setting. A model that fails to load affects no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

from vqa_app.devices import clear_frames, is_out_of_memory, reclaim_memory, release_memory
from vqa_app.engine.protocol import Engine
from vqa_app.errors import InsufficientMemoryError, ModelError, UsageError, VqaError
from vqa_app.serving.redact import redact_paths
from vqa_app.serving.remotes import Remote

log = logging.getLogger(__name__)

MAX_NAMED_MODELS = 20
"""How many models that people added by their hub id stay in the list: the most recent ones."""
STATUS_SECONDS = 0.2
"""Seconds between two status reports while a model loads."""

Phase: TypeAlias = Literal["absent", "loading", "ready", "failed"]


@dataclass(frozen=True)
class ModelChoice:
    """A model that a person can choose."""

    key: str
    """Identifies the model in requests of the page; does not reveal where it is stored."""
    label: str
    detail: str
    """Size or origin, in a few words."""
    group: str
    """Heading under which the model is listed."""
    source: str
    """Name or path, as `vqa_app.checkpoints.loader.load_model` takes it, or a server's address."""
    adapter: str | None = None
    quantize: str | None = None
    revision: str | None = None
    remote: Remote | None = None
    """The server that answers; None for a model that is loaded here."""
    here: bool = True
    """Whether the weights are on this machine."""
    download: bool = False
    """Whether missing files of a hub model may be fetched, because a person has confirmed it."""


class LoadProgress(Protocol):
    """Callback that reports the progress of a load, and raises `LoadingCancelled` to end it."""

    def __call__(self, message: str, share: float | None = None) -> None:
        """Report progress.

        Args:
            message: What is being done.
            share: Fraction of the download that is complete, 0 to 1; None if unknown.
        """


class LoadingCancelled(Exception):
    """Raised inside a load that was cancelled."""


def _is_shutting_down() -> bool:
    """Return whether the interpreter ends: transformers' threads cannot be started any more."""
    with ThreadPoolExecutor(1) as executor:
        try:
            executor.submit(bool)
        except RuntimeError:
            return True
    return False


@dataclass
class _Slot:
    """A model of the pool with the state of its loading."""

    choice: ModelChoice
    requester: str = ""
    phase: Phase = "absent"
    message: str = ""
    share: float | None = None
    engine: Engine | None = None
    used: float = 0.0
    """Time of last use, in seconds since the epoch."""
    leases: int = 0
    cancel: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    """Set once loading has succeeded, failed or been cancelled."""


@dataclass(frozen=True)
class ModelStatus:
    """Loading state of a model, as shown on the page."""

    choice: ModelChoice
    phase: Phase
    message: str
    share: float | None
    """Fraction of the download that is complete, 0 to 1; None if unknown."""


class EnginePool:
    """Loads engines on demand and keeps the most recently used ones.

    Args:
        load: Creates the engine of a choice; runs in a thread of its own.
        choices: Returns the available models. Called each time, because runs appear while the
            server is running.
        default: Key of the model that the server was started with.
        keep: How many idle engines stay loaded in addition to the default, memory permitting.
    """

    def __init__(
        self,
        load: Callable[[ModelChoice, LoadProgress], Engine],
        choices: Callable[[], Iterable[ModelChoice]],
        default: str,
        keep: int = 2,
    ) -> None:
        self._load, self._choices, self._keep = load, choices, keep
        self.default = default
        self._slots: dict[str, _Slot] = {}
        self._named: dict[str, ModelChoice] = {}
        self._lock = threading.RLock()
        self._closed = False
        self._last_used = time.monotonic()

    def choices(self) -> list[ModelChoice]:
        """Return all available models, those that people added last."""
        with self._lock:
            named = list(self._named.values())
        return [*self._choices(), *named]

    def add_choice(self, choice: ModelChoice) -> None:
        """Add a model to the list.

        The oldest added models beyond `MAX_NAMED_MODELS` are dropped, unless they are loaded.
        """
        if choice.key in {known.key for known in self._choices()}:
            return
        with self._lock:
            self._named.pop(choice.key, None)  # move to the end
            self._named[choice.key] = choice
            for key in list(self._named)[:-MAX_NAMED_MODELS]:
                slot = self._slots.get(key)
                if slot is None or slot.phase in ("absent", "failed"):
                    self._slots.pop(key, None)
                    del self._named[key]

    def find(self, key: str | None) -> ModelChoice:
        """Return the choice with this key, or the default for None.

        Raises:
            ModelError: There is no such choice.
        """
        key = key or self.default
        for choice in self.choices():
            if choice.key == key:
                return choice
        raise ModelError("This model is not available here.", "Choose one from the list.")

    def start_loading(
        self, key: str | None = None, requester: str = "", *, download: bool = False
    ) -> None:
        """Start to load a model, unless it is already loaded or loading.

        Args:
            key: Key of the model; None for the default.
            requester: Owner who asked for the model; "" for the server itself.
            download: See `ModelChoice`.

        Raises:
            ModelError: There is no such choice.
        """
        choice = self.find(key)
        with self._lock:
            slot = self._slots.get(choice.key)
            if self._closed or (slot and slot.phase in ("loading", "ready")):
                return
            slot = self._slots[choice.key] = _Slot(
                replace(choice, download=download),
                requester,
                "loading",
                "Loading …",
                used=time.time(),
            )
        threading.Thread(
            target=self._run, args=(slot,), name=f"load-{choice.key}", daemon=True
        ).start()

    def load_with_status(
        self,
        key: str | None = None,
        requester: str = "",
        cancel: threading.Event | None = None,
        *,
        download: bool = False,
    ) -> Iterator[ModelStatus]:
        """Start to load a model; return an iterator over its status until it is loaded.

        The iterator yields every `STATUS_SECONDS`. Setting `cancel` ends it, but
        the model continues to load for others.

        Args:
            key: Key of the model; None for the default.
            requester: Owner who asked for the model; "" for the server itself.
            cancel: Event that ends the wait.
            download: See `ModelChoice`.

        Raises:
            ModelError: There is no such choice; from the iterator: the model could not be loaded.
        """
        self.start_loading(key, requester, download=download)
        return self._statuses(key, cancel)

    def _statuses(self, key: str | None, cancel: threading.Event | None) -> Iterator[ModelStatus]:
        while not (cancel and cancel.is_set()) and self.wait(key, 0) is None:
            yield self.status(key)
            self.wait(key, STATUS_SECONDS)

    def cancel_loading(self, key: str, requester: str = "") -> None:
        """Cancel a load; it ends at its next progress report.

        Raises:
            UsageError: Someone else started it and may be waiting for it.
        """
        with self._lock:
            slot = self._slots.get(key)
            if slot is None or slot.phase != "loading":
                return
            if slot.requester != requester:
                raise UsageError(
                    "Someone else is loading this model.", "It will finish loading for them."
                )
            slot.cancel.set()

    def status(self, key: str | None = None) -> ModelStatus:
        """Return the loading state of a model.

        Raises:
            ModelError: There is no such choice.
        """
        choice = self.find(key)
        with self._lock:
            slot = self._slots.get(choice.key) or _Slot(choice)
            return ModelStatus(choice, slot.phase, slot.message, slot.share)

    def get_loaded(self, key: str | None = None) -> Engine | None:
        """Return the engine of a model, or None if it is not loaded."""
        with self._lock:
            slot = self._slots.get(key or self.default)
            if slot is None or slot.engine is None:
                return None
            slot.used = time.time()
            return slot.engine

    def has_loaded_model(self) -> bool:
        """Return whether any model is loaded."""
        with self._lock:
            return any(slot.engine for slot in self._slots.values())

    def wait(self, key: str | None = None, timeout: float | None = None) -> Engine | None:
        """Wait until a model is loaded, and return its engine.

        A model that was evicted in the meantime is loaded again.

        Args:
            key: Key of the model; None for the default.
            timeout: Seconds to wait; None for no limit.

        Returns:
            The engine, or None if it is not loaded after `timeout` seconds.

        Raises:
            ModelError: The model could not be loaded, or loading was cancelled.
        """
        if engine := self.get_loaded(key):
            return engine
        with self._lock:
            if (key or self.default) not in self._slots:
                self.start_loading(key)
            slot = self._slots.get(key or self.default)
        if slot is None:
            raise ModelError("The server is shutting down.", "Start it again.")
        if not slot.finished.wait(timeout):
            return None
        if slot.phase != "ready":
            raise ModelError(slot.message, "Choose another model, or try this one again.")
        return slot.engine

    @contextmanager
    def lease(self, key: str | None = None, timeout: float | None = None) -> Iterator[Engine]:
        """Wait for an engine as `wait` does, and protect it from eviction while it is in use.

        Raises:
            ModelError: The model could not be loaded, or not within `timeout` seconds.
        """
        slot, engine = self._acquire_lease(key, timeout)
        try:
            yield engine
        finally:
            with self._lock:
                slot.leases -= 1
                slot.used, self._last_used = time.time(), time.monotonic()

    def _acquire_lease(self, key: str | None, timeout: float | None) -> tuple[_Slot, Engine]:
        while self.wait(key, timeout) is not None:
            with self._lock:  # the model may have been evicted after `wait` returned
                slot = self._slots.get(key or self.default)
                if slot is not None and slot.engine is not None:
                    slot.leases += 1
                    return slot, slot.engine
        raise ModelError("The model is still loading.", "Try again in a moment.")

    def release(self, key: str) -> None:
        """Release a model whose files are about to be deleted.

        Raises:
            UsageError: Someone is using or loading it.
        """
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                return
            if slot.phase == "loading":
                raise UsageError("The model is still loading.", "Try again in a moment.")
            if slot.leases:
                raise UsageError(
                    "Someone is using this model right now.", "Try again when the answer is there."
                )
            del self._slots[key]
        if slot.engine is not None:
            slot.engine.close()

    def idle_seconds(self) -> float:
        """Return how long no model has been used or loaded; 0 while one is."""
        with self._lock:
            if any(slot.leases or slot.phase == "loading" for slot in self._slots.values()):
                return 0.0
            return time.monotonic() - self._last_used

    def release_idle(self) -> bool:
        """Release all idle models, the default one too, and return whether there were any.

        They are loaded again when someone needs them.
        """
        released = self._evict(0)
        if released:
            release_memory()  # a model is a cycle, and an idle process collects no garbage
        return released

    def close(self, patience: float = 10.0) -> None:
        """Stop running answers and release all models.

        Args:
            patience: Seconds to wait for the engines; one in the middle of a long step is left to
                finish in its own thread.
        """
        with self._lock:
            self._closed = True
            slots = list(self._slots.values())
        threads = []
        for slot in slots:
            slot.cancel.set()
            if slot.engine is not None:
                threads.append(threading.Thread(target=slot.engine.close, daemon=True))
                threads[-1].start()
        end = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self, slot: _Slot) -> None:
        def progress(message: str, share: float | None = None) -> None:
            if slot.cancel.is_set():
                raise LoadingCancelled
            slot.message, slot.share = message, share

        try:
            progress("Loading …")
            engine = self._load_engine(slot.choice, progress)
        except Exception as error:
            if isinstance(error, LoadingCancelled) or self._closed or _is_shutting_down():
                self._finish(slot, "absent", f"Loading {slot.choice.label} was cancelled.")
            elif isinstance(error, VqaError):
                self._finish(slot, "failed", redact_paths(str(error).replace("\n", " ")))
            else:
                log.exception("Loading %s failed", slot.choice.label)
                reason = ": out of memory" if is_out_of_memory(error) else ""
                self._finish(slot, "failed", f"{slot.choice.label} could not be loaded{reason}.")
        else:
            with self._lock:
                self._finish(slot, "ready", "", engine)
                closed = self._closed
            if closed:
                engine.close()
            self._evict(self._keep, self.default)

    def _load_engine(self, choice: ModelChoice, progress: LoadProgress) -> Engine:
        """Load a model; if memory is insufficient, free what can be freed and try once more.

        Idle models are released, and engines in use lose their caches, which they can fill again.
        """
        try:
            return self._load(choice, progress)
        except Exception as error:
            if not (isinstance(error, InsufficientMemoryError) or is_out_of_memory(error)):
                raise
            clear_frames(error)  # they hold what the first attempt had allocated
            released = self.release_idle()
            if not (reclaim_memory() or released):
                raise
        progress("Freeing memory …")
        return self._load(choice, progress)

    def _finish(
        self, slot: _Slot, phase: Phase, message: str, engine: Engine | None = None
    ) -> None:
        """Record how a load ended and wake those who wait for it."""
        with self._lock:
            slot.engine, slot.used = engine, time.time()  # loading may have taken minutes
            self._last_used = time.monotonic()
            slot.phase, slot.message, slot.share = phase, message, None
        slot.finished.set()

    def _evict(self, keep: int, protected: str | None = None) -> bool:
        """Release idle models and return whether there were any.

        Args:
            keep: How many of the most recently used idle models stay loaded.
            protected: Key of a model that stays loaded in any case.
        """
        with self._lock:
            idle = sorted(
                (
                    slot
                    for key, slot in self._slots.items()
                    if slot.engine and key != protected and not slot.leases
                ),
                key=lambda slot: slot.used,
            )
            evicted = idle[: max(0, len(idle) - keep)]
            for slot in evicted:
                self._slots.pop(slot.choice.key)
        for slot in evicted:
            if slot.engine is not None:
                slot.engine.close()
        return bool(evicted)
