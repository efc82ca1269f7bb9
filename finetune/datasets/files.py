"""Files → numbered records. What a file holds is told by its content."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.datasets.records import QUESTION_KEYS
from finetune.datasets.rows import PictureSource, Problem
from vqa_app.errors import DataError

ENDINGS = {".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt"}
"""What files of data are called; a hub's data set may have a dot in its name."""
_PYARROW_STREAM = b"\xff\xff\xff\xff"


@dataclass(frozen=True)
class Records:
    """The numbered records of a file; `table` holds pictures that stand in columns."""

    items: list[tuple[int, Any]]
    problems: list[Problem]
    table: Table | None = None


@dataclass(frozen=True)
class Table:
    """A `datasets.Dataset` whose picture columns give bytes."""

    name: str
    dataset: Any

    def picture(self, row: int, column: str, position: int) -> PictureSource:
        name = f"{column} {position + 1} of row {row:,}"
        key = f"{self.name}#{row}.{column}.{position}"
        return PictureSource(name, key, Cell(self.dataset, row - 1, column, position))


@dataclass(frozen=True)
class Cell:
    """A picture in a table."""

    dataset: Any
    row: int
    """From 0."""
    column: str
    position: int
    """Where the cell holds several."""

    def read(self) -> bytes:
        value = self.dataset[self.row][self.column]
        return (value[self.position] if isinstance(value, list) else value)["bytes"]


def read_file(path: Path, name: str) -> Records:
    """Reads JSON, JSONL, CSV, TSV, Parquet or Arrow.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic[:4] == b"PAR1":
            return read_table(_load("parquet", str(path)), name)
        if magic == b"ARROW1" or magic[:4] == _PYARROW_STREAM:
            return read_table(_load("arrow", str(path)), name)
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error
    problems: list[Problem] = []
    text = _decode(raw, name, problems)
    if text is None:
        return Records([], problems)
    start = text.lstrip()[:1]
    if not start:
        return Records([], [Problem(name, None, "The file is empty.")])
    if start == "[":
        return _read_json(text, name, problems)
    if start == "{":
        lines = [line for line in text.split("\n", 50) if line.strip()][:2]
        several = len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines)
        if several and lines[0].rstrip().endswith("}"):
            return _read_jsonl(text, name, problems)
        return _read_json(text, name, problems)
    return _read_csv(text, name, problems)


def train_files(files: Sequence[Path], folder: Path) -> list[Path]:
    """Those for training, by a word "train" in their path below `folder`; all where none is."""
    word = re.compile(r"(^|[^a-z])train(ing)?([^a-z]|$)", re.IGNORECASE)
    return [file for file in files if word.search(file.relative_to(folder).as_posix())] or [*files]


def read_folder(path: Path, name: str) -> Records:
    """Reads a `datasets` folder: one written by `save_to_disk`, or one of Parquet or Arrow
    files."""
    import datasets

    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        with _reading(path):
            loaded = datasets.load_from_disk(str(path))
        if not isinstance(loaded, dict):
            return read_table(loaded, name)
        if "train" not in loaded:
            splits = ", ".join(loaded)
            raise DataError(f"{path} has the splits {splits}.", "Give one of these folders.")
        return read_table(loaded["train"], name)
    for kind in ("parquet", "arrow"):
        files = sorted(path.rglob(f"*.{kind}"))
        train = train_files(files, path)
        if files:
            found = read_table(_load(kind, list(map(str, train))), name)
            if len(train) < len(files):
                what = f"Only the train files are read, {len(train)} of {len(files)}."
                found.problems.append(Problem(name, None, what, note=True))
            return found
    raise DataError(
        f"The folder {path} holds no data set.",
        "Give the JSON or CSV file in it, a folder of Parquet files, or one of save_to_disk.",
    )


def read_hub(name: str) -> Records:
    """Reads the train split of `owner/name` or `owner/name:config` from the Hugging Face hub."""
    import datasets

    repository, _, config = name.partition(":")
    try:
        return read_table(datasets.load_dataset(repository, config or None, split="train"), name)
    except Exception as error:  # the library raises many kinds; all mean the same to a person
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"There is no file or folder {name}, and it cannot be loaded from the hub: {reason}",
            "Check the path, or the name on huggingface.co and the network.",
        ) from error


def read_table(dataset: Any, name: str) -> Records:
    """Numbers the rows of a `datasets.Dataset`; its pictures stay undecoded and are read again when
    needed."""
    import datasets

    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            kind = datasets.List(datasets.Image(decode=False))
            dataset = dataset.cast_column(column, kind)
    items = [(number, _without_bytes(record)) for number, record in enumerate(dataset, 1)]
    return Records(items, [], Table(name, dataset))


def _without_bytes(record: dict[str, Any]) -> dict[str, Any]:
    """Keeps that there is a picture, not its bytes: a table may be larger than memory."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict) and value.get("bytes") is not None:
            return {"bytes": b"", "path": value.get("path")}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return {key: strip(value) for key, value in record.items()}


