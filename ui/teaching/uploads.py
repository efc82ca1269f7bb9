"""Files with data that somebody sent: unpacked and read without trusting them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_app.errors import DataError
from vqa_app.serving.redact import redact_options, redact_paths

if TYPE_CHECKING:
    from finetune.data.read import Problem, ReadRows, Row

MAX_ROWS = 100_000
MAX_UNPACKED = 2 << 30
_PLAIN = (".csv", ".tsv", ".json", ".jsonl")


def data_files(folder: Path) -> list[Path]:
    """What of a folder `finetune` is to read: where some files are for training, only those.

    Raises:
        DataError: there is nothing.
    """
    from finetune.data.tables import training_files

    # Our own export holds the same rows twice; the JSON says more than the table.
    for kinds in (("*.json", "*.jsonl"), ("*.csv", "*.tsv"), ("*.parquet", "*.arrow")):
        files = sorted(file for kind in kinds for file in folder.rglob(kind))
        if files:
            return training_files(files, folder)
    raise DataError("There is no data file in it.", "Add a LLaVA JSON or a CSV.")


def _refuse_outside(rows: Iterable[Row], folder: Path) -> None:
    """Checks that data which somebody sent names only its own pictures, none of the server's.

    Raises:
        DataError: a row names a file elsewhere.
    """
    for row in rows:
        for picture in row.pictures:
            path = picture.origin
            if isinstance(path, Path) and not path.resolve().is_relative_to(folder.resolve()):
                raise DataError(
                    f"Row {row.number} names a picture elsewhere: {picture.name}.",
                    "Put the picture in, and name it relative to the data file.",
                )


def told(problem: Problem) -> str:
    """What is wrong with sent data, as the sender is told it: with its row, without a path."""
    what = f"{problem.message} {redact_options(problem.hint)}".strip()
    return redact_paths(f"{problem.location}: {what}" if problem.location else what)


def read_sent(folder: Path) -> ReadRows:
    """The rows of an unpacked file that somebody sent.

    Raises:
        DataError: it holds no data, cannot be read, or names pictures of the server.
    """
    from finetune.data.read import read_rows

    found = read_rows(data_files(folder))
    _refuse_outside(found.rows, folder)
    return found


def unpack(data: bytes, folder: Path, name: str = "") -> None:
    """Unpacks a zip file of unknown origin: no links, no path out of the folder, no bomb.

    Args:
        name: of the file; a table or JSON file is taken as it is.

    Raises:
        DataError: it is not a zip file, is damaged, or unpacks to too much.
    """
    if (suffix := Path(name).suffix.lower()) in _PLAIN:
        (folder / f"rows{suffix}").write_bytes(data)
        return
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise DataError("This is not a zip file.", "Export one here to see its shape.") from error
    with archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MAX_ROWS or sum(entry.file_size for entry in entries) > MAX_UNPACKED:
            raise DataError("The zip file unpacks to too much.", "Split it.")
        left = MAX_UNPACKED
        for entry in entries:
            target = (folder / entry.filename).resolve()
            if not target.is_relative_to(folder.resolve()) or "\\" in entry.filename:
                raise DataError("The zip file names a path outside itself.", "Create it again.")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as out:
                    while chunk := source.read(1 << 20):
                        left -= len(chunk)
                        if left < 0:
                            raise DataError("The zip file unpacks to too much.", "Split it.")
                        out.write(chunk)
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
                raise DataError("The zip file is damaged or locked.", "Create it again.") from error
