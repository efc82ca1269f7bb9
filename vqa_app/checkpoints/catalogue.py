"""The list of models: the built-in one, a selection from the hub, and local runs.

This module does not import torch, so that the list is shown quickly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vqa_app.checkpoints import source
from vqa_app.checkpoints.adapters import PEFT_FILE, PROJECTOR_FILE, is_adapter
from vqa_app.checkpoints.hub_models import CATALOGUE, CatalogueEntry, EntryKind
from vqa_app.checkpoints.manifest import MANIFEST_FILE, read_manifest
from vqa_app.checkpoints.weights import model_files, stored_tensors
from vqa_app.errors import ModelError


def catalogue(runs: Path | None = None) -> list[CatalogueEntry]:
    """List the built-in model, if installed, then hub models by size, then runs.

    Args:
        runs: A directory whose subdirectories may be runs of `vqa-app finetune`.
    """
    entries = [*_builtin(), *(replace(entry, cached=is_cached(entry.name)) for entry in CATALOGUE)]
    return [*entries, *(local_runs(runs) if runs is not None else ())]


def is_cached(name: str) -> bool:
    """Return whether all weights of a hub model are in the local cache."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(name, local_files_only=True))
        files = model_files(directory)
    except (OSError, ValueError, ModelError):
        return False
    return bool(files) and all(file.is_file() for file in files)


def local_runs(directory: Path) -> list[CatalogueEntry]:
    """List the finished runs in a directory, newest first."""
    if not directory.is_dir():
        return []
    manifests = sorted(
        directory.glob(f"*/{MANIFEST_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    return [entry for path in manifests for entry in _run(path.parent)]


def _builtin() -> Iterable[CatalogueEntry]:
    try:
        directory = source.find(source.BUILTIN).directory
    except ModelError:
        return
    yield _local_entry(
        source.BUILTIN,
        "builtin",
        directory,
        "Apache 2.0",
        "Installed with vqa-app; knows only simple drawings.",
    )


def _run(directory: Path) -> Iterable[CatalogueEntry]:
    try:
        manifest = read_manifest(directory)
        if manifest is None or not (model_files(directory) or is_adapter(directory)):
            return
        base = manifest.base.name
        note = f"{manifest.kind} on {base}, {manifest.created[:10]}"
        entry = _local_entry(str(directory), "run", directory, f"that of {base}", note)
    except ModelError:
        return
    if not manifest.whole_model:
        of_base = _parameters(base)
        total = entry.parameters + of_base if of_base else 0
        local = base == source.BUILTIN or Path(base).is_dir() or is_cached(base)
        entry = replace(entry, parameters=total, cached=local)
    yield entry


def _parameters(name: str) -> int | None:
    """Return the number of parameters of a run's base model, or None if it is unknown."""
    listed = next((entry.parameters for entry in CATALOGUE if entry.name == name), None)
    if listed is not None:
        return listed
    try:
        directory = source.find(name, offline=True).directory
        return sum(tensor.size for tensor in stored_tensors(model_files(directory)))
    except ModelError:
        return None


def _local_entry(
    name: str, kind: EntryKind, directory: Path, licence: str, note: str
) -> CatalogueEntry:
    adapter = [directory / file for file in (PEFT_FILE, PROJECTOR_FILE)]
    files = model_files(directory) or [file for file in adapter if file.is_file()]
    parameters = sum(tensor.size for tensor in stored_tensors(files))
    size = sum(file.stat().st_size for file in files)
    return CatalogueEntry(name, kind, parameters, licence, note, size, cached=True)
