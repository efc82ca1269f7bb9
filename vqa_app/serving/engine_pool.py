"""The models that may answer: loaded in the background, a few kept, failures harm no other.

Which one answers is each person's choice (a setting); what is loaded is shared by all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from vqa_app.devices import is_out_of_memory
from vqa_app.engine.protocol import Engine
from vqa_app.errors import InsufficientMemoryError, ModelError, UsageError, VqaError
from vqa_app.serving.redact import redact_paths

log = logging.getLogger(__name__)

MAX_NAMED_MODELS = 20
"""So many of the models that people named stand in the list: the latest."""

Phase: TypeAlias = Literal["absent", "loading", "ready", "failed"]


@dataclass(frozen=True)
class ModelChoice:
    """A model that can be picked."""

    key: str
    """What the page sends back; says nothing of where the model lies."""
    label: str
    detail: str
    """Size, or where it comes from: a few words."""
    group: str
    source: str
    """What `vqa_app.checkpoints.loader.load_model` takes."""
    adapter: str | None = None
    quantize: str | None = None
    revision: str | None = None
    here: bool = True
    """Whether its weights lie on this machine."""


class LoadProgress(Protocol):
    """Tells how far a download is (0 to 1, None where unknown); raises when it is to stop."""

    def __call__(self, message: str, share: float | None = None) -> None: ...


class LoadingCancelled(Exception):
    """Raised inside a load that somebody cancelled."""


@dataclass
class _Slot:
    choice: ModelChoice
    requester: str = ""
    phase: Phase = "absent"
    message: str = ""
    share: float | None = None
    engine: Engine | None = None
    used: float = 0.0
    leases: int = 0
    cancel: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class ModelStatus:
    """How a model stands, for the page."""

    choice: ModelChoice
    phase: Phase
    message: str
    share: float | None


class EnginePool:
    """Loads engines when they are asked for and keeps the latest few.

    Args:
        load: makes an engine of a choice; runs in a thread of its own.
        choices: gives what can be picked, anew at each call (runs appear while the server runs).
        default: the key of the model that the server was started with.
        keep: how many engines stay loaded besides the default, where the memory is enough.
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

    def choices(self) -> list[ModelChoice]:
        with self._lock:
            named = list(self._named.values())
        return [*self._choices(), *named]

    def add_choice(self, choice: ModelChoice) -> None:
        """Add a choice, until `MAX_NAMED_MODELS` others came after it; a loaded one stays."""
        if choice.key in {known.key for known in self._choices()}:
            return
        with self._lock:
            self._named.pop(choice.key, None)  # the latest stands last
            self._named[choice.key] = choice
            for key in list(self._named)[:-MAX_NAMED_MODELS]:
                slot = self._slots.get(key)
                if slot is None or slot.phase in ("absent", "failed"):
                    self._slots.pop(key, None)
                    del self._named[key]

    def find(self, key: str | None) -> ModelChoice:
        """The choice of a key, the default for None.

        Raises:
            ModelError: no such choice.
        """
        wanted = key or self.default
        for choice in self.choices():
            if choice.key == wanted:
                return choice
        raise ModelError("This model is not offered here.", "Pick one from the list.")

    def start_loading(self, key: str | None = None, requester: str = "") -> None:
        """Begins to load a model, unless it is loaded or loading.

        Args:
            requester: the owner who asked for it, "" for the server itself.

        Raises:
            ModelError: no such choice.
        """
        choice = self.find(key)
        with self._lock:
            slot = self._slots.get(choice.key)
            if self._closed or (slot and slot.phase in ("loading", "ready")):
                return
            slot = self._slots[choice.key] = _Slot(
                choice, requester, "loading", "Loading …", used=time.time()
            )
        threading.Thread(
            target=self._run, args=(slot,), name=f"load-{choice.key}", daemon=True
        ).start()

    def cancel_loading(self, key: str, requester: str = "") -> None:
        """Ends a load at its next progress report.

        Raises:
            UsageError: somebody else started it, and may be waiting for it.
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
        choice = self.find(key)
        with self._lock:
            slot = self._slots.get(choice.key) or _Slot(choice)
            return ModelStatus(choice, slot.phase, slot.message, slot.share)

    def get_loaded(self, key: str | None = None) -> Engine | None:
        """The engine if it is loaded."""
        with self._lock:
            slot = self._slots.get(key or self.default)
            if slot is None or slot.engine is None:
                return None
            slot.used = time.time()
            return slot.engine

    def has_loaded_model(self) -> bool:
        """Whether any model is loaded."""
        with self._lock:
            return any(slot.engine for slot in self._slots.values())

    def wait(self, key: str | None = None, timeout: float | None = None) -> Engine | None:
        """The engine whose loading was started; None if `timeout` seconds pass before it is there.

        One that had to make room for others meanwhile is loaded again.

        Raises:
            ModelError: it could not be loaded, or somebody cancelled that.
        """
        if engine := self.get_loaded(key):
            return engine
        with self._lock:
            if (key or self.default) not in self._slots:
                self.start_loading(key)
            slot = self._slots.get(key or self.default)
        if slot is None:
            raise ModelError("The server is stopping.", "Start it again.")
        if not slot.finished.wait(timeout):
            return None
        if slot.phase != "ready":
            raise ModelError(slot.message, "Pick another model, or try this one again.")
        return slot.engine

    @contextmanager
    def lease(self, key: str | None = None, timeout: float | None = None) -> Iterator[Engine]:
        """The engine as `wait` gives it, kept from being let go while it works.

        Raises:
            ModelError: as `wait`; or it is not there after `timeout` seconds.
        """
        slot, engine = self._leased(key, timeout)
        try:
            yield engine
        finally:
            with self._lock:
                slot.leases -= 1

    def _leased(self, key: str | None, timeout: float | None) -> tuple[_Slot, Engine]:
        while self.wait(key, timeout) is not None:
            with self._lock:  # it may have made room since
                slot = self._slots.get(key or self.default)
                if slot is not None and slot.engine is not None:
                    slot.leases += 1
                    return slot, slot.engine
        raise ModelError("The model is still loading.", "Try again in a moment.")

    def close(self, patience: float = 10.0) -> None:
        """Ends running answers and lets go of all models; an engine in the middle of a long step
        may need longer than `patience` seconds and is left to it.
        """
        with self._lock:
            self._closed = True
            slots = list(self._slots.values())
        closing = []
        for slot in slots:
            slot.cancel.set()
            if slot.engine is not None:
                closing.append(threading.Thread(target=slot.engine.close, daemon=True))
                closing[-1].start()
        end = time.monotonic() + patience
        for thread in closing:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self, slot: _Slot) -> None:
        def progress(message: str, share: float | None = None) -> None:
            if slot.cancel.is_set():
                raise LoadingCancelled
            slot.message, slot.share = message, share

        try:
            progress("Loading …")
            engine = self._loaded(slot.choice, progress)
        except LoadingCancelled:
            self._settle(slot, "absent", f"Loading {slot.choice.label} was cancelled.")
        except VqaError as error:
            self._settle(slot, "failed", redact_paths(str(error).replace("\n", " ")))
        except Exception as error:
            log.exception("Loading %s failed", slot.choice.label)
            why = ": the memory is full" if is_out_of_memory(error) else ""
            self._settle(slot, "failed", f"{slot.choice.label} could not be loaded{why}.")
        else:
            with self._lock:
                self._settle(slot, "ready", "", engine)
                closed = self._closed
            if closed:
                engine.close()
            self._evict(self._keep, self.default)

    def _loaded(self, choice: ModelChoice, progress: LoadProgress) -> Engine:
        """Loads; where the memory refuses it, once more without the models that nobody uses just
        now. The default is one of them: it comes back when somebody asks it.
        """
        try:
            return self._load(choice, progress)
        except Exception as error:
            full = isinstance(error, InsufficientMemoryError) or is_out_of_memory(error)
            if not (full and self._evict(0)):
                raise
        progress("Making room …")  # what the first try held has gone with its error
        return self._load(choice, progress)

    def _settle(
        self, slot: _Slot, phase: Phase, message: str, engine: Engine | None = None
    ) -> None:
        with self._lock:
            slot.engine, slot.used = engine, time.time()  # loading may have taken minutes
            slot.phase, slot.message, slot.share = phase, message, None
        slot.finished.set()

    def _evict(self, keep: int, spared: str | None = None) -> bool:
        """Lets go of the models that nobody uses just now, but for `spared` and the `keep` that
        were used last; whether there was any.
        """
        with self._lock:
            idle = sorted(
                (
                    slot
                    for key, slot in self._slots.items()
                    if slot.engine and key != spared and not slot.leases
                ),
                key=lambda slot: slot.used,
            )
            gone = idle[: max(0, len(idle) - keep)]
            for slot in gone:
                self._slots.pop(slot.choice.key)
        for slot in gone:
            if slot.engine is not None:
                slot.engine.close()
        return bool(gone)
