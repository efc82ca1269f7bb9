"""Find the directory of a model by its name: built-in, local, or downloaded from the hub.

Missing, gated and unsupported models are reported before anything is downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_app.checkpoints.hub_models import CATALOGUE
from vqa_app.checkpoints.snapshot import download_snapshot
from vqa_app.errors import ModelError, UsageError, first_line
from vqa_app.files import format_bytes
from vqa_app.proxies import proxy_problem
from vqa_app.suggestions import suggest

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

BUILTIN = "builtin"
HUB_TIMEOUT = 8.0
"""Seconds to wait for a response from the hub."""
_ADAPTER_FILES = ("adapter_config.json", "projector.safetensors", "manifest.json")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_MODEL_WEIGHTS = "model*.safetensors"
_NOT_DOWNLOADED = ["*/*", "consolidated*", "*.bin.index.json"]
"""Subfolders contain copies in other formats; `consolidated` is Mistral's own format."""


@dataclass(frozen=True)
class Source:
    """The location of a model's files."""

    name: str
    """The name that the user gave, with local paths made absolute."""
    directory: Path
    revision: str | None = None
    """The commit on the hub."""


def find(
    name: str | os.PathLike[str],
    revision: str | None = None,
    offline: bool = False,
    *,
    weights: bool = True,
    bar: type | None = None,
    check: Callable[[], None] | None = None,
) -> Source:
    """Return the directory of a model or adapter, after downloading it from the hub if needed.

    Args:
        name: `builtin`, a folder or a hub id.
        revision: Branch, tag or commit on the hub.
        offline: Use only the local cache.
        weights: Whether to download the weights of a whole model, besides its small files.
        bar: A `tqdm` class that reports downloads.
        check: Called several times a second while it downloads. An exception in it, or Ctrl-C, ends
            the download.

    Raises:
        ModelError: The model cannot be found or downloaded.
        UsageError: The name is not a string or path, or there is a revision without a hub id.
    """
    local = find_local(name, revision)
    return local or _from_hub(os.fspath(name), revision, offline, weights, bar, check)


def find_local(name: str | os.PathLike[str], revision: str | None = None) -> Source | None:
    """Return the directory of a built-in or local model or adapter; None for a hub id.

    Needs neither the network nor torch, so that commands can reject a mistyped name at once.

    Args:
        name: `builtin`, a folder or a hub id.
        revision: Branch, tag or commit on the hub.

    Raises:
        ModelError: The name is neither a folder nor a hub id.
        UsageError: As for `find`.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UsageError(
            f"Expected the name of a model, got {name!r}.", "Use builtin, a hub id or a folder."
        )
    name = os.fspath(name)
    if name == BUILTIN:
        if revision is not None:
            raise UsageError("The built-in model has no revisions.", "Leave out the revision.")
        directory = Path(str(resources.files("vqa_app"))) / "builtin"
        if not (directory / "config.json").is_file():
            raise ModelError(
                "The built-in model is missing from this installation of vqa-app.",
                "Install it again, or choose another model with --model.",
            )
        return Source(BUILTIN, directory)
    if name[:7].lower() == "http://" or name[:8].lower() == "https://":
        raise UsageError(
            "A server keeps the weights of its models, and they are needed for this.",
            "Use builtin, a hub id or a folder; `ask`, `chat` and `eval` take a server.",
        )
    path = Path(os.path.expanduser(name))
    try:
        is_dir, is_file = bool(name) and path.is_dir(), path.is_file()
    except (OSError, ValueError):  # not a path: too long, or with a NUL byte
        is_dir = is_file = False
    if is_dir:
        if revision is not None:
            raise UsageError(
                f"{name} is a folder, which has no revisions.", "Leave out the revision."
            )
        return Source(str(path.resolve()), path.resolve())
    if is_file:
        folder = f": {path.parent}" if _is_model_folder(path.parent) else ""
        raise ModelError(
            f"Expected a folder, but {name} is a file.",
            f"Use the folder with the model's files{folder}.",
        )
    if not _is_hub_id(name):
        shown = name if len(name) <= 100 else name[:100] + "..."
        raise ModelError(
            f"There is no model {shown!r}: it is neither a folder nor a hub id (owner/name).",
            _similar_model(name, "`vqa-app models` lists models to choose from."),
        )
    return None


def find_gguf(name: str | os.PathLike[str]) -> Source | None:
    """Return a GGUF file of this name, for `compose`; None if the name is another one.

    Raises:
        ModelError: The package that reads such files is missing.
    """
    path = Path(os.path.expanduser(name))
    if path.suffix != ".gguf" or not path.is_file():
        return None
    if find_spec("gguf") is None:
        raise ModelError(
            f"Reading {name} needs the package gguf.", "Install it: pip install 'vqa-app[gguf]'"
        )
    return Source(str(path.resolve()), path.parent.resolve())


def _is_model_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", *_ADAPTER_FILES))


def _similar_model(name: str, otherwise: str) -> str:
    """Return a hint that names the model that was probably meant, or else `otherwise`."""
    runs = [str(folder) for folder in Path("runs").glob("*") if _is_model_folder(folder)]
    cached = hub_cache().glob("models--*")
    names = [path.name.removeprefix("models--").replace("--", "/") for path in cached]
    known = [BUILTIN, *runs, *names, *(entry.name for entry in CATALOGUE)]
    return suggest(name, known, path=_is_model_folder, otherwise=otherwise)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(_HUB_ID.fullmatch(name))


def stay_offline() -> None:
    """Prevent this process and those that it starts from downloading models and data sets."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True  # the environment was read when it was imported


