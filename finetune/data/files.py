"""Files → numbered records. What a file holds is told by its content."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.data.cells import short
from finetune.data.picture_columns import names_picture
from finetune.data.records import QUESTION_KEYS
from finetune.data.rows import Problem
from finetune.data.tables import (
    Records,
    choose_split,
    is_split,
    load_tables,
    read_table,
    refuse_split,
)
from vqa_app.errors import DataError
from vqa_app.pictures.file_type import detect_type

ENDINGS = {".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt"}
"""What files of data are called; a hub's data set may have a dot in its name."""
_EXCEL = re.compile(r'"?sep=(.)"?')
"""A first line that tells Excel which character parts the fields."""
_PYARROW_STREAM = b"\xff\xff\xff\xff"


def read_file(path: Path, name: str, wanted: str) -> Records:
    """Reads JSON, JSONL, CSV, TSV, Parquet or Arrow.

    Args:
        wanted: see `choose_split`; only a JSON file has splits.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic[:4] == b"PAR1" or magic == b"ARROW1" or magic[:4] == _PYARROW_STREAM:
            refuse_split(wanted, name)
            kind = "parquet" if magic[:4] == b"PAR1" else "arrow"
            return read_table(load_tables(kind, [path]), name)
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
    if start in "[{":
        lines = [line for line in text.split("\n", 50) if line.strip()][:2]
        several = len(lines) > 1 and all(line.lstrip().startswith(start) for line in lines)
        if several and lines[0].rstrip().endswith("}" if start == "{" else "]"):
            refuse_split(wanted, name)
            return _read_jsonl(text, name, problems)
        return _read_json(text, name, wanted, problems)
    refuse_split(wanted, name)
    return _read_csv(text, name, problems)


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
        if held := _container(raw):
            problems.append(Problem(name, None, *held))
            return None
        line = raw[: error.start].count(b"\n") + 1
        problems.append(
            Problem(name, None, f"Line {line:,} is not UTF-8 text.", "Save the file as UTF-8.")
        )
        return None


def _container(raw: bytes) -> tuple[str, str] | None:
    """What holds the data instead of being it, and what to do."""
    if raw.startswith(b"PK\3\4") and b"xl/" in raw:
        return "The file is an Excel workbook.", "Save it as CSV UTF-8."
    if raw[257:262] == b"ustar":
        what = "The file is a tar archive."
        return what, "Unpack it, and write the questions into one JSON or CSV file."
    kind = detect_type(raw)
    if kind in ("an unknown format", "a text file"):
        return None
    archive = "archive" in kind
    hint = "Unpack it." if archive else "Give the JSON or CSV file with the questions."
    return f"The file is {kind if archive or kind[0].islower() else f'a {kind} picture'}.", hint


def _read_json(text: str, name: str, wanted: str, problems: list[Problem]) -> Records:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return Records([], [*problems, Problem(name, None, *explain_json_error(text, error))])
    except (RecursionError, ValueError) as error:  # a million brackets, a number of 5,000 digits
        what = f"The file is not valid JSON: {str(error)[:100]}."
        return Records([], [*problems, Problem(name, None, what)])
    if isinstance(data, dict):
        data, found = _rows_in(data, name, wanted)
        problems += found
    else:
        refuse_split(wanted, name)
    return Records(list(enumerate(data, 1)), problems)


def _rows_in(data: dict[str, Any], name: str, wanted: str) -> tuple[list[Any], list[Problem]]:
    """The rows that stand in one object, and a problem of the file where it holds none."""
    lists = {key: rows for key, rows in data.items() if isinstance(rows, list)}
    tables = {key: rows for key, rows in lists.items() if rows and isinstance(rows[0], dict)}
    if data and set(lists) == set(data) and all(map(is_split, data)):
        split, notes = choose_split([*data], wanted, name)
        return data[split], notes
    refuse_split(wanted, name)
    of_objects = bool(data) and all(isinstance(value, dict) for value in data.values())
    if {*QUESTION_KEYS, "conversations", "conversation", "messages", "texts"} & set(data):
        asked = [key for key in QUESTION_KEYS if key in lists and key not in tables]
        if not asked and not of_objects:
            return [data], []
        what = "The file holds columns, not rows."
        hint = "Write one object for each row; pandas does with to_json(path, orient='records')."
        return [], [Problem(name, None, what, hint)]
    if of_objects:  # GQA's questions by id
        return [{"id": key} | value for key, value in data.items()], []
    if "data" in tables or len(tables) == 1:
        return tables.get("data", next(iter(tables.values()))), []
    keys = ", ".join(map(repr, [*data][:8])) or "none"
    what = f"The file is one object without a list of rows; its keys are {keys}."
    hint = 'Put the rows into a list, or one on each line; each needs "question" and "answer".'
    if any("caption" in rows[0] for rows in tables.values()):
        what = "The file holds captions, which answer no question."
        hint = 'Write each as a row: "image", "question" (such as "Describe it."), "answer".'
    return [], [Problem(name, None, what, hint)]


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
    return what, "Fix the line."


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
    lines = list(io.StringIO(text, newline=""))
    start = next(place for place, line in enumerate(lines) if line.strip())
    said = _EXCEL.fullmatch(lines[start].strip("\r\n"))
    if said and start + 1 < len(lines):
        start += 1
    header = lines[start].rstrip("\r\n")
    delimiter = said[1] if said else max("\t,;|", key=header.count)
    if delimiter not in header:
        what = f"The file is neither JSON nor a table; it begins with {header[:60]!r}."
        hint = 'A table needs a header such as "image,question,answer".'
        return Records([], [*problems, Problem(name, None, what, hint)])
    csv.field_size_limit(1 << 28)
    rows = _csv_rows(lines, start, delimiter)
    _, fields = next(rows)
    if isinstance(fields, csv.Error):
        problem = Problem(name, None, f"Not a table: {fields} in its header.", "Fix the quotes.")
        return Records([], [*problems, problem])
    if any(map(names_picture, fields)):
        what = f"The first line is a row, not a header: {short(header)}."
        hint = 'Write a line such as "image,question,answer" above it.'
        return Records([], [*problems, Problem(name, None, what, hint)])
    names = [field.strip() for field in fields]
    if twice := [key for key, count in Counter(map(str.lower, names)).items() if key and count > 1]:
        problem = Problem(name, None, f"Two columns are called {twice[0]!r}.", "Rename one.")
        return Records([], [*problems, problem])
    items = []
    for number, cells in rows:
        if isinstance(cells, csv.Error):
            what = f"The row's quotes do not match: {cells}."
            problems.append(Problem(name, number, what, 'Write a quote inside text as "".'))
        elif len(cells) == len(fields):
            items.append((number, dict(zip(names, cells, strict=True))))
        elif cells:
            more = "more" if len(cells) > len(fields) else "fewer"
            what = f"The row has {len(cells)} fields, {more} than the header's {len(fields)}."
            hint = f"Put text that contains {delimiter!r} in double quotes."
            problems.append(Problem(name, number, what, hint))
    return Records(items, problems)


def _csv_rows(
    lines: Sequence[str], start: int, delimiter: str
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Line number and cells of each record from the line `start` on. Where quotes do not match, the
    error instead, and the next line is read anew: a stray quote costs its row alone. Between tabs
    it costs nothing: there many write quotes as they are.
    """
    fields = 0
    while start < len(lines):
        rest = (lines[place] for place in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, strict=True, skipinitialspace=True)
        number = start
        try:
            for cells in reader:
                end = start + reader.line_num
                if end - number > 1:
                    _check_span(lines[number + 1 : end], delimiter, fields, end)
                fields = fields or len(cells)
                yield number + 1, cells
                number = end
            return
        except csv.Error as error:
            plain = lines[number].rstrip("\r\n").split(delimiter)
            as_it_is = delimiter == "\t" and len(plain) == fields
            yield number + 1, plain if as_it_is else error
            start = number + 1


def _check_span(further: Sequence[str], delimiter: str, fields: int, end: int) -> None:
    """Raises:
    csv.Error: a row that runs on over `further` lines, up to the line `end`, has swallowed
        others: one of them is a row by itself. Text of several lines may hold commas, so there
        that row has to name a picture.
    """
    for place, line in enumerate(further, 1):
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        if len(cells) != fields:
            continue
        if place == len(further):  # behind its quote it is the rest of a row
            cells = line.partition('"')[0].split(delimiter)[:-1]
        if cells and (delimiter == "\t" or any(map(names_picture, cells))):
            raise csv.Error(f"it would run on to line {end:,}")
