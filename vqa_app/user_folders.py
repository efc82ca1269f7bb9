"""The user's folders for this program's data and caches.

Imports next to nothing, because `vqa-app ask` uses it before it knows whether a model is needed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vqa_app.errors import UsageError


def user_cache(name: str) -> Path:
    """Return this program's folder of that name in the user's cache.

    Raises:
        UsageError: The user has no home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or _home() / ".cache"
    return Path(cache) / "vqa-app" / name


def user_data() -> Path:
    """Return this program's folder for the user's data, such as chats; it may not exist yet.

    Raises:
        UsageError: The user has no home folder.
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share"
    return Path(base) / "vqa-app"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # as in a container with an unknown user id
        raise UsageError("This user has no home folder.", "Set HOME to a folder.") from error