def _from_hub(
    name: str,
    revision: str | None,
    offline: bool,
    weights: bool,
    bar: type | None,
    check: Callable[[], None] | None,
) -> Source:
    from huggingface_hub import constants, errors, snapshot_download

    options: dict[str, Any] = {
        "repo_id": name,
        "revision": revision,
        "allow_patterns": _DOWNLOADED,
        "ignore_patterns": [*_NOT_DOWNLOADED, *(() if weights else [_MODEL_WEIGHTS])],
        "etag_timeout": HUB_TIMEOUT,
    }
    offline = offline or constants.is_offline_mode()
    proxies = None if offline else proxy_problem()
    info = None if offline or proxies else _model_info(name, revision)
    if info is None:
        try:
            directory = Path(snapshot_download(**options, local_files_only=True))
        except OSError as error:
            if proxies:
                problem, hint = proxies
                raise ModelError(f"{name} is not in the local cache. {problem}", hint) from error
            reason = "downloads are switched off" if offline else "the hub cannot be reached"
            raise ModelError(
                f"{name} is not in the local cache, and {reason}.",
                _similar_model(name, "Load it once while online, or use the built-in model."),
            ) from error
        if not any(directory.glob("*.safetensors" if weights else "*.json")):
            raise ModelError(
                f"The copy of {name} in the local cache is incomplete.",
                "Load it once while online.",
            )
        return Source(name, directory, directory.name)
    _check_listing(name, info)
    if weights:
        _check_disk(name, info)
    try:
        directory = download_snapshot(bar=bar, check=check, **options)
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # hf_xet raises the last
        raise _hub_error(name, revision, error) from error
    return Source(name, directory, directory.name)


def _model_info(name: str, revision: str | None) -> ModelInfo | None:
    """Return the hub's information about a repository, or None if the hub cannot be reached.

    Raises:
        ModelError: The repository does not exist, or access is denied.
    """
    from huggingface_hub import HfApi, errors

    try:
        return HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True)
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            return None
        raise _hub_error(name, revision, error) from error
    except (errors.HTTPError, OSError):
        return None


