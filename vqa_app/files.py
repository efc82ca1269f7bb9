"""Files and folders: sizes in words, JSON, and writes that are complete or leave no trace."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from vqa_app.errors import ModelError, UsageError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_SQLITE_DISK_ERRORS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR}


def is_disk_error(error: BaseException) -> bool:
    """Return whether an error says that the disk is full, read-only or failing."""
    if isinstance(error, sqlite3.Error):
        # The lowest byte of an extended SQLite code is the primary code.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_DISK_ERRORS
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def format_bytes(size: float) -> str:
    """Render bytes as `98 kB`, `520 MB` or `1.8 GB`: decimal, as disks and hubs count."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


JSON_ERRORS = (ValueError, RecursionError)
"""What `json.loads` raises for texts and bytes: `json_problem` puts it into words."""


def json_problem(error: OSError | ValueError | RecursionError) -> str:
    """Return why a JSON file cannot be read, as the end of a sentence.

    Python's own messages name its functions and limits, such as `sys.set_int_max_str_digits()`.
    """
    match error:
        case json.JSONDecodeError():
            return f"line {error.lineno:,}, column {error.colno:,} is not JSON"
        case UnicodeDecodeError():
            return "it is not UTF-8 text"
        case RecursionError():
            return "its lists and objects are nested too deeply"
        case OSError():
            return error.strerror or "the disk does not respond"
        case _:
            return f"it has a number of more than {sys.get_int_max_str_digits():,} digits"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model; {} if there is none.

    Raises:
        ModelError: It cannot be read, or is not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, *JSON_ERRORS) as error:
        raise ModelError(
            f"{path} cannot be read: {json_problem(error)}.", "Download the model again."
        ) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object.", "Download the model again.")
    return data


_ON_WINDOWS = sys.platform == "win32"
_BUSY_SECONDS = 2.0
"""How long a file that somebody else has open is waited for."""
_NAMES_OF_DEVICES = {
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"),
}


def is_windows_name(name: str) -> bool:
    """Return whether Windows accepts a name for a file or folder, as it is."""
    return not (
        re.search(r'[<>:"|?*\x00-\x1f]', name)
        or name.endswith((".", " "))
        or name.split(".")[0].rstrip().lower() in _NAMES_OF_DEVICES
    )


def portable_name(name: str) -> str:
    """Return a name of letters, digits, spaces and dashes as Windows accepts it, too."""
    return name if is_windows_name(name) else f"{name}_"


def move(source: Path, target: Path) -> None:
    """Rename a file or folder; a file at `target` is replaced."""
    _when_free(lambda: source.replace(target))


def delete(path: Path) -> None:
    """Delete a file, if it is there."""
    _when_free(lambda: path.unlink(missing_ok=True))


def _when_free(change: Callable[[], object]) -> None:
    """Rename or delete files when nobody has them open any more.

    Windows refuses it while they are open, and reports that as missing permissions. Our threads
    read each other's files for moments only, as do virus scanners, so they are waited for.
    """
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            change()
            return
        except PermissionError:
            if not _ON_WINDOWS or time.monotonic() > end:
                raise
        time.sleep(0.02)


UNFINISHED = ".unfinished-"
"""Prefix of files and folders that are still being written; a kill may leave some."""


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a file to write that becomes `path` if the block ends without an error.

    Until then `path` stays as it is. Several threads and processes may write the same file at once.

    Args:
        path: Its folder is created if need be.
        mode: Permissions of the file, less those that the umask removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        temporary.touch(mode=mode, exist_ok=False)
        yield temporary
        move(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a folder to write into that becomes `target` if the block ends without an error.

    Until then `target` stays as it is, and a kill at any moment leaves the old folder or the new
    one complete. After a kill between two renames the old one is in a folder named `UNFINISHED...`.
    """
    with unfinished_directory(target.parent) as folder:
        folder.chmod(0o755)  # mkdtemp's are private
        yield folder
    replace_directory(folder, target)


def replace_directory(folder: Path, target: Path) -> None:
    """Move a folder to `target` on the same disk, in place of the one that may be there."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
        move(target, old / target.name)
        move(folder, target)
        shutil.rmtree(old)
    else:
        move(folder, target)
    flush(target.parent)


@contextmanager
def add_to_directory(target: Path, *, last: str) -> Iterator[Path]:
    """Yield a folder whose files move into `target` if the block ends without an error.

    Args:
        target: May hold other files, which stay.
        last: Name of the file that moves last: where it is, the others are complete.
    """
    with unfinished_directory(target) as folder:
        yield folder
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: (path.name == last, path),
    )
    for path in files:
        place = target / path.relative_to(folder)
        place.parent.mkdir(exist_ok=True)
        move(path, place)
    shutil.rmtree(folder)
    flush(target)


@contextmanager
def unfinished_directory(parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent`; flush it at the end, or remove it after an error."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
    try:
        yield folder
        _use_default_mode(folder)
        for path in (*folder.rglob("*"), folder):
            flush(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file, or the list of names in a directory, is on the disk."""
    is_directory = path.is_dir()
    if is_directory and _ON_WINDOWS:  # which has no such call
        return
    # Windows flushes only what is open for writing; POSIX opens directories only for reading.
    handle = os.open(path, os.O_RDONLY if is_directory else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _use_default_mode(directory: Path) -> None:
    """Give files the mode that new ones get here.

    safetensors makes its files readable for their owner alone; a server under another user could
    not load them.
    """
    probe = directory / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def lock_file(path: Path) -> BaseFileLock | None:
    """Lock a file for this process; the operating system releases it however the process ends.

    Returns:
        The lock, or None on a file system without locks.

    Raises:
        filelock.Timeout: Another process holds the lock.
    """
    # The soft fallback is a plain file, which would stay after a kill and lock everybody out.
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError):
        return None
    return lock


def remove_unused(folder: Path, seconds: float = 30 * 24 * 3600) -> None:
    """Delete what is in a folder of the cache and has not been changed for a month, or so long."""
    folder.mkdir(parents=True, exist_ok=True)
    oldest = time.time() - seconds
    for entry in folder.glob("*"):
        with suppress(FileNotFoundError):  # another command has finished or removed it
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """Create the folder, or check that files can be written to it.

    Raises:
        UsageError: It cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = reason_in_words(error)
        raise UsageError(f"Cannot write to {folder}: {why}.", "Give another --out.") from error


def reason_in_words(error: OSError) -> str:
    """Return why a file or folder cannot be created."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "there is a file where a folder is needed"
    return error.strerror or str(error)


def write_error_reason(error: BaseException) -> str | None:
    """Return why a file could not be written, or None if the error is about something else.

    safetensors and `torch.save` raise errors of their own when the disk is full.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    of_safetensors = isinstance(error, SafetensorError) and "os error" in text.lower()
    of_torch = isinstance(error, RuntimeError) and ("inline_container" in text or "Writer" in text)
    if of_safetensors or of_torch:
        return "the disk is full, or cannot be written to"
    return None
