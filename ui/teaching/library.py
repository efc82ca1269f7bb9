"""What an owner has trained and uploaded: list, rename, share and delete it.

A run and a data set belong to whoever made them. Others can use them only while they are shared,
and never change them.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ui.chat.model_picker import model_list
from ui.chat.owner_models import run_of
from ui.chat.requests import PageRequest, PageUpdate
from ui.storage.database import Possession, PossessionKind
from ui.teaching.training import TrainingService, folders_in
from vqa_app.checkpoints.manifest import is_finished, read_manifest
from vqa_app.errors import ModelError, UsageError
from vqa_app.files import UNFINISHED, move, portable_name

MAX_LABEL = 60
"""Longest name of a model or data set, in characters."""


class Library:
    """Handles the page's requests about the owner's models and data sets.

    Args:
        training: Knows where they are, and which of them are in use.
    """

    def __init__(self, training: TrainingService) -> None:
        self._training, self._service = training, training.service
        self._store, self._runs = training.service.store, training.job_store.runs

    def handle(self, owner: str, request: PageRequest) -> PageUpdate:
        """Handle a request; its `do` names the action.

        Except for `list`, it holds `kind` (`run` or `data`) and `name`, as `list` returns them.

        Raises:
            UsageError: There is no such action, or the owner has no such model or data set; or it
                is in use.
        """
        action = request.get("do")
        if action != "list":
            found = self._find(owner, request)
            match action:
                case "rename":
                    self._change(*found, label=_label(request.get("title")))
                case "share":
                    self._change(*found, shared=bool(request.get("shared")))
                case "delete":
                    self._delete(*found)
                case other:
                    raise UsageError(f"Unknown request {str(other)[:40]!r}.", "Reload the page.")
        return {"library": self._list(owner), **model_list(self._service, owner)}

    def _list(self, owner: str) -> dict[str, Any]:
        """Return the owner's models and data sets, with what a person must know to delete one."""
        keys = {run_of(choice, self._runs): choice.key for choice in self._service.pool.choices()}
        runs = [run for run in self._store.possessions("run") if run.owner == owner]
        return {
            "run": [
                {
                    **_view(run, self._runs / run.name),
                    "key": keys.get(run.name),
                    "finished": is_finished(self._runs / run.name),
                    "needed_by": self._dependents(run.name, owner),
                }
                for run in runs
                if (self._runs / run.name).is_dir()
            ],
            "data": [_view(data, self._uploads / data.name) for data in self._data_sets(owner)],
        }

    @property
    def _uploads(self) -> Path:
        return self._training.data_dir / "uploads"

    def _data_sets(self, owner: str) -> list[Possession]:
        folder = self._training.uploads_of(owner)
        shared = {data.name: data for data in self._store.possessions("data")}
        names = [f"{folder.name}/{name}" for name in folders_in(folder)]
        return [
            shared.get(name) or Possession(name, owner, name.partition("/")[2], False)
            for name in names
        ]

    def _find(self, owner: str, request: PageRequest) -> tuple[PossessionKind, Possession]:
        name = request.get("name")
        if request.get("kind") == "run":
            run = self._store.possession("run", str(name))
            if run is not None and run.owner == owner:
                return "run", run
        elif request.get("kind") == "data":
            for data in self._data_sets(owner):
                if data.name == name:
                    return "data", data
        # The same message for what does not exist and for another owner's.
        raise UsageError("You have no such model or data set.", "Choose one from your list.")

    def _change(self, kind: PossessionKind, old: Possession, **changes: Any) -> None:
        new = replace(old, **changes)
        if kind == "data" and new.label != old.label:
            new = self._rename_data(old, new.label)
        self._store.add_possession(kind, new.name, new.owner, new.label)
        self._store.change_possession(kind, new)

    def _rename_data(self, data: Possession, label: str) -> Possession:
        """Rename the folder of a data set, by which uploads and trainings know it."""
        folder = self._uploads / data.name
        target = folder.with_name(label)
        with self._training.changing:
            self._training.check_data_not_in_use(folder)
            if target.exists():
                raise UsageError(
                    f"You already have a data set named {label!r}.", "Choose another name."
                )
            move(folder, target)
        self._store.remove_possession("data", data.name)
        return replace(data, name=f"{folder.parent.name}/{label}", label=label)

    def _delete(self, kind: PossessionKind, found: Possession) -> None:
        with self._training.changing:
            if kind == "run":
                self._release_run(found)
                folders = [self._runs, self._training.data_dir / "rehearsal"]
                self._training.forget(found.name)
            else:
                self._training.check_data_not_in_use(self._uploads / found.name)
                folders = [self._uploads]
            deleted = [_hide(folder / found.name) for folder in folders]
            self._store.remove_possession(kind, found.name)
        for folder in deleted:  # may take seconds
            shutil.rmtree(folder, ignore_errors=True)

    def _release_run(self, run: Possession) -> None:
        """Release the engine of a run.

        Raises:
            UsageError: Somebody uses the model, or another model needs its files.
        """
        job, folder = self._training.job, self._runs / run.name
        if job is not None and job.running and folder in (job.run, Path(job.base.source)):
            raise UsageError("The current training uses this model.", "Wait until it ends.")
        if needed := self._dependents(run.name, run.owner):
            names = ", ".join(label or "someone else's" for label in needed)
            raise UsageError(
                f"Other models were trained from this one and need it: {names}.",
                "Delete them first.",
            )
        for choice in self._service.pool.choices():
            if run_of(choice, self._runs) == run.name:
                if choice.key == self._service.pool.default:
                    raise UsageError(
                        "The server was started with this model.",
                        "It cannot be deleted while the server runs.",
                    )
                self._service.pool.release(choice.key)

    def _dependents(self, name: str, owner: str) -> list[str | None]:
        """Return the labels of the runs that hold only what was trained on top of a run.

        A run that is not the owner's is None.
        """
        found: list[str | None] = []
        for other in folders_in(self._runs):
            try:
                manifest = read_manifest(self._runs / other)
            except ModelError:
                continue
            if manifest is None or manifest.whole_model:
                continue
            if Path(manifest.base.name).resolve() == (self._runs / name).resolve():
                run = self._store.possession("run", other)
                own = run is not None and run.owner == owner
                found.append(run.label if run is not None and own else None)
        return found


def _view(found: Possession, folder: Path) -> dict[str, Any]:
    """Return what the page shows of a model or data set."""
    return {
        "name": found.name,
        "label": found.label,
        "shared": found.shared,
        "bytes": _bytes_in(folder),
        "changed": folder.stat().st_mtime,
    }


def _bytes_in(folder: Path) -> int:
    """Return the size of the files in a folder, from which a training may delete some meanwhile."""
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found += Path(parent, name).stat().st_size
    return found


def _label(title: object) -> str:
    """Return a name that is also the name of a folder.

    Raises:
        UsageError: It is empty or too long.
    """
    label = " ".join(re.sub(r"[^\w\-]+", " ", str(title or "")).split())
    if not label:
        raise UsageError("The name is empty.", "Enter one of letters and digits.")
    if len(label) > MAX_LABEL:
        raise UsageError("The name is too long.", f"The limit is {MAX_LABEL} characters.")
    return portable_name(label)


def _hide(folder: Path) -> Path:
    """Rename a folder that is to be deleted, so that nobody finds it half deleted."""
    hidden = folder.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    if folder.is_dir():
        move(folder, hidden)
    return hidden
