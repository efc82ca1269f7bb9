"""The models as one owner sees them: everybody's, their own runs, and runs that others share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ui.storage.database import Possession, Store
from vqa_app.engine.protocol import Engine
from vqa_app.errors import ModelError
from vqa_app.serving.engine_pool import EnginePool, ModelChoice, ModelStatus


def run_of(choice: ModelChoice, runs: Path | None) -> str | None:
    """Return the name of the run whose model this is; None for a model of everybody."""
    path = Path(choice.source)
    return path.name if runs is not None and path.parent == runs else None


class OwnerModels:
    """The engine pool for one owner. Another owner's model does not exist in it.

    Args:
        owner: Whose view it is.
        pool: The models of all owners.
        store: Says whose each run is.
        runs: Folder of the runs; None if there are none.
    """

    def __init__(self, owner: str, pool: EnginePool, store: Store, runs: Path | None) -> None:
        self._owner, self._pool, self._store, self._runs = owner, pool, store, runs

    def choices(self) -> list[ModelChoice]:
        """Return the models that the owner may use, named as their owners named them."""
        known = {run.name: run for run in self._store.possessions("run")}
        found = []
        for choice in self._pool.choices():
            name = run_of(choice, self._runs)
            run = known.get(name) if name is not None else None
            if run is None or choice.key == self._pool.default:
                found.append(choice)
            elif run.shared or run.owner == self._owner:
                found.append(replace(choice, label=run.label))
        return found

    def run(self, choice: ModelChoice) -> Possession | None:
        """Return the run of a model; None if it has no owner."""
        name = run_of(choice, self._runs)
        return self._store.possession("run", name) if name is not None else None

    def find(self, key: str | None) -> ModelChoice:
        """Return the choice with this key, or the default for None.

        Raises:
            ModelError: There is no such choice; or it is another owner's, with the same message.
        """
        key = key or self._pool.default
        for choice in self.choices():
            if choice.key == key:
                return choice
        raise ModelError("This model is not available here.", "Choose one from the list.")

    def status(self, key: str | None = None) -> ModelStatus:
        """Return the loading state of a model; raises as `find` does."""
        choice = self.find(key)
        return replace(self._pool.status(choice.key), choice=choice)

    def get_loaded(self, key: str | None = None) -> Engine | None:
        """Return the engine of a model, or None if it is not loaded; raises as `find` does."""
        return self._pool.get_loaded(self.find(key).key)

    def start_loading(self, key: str | None = None, *, download: bool = False) -> None:
        """See `EnginePool.start_loading`; raises as `find` does."""
        self._pool.start_loading(self.find(key).key, self._owner, download=download)

    def cancel_loading(self, key: str | None) -> None:
        """See `EnginePool.cancel_loading`; raises as `find` does."""
        self._pool.cancel_loading(self.find(key).key, self._owner)

    def load_with_status(
        self,
        key: str | None = None,
        cancel: threading.Event | None = None,
        *,
        download: bool = False,
    ) -> Iterator[ModelStatus]:
        """See `EnginePool.load_with_status`; raises as `find` does."""
        key = self.find(key).key
        return self._pool.load_with_status(key, self._owner, cancel, download=download)

    def lease(
        self, key: str | None = None, timeout: float | None = None
    ) -> AbstractContextManager[Engine]:
        """See `EnginePool.lease`; raises as `find` does."""
        return self._pool.lease(self.find(key).key, timeout)
