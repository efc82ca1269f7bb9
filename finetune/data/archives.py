"""Archives as data sources: unpacked once into the user's cache, and read as the folders they hold.

What is unpacked stays in the cache, since pictures are opened while the model trains, and the next
command reads the same archive. It is removed when it has not been used for a month.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from finetune.data.rows import Problem
from finetune.data.tables import (
    FOR_TESTING,
    FOR_TRAINING,
    choose_files,
    find_metadata,
    group_by_split,
    visible_files,
)
from vqa_app.archive import SUFFIXES as ENDINGS
from vqa_app.archive import is_archive, unpack_archive
from vqa_app.errors import DataError
from vqa_app.files import UNFINISHED, move, remove_unused
from vqa_app.user_folders import user_cache

_NO_DATA = {"dataset_info.json", "dataset_infos.json", "state.json"}
"""JSON files that describe a data set, and hold none."""


def default_folder() -> Path:
    """Return the folder of all unpacked archives in the user's cache."""
    return user_cache("archives")


def unpacked(archive: Path) -> Path:
    """Return the folder with the content of an archive, unpacked now or by an earlier command.

    Raises:
        DataError: See `unpack_archive`; or the cache cannot be written to.
    """
    found = archive.stat()
    version = f"{archive.resolve()} {found.st_size} {found.st_mtime_ns}"
    folder = default_folder() / hashlib.sha256(version.encode()).hexdigest()[:16]
    try:
        if not folder.is_dir():
            _unpack(archive, folder)
        os.utime(folder)
    except OSError as error:
        raise DataError(
            f"Cannot unpack {archive} into {folder.parent}: {error.strerror}.",
            "Free some space there, or set XDG_CACHE_HOME to another folder.",
        ) from error
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    remove_unused(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    try:
        unpack_archive(archive, partial, name=str(archive))
        with suppress(OSError):  # another process was faster
            move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_data(
    folder: Path, split_or_purpose: str, name: str
) -> tuple[list[Path], list[Problem], str]:
    """Find what to read of a folder with data and pictures.

    Args:
        folder: The folder.
        split_or_purpose: See `choose_split`.
        name: The folder's name for messages.

    Returns:
        Data files, or one folder; notes; and the split that is left to choose in what was found.

    Raises:
        DataError: There is no data, or no such split.
    """
    split = "" if split_or_purpose in (FOR_TRAINING, FOR_TESTING) else split_or_purpose
    inner = folder
    while len(entries := [*inner.iterdir()]) == 1 and entries[0].is_dir():
        inner = entries[0]
    described = (inner / "state.json").exists() or (inner / "dataset_dict.json").exists()
    if described or find_metadata(inner, split_or_purpose, name):
        return [inner], [], split
    # An export of the page holds the same rows twice; JSON says more than the table.
    for kinds in (("*.json", "*.jsonl"), ("*.csv", "*.tsv")):
        if files := [f for f in visible_files(folder, *kinds) if f.name not in _NO_DATA]:
            if group_by_split(files, folder):
                return (*choose_files(files, folder, split_or_purpose, name), "")
            return files, [], split
    if visible_files(folder, "*.parquet", "*.arrow"):
        return [inner], [], split
    hint = "Add a JSON or CSV file with the questions."
    raise DataError(f"{name} contains no data file.", hint)


__all__ = ["ENDINGS", "default_folder", "find_data", "is_archive", "unpacked"]
