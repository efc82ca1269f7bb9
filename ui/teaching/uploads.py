"""Uploaded data files, unpacked and read without trusting them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_app.archive import is_archive, unpack_archive
from vqa_app.errors import DataError
from vqa_app.serving.redact import redact_options, redact_paths

if TYPE_CHECKING:
    from finetune.data.read import Problem, ReadRows, Row

MAX_ROWS = 100_000
"""Largest number of rows, and of files in an archive."""
MAX_UNPACKED = 2 << 30
"""Largest size of an unpacked archive, in bytes."""
_DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")


def data_files(folder: Path) -> list[Path]:
    """Return the data files of a folder; if some are named as training files, only those.

    Raises:
        DataError: There is no data file.
    """
    from finetune.data.archives import find_data
    from finetune.data.read import FOR_TRAINING

    return find_data(folder, FOR_TRAINING, "The data set")[0]


def _check_picture_paths(rows: Iterable[Row], folder: Path) -> None:
    """Check that uploaded rows refer only to pictures in the upload, not to files of the server.

    Raises:
        DataError: a row names a file elsewhere.
    """
    for row in rows:
        for picture in row.pictures:
            path = picture.origin
            if isinstance(path, Path) and not path.resolve().is_relative_to(folder.resolve()):
                raise DataError(
                    f"Row {row.number} names a picture outside the upload: {picture.name}.",
                    "Include the picture, and name it relative to the data file.",
                )


def describe_problem(problem: Problem) -> str:
    """Return the message for a problem of uploaded data: with its row, without paths."""
    what = f"{problem.message} {redact_options(problem.hint)}".strip()
    return redact_paths(f"{problem.location}: {what}" if problem.location else what)


def read_upload(folder: Path) -> ReadRows:
    """Read the rows of an unpacked upload.

    Raises:
        DataError: There is no data, it cannot be read, or it names pictures outside the upload.
    """
    from finetune.data.read import read_rows

    files = data_files(folder)
    if packed := [file.name for file in files if file.is_file() and is_archive(file)]:
        raise DataError(f"{packed[0]} is an archive inside another.", "Unpack it.")
    found = read_rows(files)
    _check_picture_paths(found.rows, folder)
    return found


def unpack(data: bytes, folder: Path, name: str = "") -> None:
    """Unpack an untrusted archive, or store a data file.

    Args:
        data: Content of the file.
        folder: Where to unpack it.
        name: Name of the file.

    Raises:
        DataError: It is neither; see also `unpack_archive`.
    """
    suffix = Path(name).suffix.lower()
    if is_archive(io.BytesIO(data)):
        unpack_archive(
            io.BytesIO(data),
            folder,
            name=Path(name).name or "The archive",
            max_bytes=MAX_UNPACKED,
            max_files=MAX_ROWS,
        )
    elif suffix in _DATA_SUFFIXES:
        (folder / f"rows{suffix}").write_bytes(data)
    else:
        hint = "Export your rows to see an example."
        raise DataError("This is neither an archive nor a table.", hint)