def _hub_error(name: str, revision: str | None, error: Exception) -> ModelError:
    """Return the error to report for one that was raised by huggingface_hub."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{name}"
    match error:
        case errors.GatedRepoError():
            return ModelError(
                f"{name} is gated: its licence must be accepted first.",
                f"Accept it on {page}, and log in on the machine that runs the model:"
                " `hf auth login`.",
            )
        case errors.RevisionNotFoundError():
            return ModelError(
                f"{name} has no revision {revision!r}.", f"{page}/tree/main lists its branches."
            )
        case errors.RepositoryNotFoundError():
            return ModelError(
                f"There is no model {name} on the hub, or it is private.",
                _similar_model(
                    name,
                    "Check the spelling; a private one needs a login on the machine that runs it:"
                    " `hf auth login`.",
                ),
            )
        case errors.HfHubHTTPError() if error.response is not None:
            return ModelError(
                f"The hub responded with status {error.response.status_code} for {name}.",
                "Try again later. Downloaded models can be used with --offline.",
            )
    return ModelError(
        f"Could not download {name}: {first_line(error)}",
        "Check the network and the disk, and try again to continue the download.",
    )


def pickle_error(name: str) -> ModelError:
    """Return the error for a model whose weights are only in pickle files."""
    return ModelError(
        f"{name} has only pickle files, which may run code when they are loaded.",
        "Choose a model with safetensors weights.",
    )


def _check_listing(name: str, info: ModelInfo) -> None:
    """Check the list of files before they are downloaded.

    Raises:
        ModelError: There are no weights, or none in safetensors files.
    """
    names = {sibling.rfilename for sibling in info.siblings or []}
    if any(file.endswith(".safetensors") and "/" not in file for file in names):
        return
    if any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in names):
        raise pickle_error(name)
    if any(file.endswith(".gguf") for file in names):
        raise ModelError(
            f"{name} contains GGUF files, which are for llama.cpp.",
            "Choose the repository of the original model.",
        )
    raise ModelError(f"{name} has no weights.", "Choose a repository with safetensors weights.")


def _check_disk(name: str, info: ModelInfo) -> None:
    """Check that there is enough disk space for the download.

    Raises:
        ModelError: The download is larger than the free space.
    """
    missing, free = _missing_bytes(name, info), free_cache_space()
    if missing > free:
        cache = hub_cache()
        raise ModelError(
            f"{name} needs {format_bytes(missing)} in {cache}; {format_bytes(free)} are free.",
            "Free some space, or set HF_HOME to a folder on another disk.",
        )


def _missing_bytes(name: str, info: ModelInfo) -> int:
    """Return the size of the weights that are not in the local cache, in bytes."""
    from huggingface_hub import try_to_load_from_cache

    return sum(
        sibling.size or 0
        for sibling in info.siblings or []
        if sibling.rfilename.endswith(".safetensors")
        and "/" not in sibling.rfilename
        and not sibling.rfilename.startswith("consolidated")
        and not isinstance(try_to_load_from_cache(name, sibling.rfilename, revision=info.sha), str)
    )


def hub_cache() -> Path:
    """Return the folder to which models of the hub are downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def free_cache_space() -> int:
    """Return the free space on the disk of the hub's cache, in bytes."""
    import shutil

    cache = hub_cache()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return shutil.disk_usage(existing).free


@dataclass(frozen=True)
class HubListing:
    """What the hub says about a model before it is downloaded."""

    missing: int
    """Size of the weights that are not in the local cache yet, in bytes."""
    parameters: int
    """Number of parameters; an estimate for 16-bit weights if the hub does not count them."""
    licence: str
    """As its model card names it; empty if it names none."""


def ask_hub(name: str) -> HubListing | None:
    """Return what the hub says about a model, or None if it cannot be reached.

    Raises:
        ModelError: There is no such model, access is denied, or its weights cannot be used.
    """
    from huggingface_hub import constants

    info = None if constants.is_offline_mode() else _model_info(name, None)
    if info is None:
        return None
    _check_listing(name, info)
    missing = _missing_bytes(name, info)
    counted = info.safetensors.total if info.safetensors else missing // 2
    card: Any = info.card_data or {}
    return HubListing(missing, counted, str(card.get("license") or ""))
