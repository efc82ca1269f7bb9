"""Which models the page offers, and how one is loaded.

These are the one the server was started with, the built-in one, own runs and the catalogue's.
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
BUILTIN = ModelChoice("builtin", "Built-in", "small, in the box", "In the box", "builtin")


def choice_from_options(
    model: str, adapter: str | None, quantize: str | None, revision: str | None = None
) -> ModelChoice:
    """The choice of the command line."""
    if (model, adapter, quantize, revision) == ("builtin", None, None, None):
        return BUILTIN
    for path in (model, adapter or ""):
        if os.sep in path:
            hide_folder(Path(path).parent)  # messages about it are shown to everybody
    label = Path(model).name or model
    if adapter:
        label += f" + {Path(adapter).name}"
    detail = quantize or ""
    return ModelChoice("start", label, detail, "Started with", model, adapter, quantize, revision)


def available_choices(start: ModelChoice, runs: Path) -> Iterator[ModelChoice]:
    """All choices.

    Args:
        start: the one of the command line.
        runs: folder whose subfolders are runs.
    """
    yield start
    if start is not BUILTIN:
        yield BUILTIN
    if runs.is_dir():
        finished = [run for run in runs.iterdir() if is_finished(run)]
        for run in sorted(finished, key=lambda run: run.stat().st_mtime, reverse=True):
            key = "run-" + hashlib.sha256(run.name.encode()).hexdigest()[:12]
            yield ModelChoice(key, run.name, "trained here", "Trained here", str(run))
    yield from _catalogue()


def _catalogue() -> list[ModelChoice]:
    return _catalogue_at(int(time.monotonic() / _CATALOGUE_SECONDS))


@lru_cache(maxsize=1)
def _catalogue_at(_: int) -> list[ModelChoice]:
    """Looks into the local cache of each model, so it is kept for a while."""
    from vqa_app.checkpoints.catalogue import CATALOGUE, is_cached

    found = [_from_hub(entry.name, entry.size, is_cached(entry.name)) for entry in CATALOGUE]
    return sorted(found, key=lambda choice: not choice.here)


def _from_hub(name: str, detail: str, here: bool = False) -> ModelChoice:
    key = "hub-" + hashlib.sha256(name.encode()).hexdigest()[:12]
    group = DOWNLOADED if here else TO_DOWNLOAD
    return ModelChoice(key, name.split("/")[-1], detail, group, name, here=here)


def choice_from_hub_id(text: str) -> ModelChoice:
    """A model that a person names by its hub id; only with `--allow-any-model`.

    Raises:
        UsageError: it is no hub id.
    """
    if not re.fullmatch(r"[\w\-.]{1,96}/[\w\-.]{1,96}", text) or ".." in text:
        raise UsageError("This is not a hub id.", "Write owner/name.")
    return replace(_from_hub(text, "named here"), label=text)


def quantization(choice: ModelChoice) -> str | None:
    """How the weights of a choice are quantised: as the command line says, or as those that a run
    was trained on.

    Raises:
        ModelError: the run's manifest cannot be understood.
    """
    from vqa_app.checkpoints.manifest import quantization_of

    return choice.quantize or quantization_of(Path(choice.source))


def load_engine(
    choice: ModelChoice, progress: LoadProgress, *, device: str = "auto", dtype: str = "auto"
) -> Engine:
    """Loads a choice as an engine of this process.

    Args:
        device: as for `vqa_app.checkpoints.loader.load_model`.
        dtype: likewise.

    Raises:
        ModelError: it cannot be loaded.
    """
    if choice.group in (DOWNLOADED, TO_DOWNLOAD):  # one may have been deleted since
        from vqa_app.serving.downloads import download_model

        download_model(choice.source, progress)
    progress("Reading the weights …")
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.engine.local import LocalEngine

    loaded = load_model(
        choice.source, choice.adapter, device, dtype, quantization(choice), choice.revision
    )
    progress("Getting ready …")
    return LocalEngine(loaded)