def _load(kind: str, files: str | list[str]) -> Any:
    import datasets

    if isinstance(files, str):
        files = [files]
    datasets.disable_progress_bars()
    with _reading(files[0]):
        if kind == "arrow":
            return datasets.concatenate_datasets([_arrow(file) for file in files])
        return datasets.load_dataset("parquet", data_files=files, split="train")


def _arrow(file: str) -> Any:
    """`datasets` writes streams, pyarrow and others files too."""
    import datasets
    import pyarrow

    try:
        return datasets.Dataset.from_file(file)
    except pyarrow.ArrowInvalid:
        return datasets.Dataset(pyarrow.ipc.open_file(file).read_all())


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """The libraries raise many kinds; all mean the same to a person."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"Cannot read {path}: {reason}", "Is it whole? Save it again.") from error


def _decode(raw: bytes, name: str, problems: list[Problem]) -> str | None:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        problems.append(Problem(name, None, "The file is UTF-16; read as such.", note=True))
        return raw.decode("utf-16", "replace")
    if raw.startswith(b"\xef\xbb\xbf"):
        problems.append(
            Problem(name, None, "The file begins with a byte-order mark; ignored.", note=True)
        )
        raw = raw[3:]
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        problems.append(
            Problem(name, None, f"Line {line:,} is not UTF-8 text.", "Save the file as UTF-8.")
        )
        return None


def _read_json(text: str, name: str, problems: list[Problem]) -> Records:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return Records([], [*problems, Problem(name, None, *explain_json_error(text, error))])
    except (RecursionError, ValueError) as error:  # a million brackets, a number of 5,000 digits
        what = f"The file is not valid JSON: {str(error)[:100]}."
        return Records([], [*problems, Problem(name, None, what)])
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        tables = [value for value in lists if value and isinstance(value[0], dict)]
        is_row = {*QUESTION_KEYS, "conversations", "conversation", "messages", "texts"} & set(data)
        data = tables[0] if len(tables) == 1 and not is_row else [data]
    return Records(list(enumerate(data, 1)), problems)


def explain_json_error(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """What is wrong with JSON and how to mend it, with the line."""
    before = text[: error.pos].rstrip()
    at = text[error.pos :].lstrip()[:1]
    line, column = error.lineno, error.colno
    if before.endswith(",") and at in ("]", "}"):
        line = text.count("\n", 0, len(before) - 1) + 1
        return f"Line {line:,} ends with a comma before {at!r}.", "Remove the trailing comma."
    if "trailing comma" in error.msg:  # Python 3.13 points at the comma itself
        return f"Line {line:,} ends with a comma before a bracket.", "Remove the trailing comma."
    if "Extra data" in error.msg and before.endswith("}") and at in ",{":
        line = text.count("\n", 0, len(before)) + 1
        return (
            f"A second object begins after line {line:,}.",
            "Put all of them into [ ], with commas between, or one on each line, without commas.",
        )
    if not at:
        return f"The file ends in the middle of a value, at line {line:,}.", "Is it cut off?"
    if at == "'":
        return f"Line {line:,} has text in single quotes.", "JSON wants double quotes."
    if "delimiter" in error.msg and before[-1:] in '"}]' and at in '"{[':
        line = text.count("\n", 0, len(before)) + 1
        return (
            f"A comma is missing after line {line:,}, column {len(before.rpartition(chr(10))[2])}.",
            "",
        )
    if "control character" in error.msg:
        return f"Line {line:,} has a line break or tab inside text.", "Write it as \\n or \\t."
    excerpt = text.splitlines()[line - 1].strip()[:60] if line <= text.count("\n") + 1 else ""
    what = f"Line {line:,}, column {column} is not JSON ({error.msg}): {excerpt!r}."
    return what, "Mend the line."


def _read_jsonl(text: str, name: str, problems: list[Problem]) -> Records:
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            items.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            what, hint = explain_json_error(line, error)
            what = what.replace("Line 1 ", "The line ").replace("Line 1,", "The line,")
            problems.append(Problem(name, number, what.replace(", at line 1", ""), hint))
    return Records(items, problems)


def _read_csv(text: str, name: str, problems: list[Problem]) -> Records:
    header = text.split("\n", 1)[0]
    delimiter = max("\t,;", key=header.count)
    if delimiter not in header:
        what = f"The file is neither JSON nor a table; it begins with {header[:60]!r}."
        hint = 'A table needs a header such as "image,question,answer".'
        return Records([], [*problems, Problem(name, None, what, hint)])
    csv.field_size_limit(1 << 28)
    return Records(list(_csv_rows(text, name, delimiter, problems)), problems)


def _csv_rows(
    text: str, name: str, delimiter: str, problems: list[Problem]
) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1
    try:
        fields = [field.strip() for field in next(reader)]
        number = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(fields):
                yield number, dict(zip(fields, cells, strict=True))
            elif cells:
                more = "more" if len(cells) > len(fields) else "fewer"
                what = f"The row has {len(cells)} fields, {more} than the header's {len(fields)}."
                hint = f"Put text that contains {delimiter!r} in double quotes."
                problems.append(Problem(name, number, what, hint))
            number = reader.line_num + 1
    except csv.Error as error:
        problems.append(
            Problem(name, number, f"Not a table from here on: {error}.", "Mend the quotes.")
        )
