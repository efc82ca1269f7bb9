"""Models of the hub on this machine: their size, when they were last used, and their deletion."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vqa_app.checkpoints.catalogue import is_cached
from vqa_app.checkpoints.source import hub_cache
from vqa_app.errors import ModelError, first_line

_PREFIX = "models--"
"""Of a model's folder in the cache; those of data sets have another one."""


@dataclass(frozen=True)
class InstalledModel:
    """A model in the local cache of the hub."""

    name: str
    size: int
    """Size on disk in bytes, with parts of an unfinished download."""
    last_used: float
    """When its files were last read, in seconds since the epoch."""
    complete: bool
    """Whether it can be loaded without a download."""


def installed_models() -> list[InstalledModel]:
    """List the models in the local cache, the largest first.

    Other programs use this cache, too, so it may hold models that are not for pictures. A model is
    listed as soon as some of it is there. `huggingface_hub.scan_cache_dir` leaves out models with
    anything missing, such as those whose download ended before its first whole file.

    Raises:
        ModelError: The cache cannot be read.
    """
    found = []
    for folder in _folders():
        if files := _files(folder):
            name = _name(folder)
            size = sum(file.st_size for file in files.values())
            last_used = max(file.st_atime for file in files.values())
            found.append(InstalledModel(name, size, last_used, is_cached(name)))
    return sorted(found, key=lambda model: -model.size)


def delete_model(name: str) -> int:
    """Delete a model from the local cache and return the bytes that this freed.

    Weights that another model has as well stay for that one.

    Raises:
        ModelError: It is not there, or its files cannot be deleted.
    """
    from vqa_app.hub_internals import delete_repository

    folder = next((one for one in _folders() if _name(one) == name and _files(one)), None)
    if folder is None:
        raise ModelError(
            f"{name} is not on this machine.", "`vqa-app models --installed` lists those that are."
        )
    files = _files(folder)
    try:
        delete_repository(folder, hub_cache())
    except OSError as error:
        raise ModelError(
            f"{name} could not be deleted completely from {folder}: {first_line(error)}.",
            "Close programs that use it, and try again.",
        ) from error
    return sum(stat.st_size for file, stat in files.items() if not file.exists())


def _folders() -> list[Path]:
    """Return the folders of the models in the cache."""
    cache = hub_cache()
    try:
        return [one for one in cache.iterdir() if one.name.startswith(_PREFIX) and one.is_dir()]
    except FileNotFoundError:  # nothing was downloaded yet
        return []
    except OSError as error:
        raise ModelError(
            f"The cache of the hub in {cache} cannot be read: {first_line(error)}.",
            "Check the folder, or set HF_HOME to another one.",
        ) from error


def _name(folder: Path) -> str:
    return folder.name.removeprefix(_PREFIX).replace("--", "/")


def _files(folder: Path) -> dict[Path, os.stat_result]:
    """Return the files of a model, each once, however many links there are to it."""
    found = {}
    for path in (*folder.glob("blobs/*"), *folder.glob("snapshots/**/*")):
        with suppress(OSError):  # a link to nothing, or just deleted
            file = path.resolve()
            if file.is_file():
                found[file] = file.stat()
    return found
