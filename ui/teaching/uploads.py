"""Uploaded data files, unpacked and read without trusting them."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_app.errors import DataError
from vqa_app.files import is_disk_error
from vqa_app.serving.redact import redact_options, redact_paths

if TYPE_CHECKING:
    from finetune.data.read import Problem, ReadRows, Row

MAX_ROWS = 100_000
"""Largest number of rows, and of files in a zip file."""
MAX_UNPACKED = 2 << 30
"""Largest size of an unpacked zip file, in bytes."""
_DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    OSError,  # an invalid bzip2 stream; a file and a folder of one name
    RuntimeError,  # a password; a feature that `zipfile` does not know
    ValueError,  # a file name that is not UTF-8
)
"""What `zipfile` raises for a damaged or encrypted file."""


def data_files(folder: Path) -> list[Path]:
    """Return the data files of a folder; if some are named as training files, only those.

    Raises:
        DataError: There is no data file.
    """
    from finetune.data.tables import training_files, visible_files

    # Our own export holds the same rows twice; JSON says more than the table.
    for kinds in (("*.json", "*.jsonl"), ("*.csv", "*.tsv"), ("*.parquet", "*.arrow")):
        if files := visible_files(folder, *kinds):
            return training_files(files, folder)
    raise DataError("The upload contains no data file.", "Add a LLaVA JSON or a CSV.")


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

    found = read_rows(data_files(folder))
    _check_picture_paths(found.rows, folder)
    return found


def unpack(data: bytes, folder: Path, name: str = "") -> None:
    """Unpack an untrusted zip file: no links, no paths outside the folder, no zip bombs.

    Args:
        data: Content of the file.
        folder: Where to unpack it.
        name: Name of the file; a table or JSON file is stored as it is.

    Raises:
        DataError: It is not a zip file, is damaged, or is too large when unpacked.
    """
    if (suffix := Path(name).suffix.lower()) in _DATA_SUFFIXES:
        (folder / f"rows{suffix}").write_bytes(data)
        return
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise DataError("This is not a zip file.", "Export your rows to see an example.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _unpack_entries(archive, folder)
    except _DAMAGED as error:
        if is_disk_error(error):
            raise
        raise DataError("The zip file is damaged or encrypted.", "Create it again.") from error


def _unpack_entries(archive: zipfile.ZipFile, folder: Path) -> None:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_ROWS or sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise DataError("The zip file is too large when unpacked.", "Split it.")
    left = MAX_UNPACKED
    for entry in entries:
        target = (folder / entry.filename).resolve()
        if not target.is_relative_to(folder.resolve()) or "\\" in entry.filename:
            raise DataError("The zip file contains a path outside its folder.", "Create it again.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("wb") as out:
            while chunk := source.read(1 << 20):
                left -= len(chunk)
                if left < 0:  # the sizes in the list of entries may be false
                    raise DataError("The zip file is too large when unpacked.", "Split it.")
                out.write(chunk)
