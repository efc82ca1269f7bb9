"""Make Linux refuse what Windows refuses, so that tests show what would fail there."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CAN_SEE_OPEN_FILES = Path("/proc/self/fd").is_dir()


def open_files() -> set[str]:
    """Return the paths of the files that this process has open or mapped into memory."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{entry}"))
        except OSError:  # the handle that listed them
            continue
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    mapped = (line.split(maxsplit=5) for line in lines)
    return found | {parts[5] for parts in mapped if len(parts) == 6}


def refuse_long_paths(patch: pytest.MonkeyPatch, longest: int = 259) -> None:
    """Find no file or folder with a longer path, as Windows unless it is set up otherwise."""

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            if not isinstance(path, int) and len(os.path.abspath(os.fspath(path))) > longest:
                raise FileNotFoundError(errno.ENOENT, "Too long, as on Windows", str(path))
            return function(path, *rest, **options)

        return call

    for owner, name in ((os, "mkdir"), (os, "open"), (os, "stat"), (io, "open")):
        patch.setattr(owner, name, guarded(getattr(owner, name)))


def keep_open_files(patch: pytest.MonkeyPatch) -> None:
    """Refuse to rename, replace or delete files that are open, and folders that hold such files."""
    if not CAN_SEE_OPEN_FILES:
        pytest.skip("needs /proc")

    def check(path: Any) -> None:
        real = os.path.realpath(path)
        if os.path.islink(path):
            return
        busy = sorted(file for file in open_files() if file == real or file.startswith(real + "/"))
        # Folders that are open are those that are being listed; Windows holds none for that.
        if busy := [file for file in busy if not os.path.isdir(file)]:
            raise PermissionError(errno.EACCES, "Open in another place, as on Windows", busy[0])

    def guarded(function: Callable[..., Any], targets: int) -> Callable[..., Any]:
        def call(*paths: Any, **options: Any) -> Any:
            for path in paths[:targets]:
                check(path)
            return function(*paths, **options)

        return call

    for name, targets in (("rename", 2), ("replace", 2), ("unlink", 1), ("remove", 1)):
        patch.setattr(os, name, guarded(getattr(os, name), targets))
    # The variant with handles of folders, which Windows does not have.
    patch.setattr(shutil, "_use_fd_functions", False)
