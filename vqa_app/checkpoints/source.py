"""A model's name → the directory that holds its files: built-in, local, or downloaded from the hub.

Whatever can be known to fail is known before the download: what is missing, gated or of a kind that
we do not run.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_app.errors import ModelError, UsageError
from vqa_app.files import format_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

BUILTIN = "builtin"
HUB_TIMEOUT = 8.0
"""Seconds in which the hub has to answer."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_WHOLE_MODEL = "model*.safetensors"
_ELSEWHERE = ["*/*", "consolidated*", "*.bin.index.json"]
"""Copies in other formats lie in subfolders; `consolidated` is Mistral's own format."""


@dataclass(frozen=True)
class Source:
    """Where a model's files lie."""

    name: str
    """As the person gave it, local paths made absolute."""
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
) -> Source:
    """The directory of a model or adapter; downloads it if it is on the hub and not in the cache.

    Args:
        weights: whether a whole model's weights are wanted too; False downloads its small files.
        bar: a `tqdm` class that is told of downloads; what its `update` raises ends them.

    Raises:
        ModelError: there is none, or it cannot be had.
        UsageError: a revision of something that is not on the hub; what is no name at all.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UsageError(f"{name!r} names no model.", "Give builtin, a hub id or a folder.")
    name = os.fspath(name)
    if name == BUILTIN:
        if revision is not None:
            raise UsageError("The built-in model has no revisions.", "Leave out the revision.")
        directory = Path(str(resources.files("vqa_app"))) / "builtin"
        if not (directory / "config.json").is_file():
            raise ModelError(
                "This installation of vqa-app holds no built-in model.",
                "Install it again, or name another model with --model.",
            )
        return Source(BUILTIN, directory)
    path = Path(os.path.expanduser(name))
    try:
        is_dir, is_file = bool(name) and path.is_dir(), path.is_file()
    except (OSError, ValueError):  # too long or a NUL byte: no path
        is_dir = is_file = False
    if is_dir:
        if revision is not None:
            raise UsageError(f"{name} is a folder; it has no revisions.", "Leave out the revision.")
        return Source(str(path.resolve()), path.resolve())
    if is_file:
        raise ModelError(f"{name} is a file.", "Give the folder that holds the model's files.")
    if not _is_hub_id(name):
        shown = name if len(name) <= 100 else name[:100] + "..."
        raise ModelError(
            f"There is no model {shown!r}: no such folder, and hub ids have the form owner/name.",
            "`vqa-app models` lists models to choose from.",
        )
    return _from_hub(name, revision, offline, weights, bar)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(_HUB_ID.fullmatch(name))


def stay_offline() -> None:
    """From here on this process and those that it starts download nothing, neither models nor data
    sets: what `--offline` asks for.
    """
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True  # read from the environment when it was imported


def _from_hub(
    name: str, revision: str | None, offline: bool, weights: bool, bar: type | None
) -> Source:
    from huggingface_hub import constants, errors, snapshot_download

    options: dict[str, Any] = {
        "repo_id": name,
        "revision": revision,
        "allow_patterns": _FILES,
        "ignore_patterns": [*_ELSEWHERE, *(() if weights else [_WHOLE_MODEL])],
        "etag_timeout": HUB_TIMEOUT,
    }
    offline = offline or constants.is_offline_mode()
    info = None if offline else _look_up(name, revision)
    if info is None:
        try:
            directory = Path(snapshot_download(**options, local_files_only=True))
        except OSError as error:
            said = (
                "and the network is not to be used" if offline else "and the hub cannot be reached"
            )
            raise ModelError(
                f"{name} is not in the local cache, {said}.",
                "Load it once with a network, or use the built-in model.",
            ) from error
        if not any(directory.glob("*.safetensors" if weights else "*.json")):
            raise ModelError(
                f"The copy of {name} in the local cache is not complete.",
                "Load it once with a network.",
            )
        return Source(name, directory, directory.name)
    _check_listing(name, info)
    if weights:
        _check_disk(name, info)
    try:
        directory = Path(snapshot_download(**options, tqdm_class=bar))
    except (errors.HTTPError, OSError, ValueError) as error:
        raise _explain(name, revision, error) from error
    return Source(name, directory, directory.name)


def _look_up(name: str, revision: str | None) -> ModelInfo | None:
    """What the hub says of a repository; None where it cannot be reached.

    Raises:
        ModelError: it says that we cannot have it.
    """
    from huggingface_hub import HfApi, errors

    try:
        return HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True)
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            return None
        raise _explain(name, revision, error) from error
    except (errors.HTTPError, OSError):
        return None


def _explain(name: str, revision: str | None, error: Exception) -> ModelError:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{name}"
    match error:
        case errors.GatedRepoError():
            return ModelError(
                f"{name} is gated: its owner wants a licence accepted first.",
                f"Accept it on {page}, then log in with `hf auth login`.",
            )
        case errors.RevisionNotFoundError():
            return ModelError(
                f"{name} has no revision {revision!r}.", f"See {page}/tree/main for its branches."
            )
        case errors.RepositoryNotFoundError():
            return ModelError(
                f"There is no model {name} on the hub, or it is private.",
                "Check the spelling; for a private one log in with `hf auth login`.",
            )
        case errors.HfHubHTTPError() if error.response is not None:
            return ModelError(
                f"The hub answered {error.response.status_code} for {name}.",
                "Try again later; models that were loaded before work with --offline.",
            )
    return ModelError(
        f"{name} cannot be downloaded: {str(error).splitlines()[0] if str(error) else error!r}",
        "Check the network and the disk; a second try goes on where this one stopped.",
    )


def _check_listing(name: str, info: ModelInfo) -> None:
    """Refuses by its list of files what would be refused after the download.

    Raises:
        ModelError: no weights, or only such as could run code.
    """
    names = {sibling.rfilename for sibling in info.siblings or []}
    if any(file.endswith(".safetensors") and "/" not in file for file in names):
        return
    if any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in names):
        raise ModelError(
            f"{name} has its weights as pickle files only, which may run code when they are read.",
            "Choose a model with safetensors weights.",
        )
    if any(file.endswith(".gguf") for file in names):
        raise ModelError(
            f"{name} holds GGUF files, which are for llama.cpp.",
            "Choose the repository of the original model.",
        )
    raise ModelError(f"{name} holds no weights.", "Choose a repository with safetensors weights.")


def _check_disk(name: str, info: ModelInfo) -> None:
    """Refuses a download that the disk has no room for.

    Raises:
        ModelError: with both sizes.
    """
    import shutil

    from huggingface_hub import constants, try_to_load_from_cache

    missing = sum(
        sibling.size or 0
        for sibling in info.siblings or []
        if sibling.rfilename.endswith(".safetensors")
        and "/" not in sibling.rfilename
        and not isinstance(try_to_load_from_cache(name, sibling.rfilename, revision=info.sha), str)
    )
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if missing > free:
        raise ModelError(
            f"{name} needs {format_bytes(missing)} in {cache}; {format_bytes(free)} are free.",
            "Make room, or set HF_HOME to a bigger disk.",
        )
