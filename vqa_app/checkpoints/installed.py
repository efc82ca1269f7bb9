"""Models of the hub on this machine: their size, when they were last used, and their deletion."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqa_app.checkpoints.catalogue import is_cached
from vqa_app.checkpoints.source import hub_cache
from vqa_app.errors import ModelError, first_line

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, HFCacheInfo


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

    Other programs use this cache, too, so it may hold models that are not for pictures.
    """
    found = [
        InstalledModel(one.repo_id, _size(one), one.last_accessed, is_cached(one.repo_id))
        for one in _models(_scan())
    ]
    return sorted(found, key=lambda model: -model.size)


def delete_model(name: str) -> int:
    """Delete a model from the local cache and return the bytes that this freed.

    Raises:
        ModelError: It is not there, or its files cannot be deleted.
    """
    model = next((one for one in _models(_scan()) if one.repo_id == name), None)
    if model is None:
        raise ModelError(
            f"{name} is not on this machine.", "`vqa-app models --installed` lists those that are."
        )
    size = _size(model)
    # Not HFCacheInfo.delete_revisions: a copy of a repository has the same commits, and it would
    # delete either of the two.
    try:
        shutil.rmtree(model.repo_path)
    except OSError as error:
        raise ModelError(
            f"{name} could not be deleted completely from {model.repo_path}: {first_line(error)}.",
            "Close programs that use it, and try again.",
        ) from error
    return size


def _scan() -> HFCacheInfo | None:
    """Return the content of the cache, or None if there is no cache yet."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(hub_cache())
    except CacheNotFound:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The cache of the hub in {hub_cache()} cannot be read: {first_line(error)}.",
            "Check the folder, or set HF_HOME to another one.",
        ) from error


def _models(cache: HFCacheInfo | None) -> Iterable[CachedRepoInfo]:
    return [one for one in cache.repos if one.repo_type == "model"] if cache else []


def _size(model: CachedRepoInfo) -> int:
    """Return the size of a model's files, which scanning gives without unfinished downloads."""
    blobs = model.repo_path / "blobs"
    if not blobs.is_dir():  # a file system without symbolic links
        return model.size_on_disk
    return sum(file.stat().st_size for file in blobs.iterdir() if file.is_file())
