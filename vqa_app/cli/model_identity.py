"""What two processes compare to know whether they would give the same answers.

Imports next to nothing, because every `vqa-app ask` compares.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import vqa_app
from vqa_app.errors import UsageError
from vqa_app.user_folders import user_data

_PACKAGE = os.path.dirname(vqa_app.__file__)


def model_identity(
    model: str,
    adapter: str | None = None,
    quantize: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> dict[str, Any]:
    """Return what the answers of a model depend on, besides the question, as JSON has it.

    Folders count with the state of their files: a run that is trained again gives other answers.
    Hub models count by name and revision.
    """
    return {
        "version": vqa_app.__version__,
        "installation": [sys.prefix, _PACKAGE],
        "model": _location(model),
        "adapter": None if adapter is None else _location(adapter),
        "quantize": quantize,
        "device": device,
        "dtype": dtype,
        "revision": revision,
        "calibrations": _state(_calibrations()),
    }


def _location(name: str) -> list[Any]:
    if name == "builtin":
        return [name, _state(os.path.join(_PACKAGE, name))]
    folder = os.path.expanduser(name)
    return [os.path.realpath(folder), _state(folder)] if os.path.isdir(folder) else [name]


def _calibrations() -> Path | str:
    try:
        return user_data() / "calibrations"
    except UsageError:  # no home folder
        return ""


def _state(folder: str | Path) -> list[Any]:
    """Return names, sizes and times of the files in a folder; [] if there is none."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    except OSError:
        return []
    return sorted([name, state.st_size, state.st_mtime_ns] for name, state in found)
