"""The models that people can choose from, and how one of them is loaded.

The list has the model that the server was started with, the built-in one, finished training runs,
and the catalogue.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from vqa_app.checkpoints.manifest import is_finished
from vqa_app.engine.protocol import Engine
from vqa_app.errors import UsageError
from vqa_app.serving.engine_pool import LoadProgress, ModelChoice
from vqa_app.serving.redact import hide_folder

DOWNLOADED, TO_DOWNLOAD = "Downloaded", "To download"
_CATALOGUE_SECONDS = 60
BUILTIN = ModelChoice("builtin", "Built-in", "small, included", "Included", "builtin")


def choice_from_options(
    model: str, adapter: str | None, quantize: str | None, revision: str | None = None
) -> ModelChoice:
    """Return the choice that the command line's model options describe."""
    if (model, adapter, quantize, revision) == ("builtin", None, None, None):
        return BUILTIN
    for path in (model, adapter or ""):
        if os.sep in path:
            hide_folder(Path(path).parent)  # everyone sees the messages about this model
    label = Path(model).name or model
    if adapter:
        label += f" + {Path(adapter).name}"
    detail = quantize or ""
    return ModelChoice("start", label, detail, "Started with", model, adapter, quantize, revision)


def available_choices(start: ModelChoice, runs: Path) -> Iterator[ModelChoice]:
    """Yield all models to choose from.

    Args:
        start: The model of the command line.
        runs: Folder whose subfolders are training runs.
    """
    yield start
    if start is not BUILTIN:
        yield BUILTIN
    if runs.is_dir():
        finished = [
            run for run in runs.iterdir() if is_finished(run) and not run.name.startswith(".")
        ]
        for run in sorted(finished, key=lambda run: run.stat().st_mtime, reverse=True):
            key = "run-" + hashlib.sha256(run.name.encode()).hexdigest()[:12]
            yield ModelChoice(key, run.name, "trained here", "Trained here", str(run))
    yield from _catalogue()


def _catalogue() -> list[ModelChoice]:
    return _catalogue_at(int(time.monotonic() / _CATALOGUE_SECONDS))


@lru_cache(maxsize=1)
def _catalogue_at(_: int) -> list[ModelChoice]:
    """Return the catalogue, downloaded models first.

    Cached for `_CATALOGUE_SECONDS`, because it looks up every model in the local hub cache.
    """
    from vqa_app.checkpoints.catalogue import CATALOGUE, is_cached

    found = [_hub_choice(entry.name, entry.size, is_cached(entry.name)) for entry in CATALOGUE]
    return sorted(found, key=lambda choice: not choice.here)


def _hub_choice(name: str, detail: str, here: bool = False) -> ModelChoice:
    key = "hub-" + hashlib.sha256(name.encode()).hexdigest()[:12]
    group = DOWNLOADED if here else TO_DOWNLOAD
    return ModelChoice(key, name.split("/")[-1], detail, group, name, here=here)


def choice_from_hub_id(hub_id: str) -> ModelChoice:
    """Return the choice of a hub model that a person named (`--allow-any-model`).

    Raises:
        UsageError: The text is not a hub id.
    """
    if not re.fullmatch(r"[\w\-.]{1,96}/[\w\-.]{1,96}", hub_id) or ".." in hub_id:
        raise UsageError("This is not a hub id.", "Write owner/name.")
    return replace(_hub_choice(hub_id, "added by id"), label=hub_id)


def quantization(choice: ModelChoice) -> str | None:
    """Return how the weights are quantised: by the command line, or as the run was trained.

    Raises:
        ModelError: The run's manifest is invalid.
    """
    from vqa_app.checkpoints.manifest import quantization_of

    return choice.quantize or quantization_of(Path(choice.source))


def load_engine(
    choice: ModelChoice, progress: LoadProgress, *, device: str = "auto", dtype: str = "auto"
) -> Engine:
    """Load a model as an engine of this process.

    Args:
        choice: The model.
        progress: Called as loading proceeds.
        device: See `vqa_app.checkpoints.loader.load_model`.
        dtype: See `vqa_app.checkpoints.loader.load_model`.

    Raises:
        ModelError: The model cannot be loaded.
    """
    if choice.group in (DOWNLOADED, TO_DOWNLOAD):  # its files may have been deleted since
        from vqa_app.serving.downloads import download_model

        download_model(choice.source, progress)
    progress("Reading the weights …")
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.engine.local import LocalEngine

    loaded = load_model(
        choice.source, choice.adapter, device, dtype, quantization(choice), choice.revision
    )
    progress("Starting the engine …")
    return LocalEngine(loaded)
