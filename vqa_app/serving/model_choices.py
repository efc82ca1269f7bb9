"""The models that people can choose from, and how one of them is loaded.

The list has the model that the server was started with, the built-in one, finished training runs,
and the catalogue.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from vqa_app.checkpoints.manifest import is_finished
from vqa_app.engine.protocol import Engine
from vqa_app.engine.remote import RemoteServer
from vqa_app.errors import ModelError, UsageError, VqaError
from vqa_app.serving.engine_pool import LoadProgress, ModelChoice
from vqa_app.serving.redact import hide_folder
from vqa_app.serving.remotes import Remote

DOWNLOADED, TO_DOWNLOAD, SERVERS = "Downloaded", "To download", "Servers"
_CATALOGUE_SECONDS = 60
_RUN = "run-"
"""Start of the keys of training runs."""
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


def choice_from_remote(remote: Remote) -> ModelChoice:
    """Return the choice of a server from the list of servers."""
    key = "remote-" + hashlib.sha256(remote.name.encode()).hexdigest()[:12]
    host = remote.server.host
    return ModelChoice(key, remote.name, host, SERVERS, remote.server.name, remote=remote)


def choice_from_server(server: RemoteServer) -> ModelChoice:
    """Return the choice of the server that the command line names."""
    label = server.model.split("/")[-1] if server.model else server.host
    remote = Remote(label, server)
    return ModelChoice("start", label, server.host, "Started with", server.name, remote=remote)


def available_choices(
    start: ModelChoice, runs: Path, remotes: Sequence[Remote] = ()
) -> Iterator[ModelChoice]:
    """Yield all models to choose from.

    Args:
        start: The model of the command line.
        runs: Folder whose subfolders are training runs.
        remotes: Servers that answer elsewhere.
    """
    yield start
    if start is not BUILTIN:
        yield BUILTIN
    yield from map(choice_from_remote, remotes)
    if runs.is_dir():
        finished = [
            run for run in runs.iterdir() if is_finished(run) and not run.name.startswith(".")
        ]
        for run in sorted(finished, key=lambda run: run.stat().st_mtime, reverse=True):
            key = _RUN + hashlib.sha256(run.name.encode()).hexdigest()[:12]
            yield ModelChoice(key, run.name, "trained here", "Trained here", str(run))
    yield from _catalogue()


def _catalogue() -> list[ModelChoice]:
    return _catalogue_at(int(time.monotonic() / _CATALOGUE_SECONDS))


@lru_cache(maxsize=1)
def _catalogue_at(_: int) -> list[ModelChoice]:
    """Return the catalogue, downloaded models first.

    Cached for `_CATALOGUE_SECONDS`, because it looks up every model in the local hub cache.
    """
    from vqa_app.checkpoints.catalogue import is_cached
    from vqa_app.checkpoints.hub_models import CATALOGUE

    found = [_hub_choice(entry.name, entry.size, is_cached(entry.name)) for entry in CATALOGUE]
    return sorted(found, key=lambda choice: not choice.here)


def forget_downloaded() -> None:
    """Look up again which models are downloaded, because one was added or deleted."""
    _catalogue_at.cache_clear()


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


def hub_name(choice: ModelChoice) -> str | None:
    """Return the hub id of the files that a choice needs, or None if it needs none.

    For the model of the command line it is None: naming it there has allowed its download.
    """
    if choice.group in (DOWNLOADED, TO_DOWNLOAD):
        return choice.source
    return hub_base(choice.source) if choice.key.startswith(_RUN) else None


def hub_base(run: str, most: int = 10) -> str | None:
    """Return the hub id of the model that a run adapts, through up to `most` earlier runs.

    A hub id is its own base. None is for what needs no model of the hub.
    """
    from vqa_app.checkpoints.manifest import read_manifest
    from vqa_app.checkpoints.source import find_local

    for _ in range(most):
        try:
            source = find_local(run)
            manifest = read_manifest(source.directory) if source else None
        except VqaError:
            return None
        if source is None:
            return run
        if manifest is None or manifest.whole_model:
            return None
        run = manifest.base.name
    return None


def check_downloaded(name: str) -> None:
    """Check that a hub model can be loaded without a download.

    Raises:
        ModelError: Its files are missing.
    """
    from vqa_app.checkpoints.catalogue import is_cached

    if not is_cached(name):
        raise ModelError(
            f"{name} is not downloaded.",
            "Choose it in the list of models; its size is shown before anything is downloaded.",
        )


def load_engine(
    choice: ModelChoice, progress: LoadProgress, *, device: str = "auto", dtype: str = "auto"
) -> Engine:
    """Load a model as an engine of this process, or connect to a server.

    Args:
        choice: The model.
        progress: Called as loading proceeds.
        device: See `vqa_app.checkpoints.loader.load_model`.
        dtype: See `vqa_app.checkpoints.loader.load_model`.

    Raises:
        ModelError: The model cannot be loaded, or would have to be downloaded first.
    """
    if choice.remote is not None:
        from vqa_app.engine.remote import RemoteEngine

        progress("Connecting …")
        return RemoteEngine(choice.remote.with_key())
    needed = hub_name(choice)
    if needed is not None and choice.download:
        from vqa_app.serving.downloads import download_model

        download_model(needed, progress)
        forget_downloaded()
    elif needed is not None:
        check_downloaded(needed)

    def check() -> None:
        """End the download of a model that was named on the command line, if it is cancelled."""
        progress("Reading the weights …")

    check()
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.engine.local import LocalEngine

    loaded = load_model(
        choice.source,
        choice.adapter,
        device,
        dtype,
        quantization(choice),
        choice.revision,
        offline=needed is not None,
        check=check,
    )
    progress("Starting the engine …")
    return LocalEngine(loaded)
