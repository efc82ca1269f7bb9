"""Files and folders: sizes in words, JSON, directories that are complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vqa_app.errors import ModelError, UsageError


def format_bytes(size: float) -> str:
    """Render bytes as `14 MB`, `520 MB` or `1.8 GB`: decimal, as disks and hubs count."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model; {} where there is none.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Download the model again.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object.", "Download the model again.")
    return data


UNFINISHED = ".unfinished-"


def flush(path: Path) -> None:
    """Waits until a file, or the list of names in a directory, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no such call
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        flush(path)


def _share(directory: Path) -> None:
    """Gives files the mode that new ones have here: safetensors makes its own readable for their
    owner alone, and a server under another user could not load them.
    """
    probe = directory / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


@contextmanager
def unfinished_directory(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, flushed at the end; gone again if anything goes wrong."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
    try:
        yield folder
        _share(folder)
        _flush_tree(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends without an error.

    What stood at `target` stays until then. A kill at any moment leaves the old directory or the
    new one complete; `sweep` gives it back its name if the kill came between two renames.
    """
    with unfinished_directory(target.parent) as folder:
        folder.chmod(0o755)  # mkdtemp's are private
        yield folder
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
        target.rename(old / target.name)
        folder.rename(target)
        shutil.rmtree(old)
    else:
        folder.rename(target)
    flush(target.parent)


def require_writable(folder: Path) -> None:
    """Makes the folder.

    Raises:
        UsageError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"Cannot write to {folder}: {why}.", "Give another --out.") from error


def write_error_reason(error: BaseException) -> str | None:
    """Why a file could not be written, where that is what the error says: safetensors and
    `torch.save` have classes of their own for a full disk. None for any other error.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if isinstance(error, SafetensorError) and "os error" in text.lower():
        return text
    if isinstance(error, RuntimeError) and ("inline_container" in text or "Writer" in text):
        return "the disk is full, or cannot be written to"
    return None
