"""Answers of `vqa-app ask --each` as a table: a row for each picture, a column for each value."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vqa_app.errors import UsageError
from vqa_app.files import atomic_file
from vqa_app.prompts.conversation import replace_surrogates

ENDINGS = (".csv", ".parquet")


def is_table(path: Path) -> bool:
    """Return whether a file's name asks for a table; any other is for JSON lines."""
    return path.suffix.lower() in ENDINGS


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table; its kind is the ending of the file's name.

    Columns are the picture, the answer or each value of it that follows a schema (`size.width` for
    objects in objects; a list is one value), the confidence, and why it ended.

    Args:
        path: A `.csv` or `.parquet` file; replaced if it exists.
        rows: Rows of `--each` as JSON.

    Raises:
        UsageError: The file cannot be written.
    """
    table = [dict(_columns(row)) for row in rows]
    names = list(dict.fromkeys(name for row in table for name in row))
    last = ("confidence", "finish_reason")
    ends: list[str] = [name for name in last if name in names]
    names = [name for name in names if name not in ends] + ends
    try:
        with atomic_file(path) as temporary:
            if path.suffix.lower() == ".csv":
                _write_csv(temporary, names, table)
            else:
                _write_parquet(temporary, names, table)
    except OSError as error:
        raise UsageError(
            f"Could not write {path}: {error.strerror or error}.", "Use another file."
        ) from error


def _columns(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "picture", row["picture"]
    if isinstance(row.get("value"), dict):
        yield from _flattened(row["value"], "")
    else:
        yield "answer", row["value"] if "value" in row else row["answer"]
    yield "confidence", row["confidence"]
    if "finish_reason" in row:
        yield "finish_reason", row["finish_reason"]


def _flattened(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        if isinstance(each, dict):
            yield from _flattened(each, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", each


def _write_csv(path: Path, names: Sequence[str], table: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(replace_surrogates, names))
        for row in table:
            writer.writerow([_csv_cell(row.get(name)) for name in names])


def _csv_cell(value: Any) -> str | int | float | None:
    """Return a value as CSV has it: text and numbers as they are, everything else as JSON."""
    if isinstance(value, str):
        return replace_surrogates(value)
    return _json(value) if isinstance(value, (list, bool)) else value


def _json(value: Any) -> str:
    return replace_surrogates(json.dumps(value, ensure_ascii=False))


def _write_parquet(path: Path, names: Sequence[str], table: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name in names:
        values = [_parquet_cell(row.get(name)) for row in table]
        try:
            column = pa.array(values)
        except (pa.ArrowException, OverflowError):  # of several types, or huge numbers
            column = pa.array([None if value is None else _json(value) for value in values])
        columns[replace_surrogates(name)] = column
    pq.write_table(pa.table(columns), path)


def _parquet_cell(value: Any) -> Any:
    """Return a value as Parquet has it: lists of objects or lists become JSON."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if not isinstance(value, list):
        return value
    if any(isinstance(each, (list, dict)) for each in value):
        return _json(value)
    return [_parquet_cell(each) for each in value]
