"""Read data files into numbered records; the format is recognised by the content."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.data.cells import shorten
from finetune.data.picture_columns import picture_kind
from finetune.data.records import CONVERSATION_KEYS, QUESTION_KEYS
from finetune.data.rows import Problem
from finetune.data.tables import (
    Records,
    choose_split,
    is_split_name,
    load_tables,
    read_table,
    refuse_split,
)
from vqa_app.errors import DataError
from vqa_app.files import JSON_ERRORS, json_problem
from vqa_app.pictures.file_type import detect_type

ENDINGS = {".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt"}
"""Endings of data files; the name of a hub data set may contain a dot."""
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?')
"""A first line that tells Excel which character separates the fields."""
_ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE_ENCODINGS = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_BINARY_HEAD = 16
"""A zero byte among so many first ones shows that a file is no text, such as a database."""
_LEAST_ASCII = 0.05
"""Share of ASCII characters in text; one in 512 of other data read as UTF-16 is ASCII."""


def read_file(path: Path, name: str, split_or_purpose: str) -> Records:
    """Read a JSON, JSONL, CSV, TSV, Parquet or Arrow file.

    Args:
        path: The file.
        name: Its name for error messages.
        split_or_purpose: See `choose_split`; only JSON files have splits.

    Raises:
        DataError: The file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic[:4] == b"PAR1" or magic == b"ARROW1" or magic[:4] == _ARROW_STREAM_MAGIC:
            refuse_split(split_or_purpose, name)
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
            refuse_split(split_or_purpose, name)
            return _read_jsonl(text, name, problems)
        return _read_json(text, name, split_or_purpose, problems)
    refuse_split(split_or_purpose, name)
    return _read_csv(text, name, problems)


def _decode(raw: bytes, name: str, problems: list[Problem]) -> str | None:
    """Decode UTF-8, UTF-16 or UTF-32; None if the content is none, with a problem that says why."""
    encoding = _guess_encoding(raw)
    if encoding != "utf-8":
        label = encoding.upper().removesuffix("-LE").removesuffix("-BE")
        problems.append(Problem(name, None, f"The file is {label}; read as such.", note=True))
    elif raw.startswith(codecs.BOM_UTF8):
        problems.append(
            Problem(name, None, "The file begins with a byte-order mark; ignored.", note=True)
        )
    found = _describe_other_type(raw)
    if found is None and encoding == "utf-8" and b"\0" in raw[:_BINARY_HEAD]:
        found = "The file is binary, not text.", "Give a JSON, CSV or Parquet file."
    if found and b"\0" in raw[:_BINARY_HEAD]:
        problems.append(Problem(name, None, *found))
        return None
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if found:
            problems.append(Problem(name, None, *found))
            return None
        line = raw[: error.start].decode(encoding, "replace").count("\n") + 1
        message = f"Line {line:,} is not {encoding.upper()} text."
        problems.append(Problem(name, None, message, "Save the file as UTF-8."))
        return None


def _guess_encoding(raw: bytes) -> str:
    """Return the encoding that the byte-order mark names, or the one that gives readable text.

    UTF-16 and UTF-32 without a mark are recognised by the zero bytes of their ASCII characters:
    decoded rightly, the beginning of a data file has no NUL, some ASCII, and a bracket or the name
    of a column first.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            return encoding
    sample = raw[:4096]
    if b"\0" in sample and _describe_other_type(raw) is None:
        for encoding in _WIDE_ENCODINGS:
            text = codecs.getincrementaldecoder(encoding)("replace").decode(sample)
            ascii_share = sum(map(str.isascii, text)) / max(1, len(text))
            readable = "\0" not in text and "\ufffd" not in text and text[:1].isascii()
            if readable and ascii_share > _LEAST_ASCII:
                return encoding
    return "utf-8"


def _describe_other_type(raw: bytes) -> tuple[str, str] | None:
    """Return message and hint for a file that is no data file, such as an archive; else None."""
    if raw.startswith(b"PK\3\4") and b"xl/" in raw:
        return "The file is an Excel workbook.", "Save it as CSV UTF-8."
    if raw.startswith(b"PK\3\4") and b"opendocument.spreadsheet" in raw[:200]:
        return "The file is a LibreOffice spreadsheet.", "Save it as CSV UTF-8."
    kind = detect_type(raw)
    if kind in ("an unknown format", "a text file"):
        return None
    archive = "archive" in kind
    hint = "Unpack it." if archive else "Give the JSON or CSV file with the questions."
    return f"The file is {kind if archive or kind[0].islower() else f'a {kind} picture'}.", hint


def _read_json(text: str, name: str, split_or_purpose: str, problems: list[Problem]) -> Records:
    try:
        data = _load_json(text)
    except json.JSONDecodeError as error:
        return Records([], [*problems, Problem(name, None, *explain_json_error(text, error))])
    except JSON_ERRORS as error:  # a million brackets, a number of 5,000 digits
        message = f"The file is not valid JSON: {json_problem(error)}."
        return Records([], [*problems, Problem(name, None, message)])
    if isinstance(data, dict):
        if isinstance(data, _AmbiguousObject):
            return Records([], [*problems, Problem(name, None, *data.problem)])
        data, found = _find_rows(data, name, split_or_purpose)
        problems += found
    else:
        refuse_split(split_or_purpose, name)
    return Records(_without_ambiguous(list(enumerate(data, 1)), name, problems), problems)


class _AmbiguousObject(dict[str, Any]):
    """A JSON object that has a key twice, with different values."""

    key: str

    @property
    def problem(self) -> tuple[str, str]:
        """Message and hint."""
        return f"The key {self.key!r} is written twice, with different values.", "Remove one."


def _load_json(text: str) -> Any:
    """Parse JSON; objects with repeated keys, of which `json` keeps the last, are marked."""
    return json.loads(text, object_pairs_hook=_make_object)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    for key, value in pairs:
        if value != values[key]:
            values = _AmbiguousObject(values)
            values.key = key
            break
    return values


def _without_ambiguous(
    items: list[tuple[int, Any]], name: str, problems: list[Problem]
) -> list[tuple[int, Any]]:
    """Return the rows without those in which a key has two values, which become problems."""
    kept = []
    for number, row in items:
        if (ambiguous := _find_ambiguous(row)) is None:
            kept.append((number, row))
        else:
            problems.append(Problem(name, number, *ambiguous.problem))
    return kept


def _find_ambiguous(value: Any) -> _AmbiguousObject | None:
    if isinstance(value, _AmbiguousObject):
        return value
    if isinstance(value, (dict, list)):
        nested = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_find_ambiguous, nested)), None)
    return None


def _find_rows(
    data: dict[str, Any], name: str, split_or_purpose: str
) -> tuple[list[Any], list[Problem]]:
    """Return the rows inside a JSON object, and problems or notes about the file."""
    lists = {key: rows for key, rows in data.items() if isinstance(rows, list)}
    tables = {key: rows for key, rows in lists.items() if rows and isinstance(rows[0], dict)}
    if data and set(lists) == set(data) and all(map(is_split_name, data)):
        split, notes = choose_split([*data], split_or_purpose, name)
        return data[split], notes
    refuse_split(split_or_purpose, name)
    all_objects = bool(data) and all(isinstance(value, dict) for value in data.values())
    if {*QUESTION_KEYS, *CONVERSATION_KEYS, "texts"} & set(data):
        columns = [key for key in QUESTION_KEYS if key in lists and key not in tables]
        if not columns and not all_objects:
            return [data], []
        message = "The file holds columns, not rows."
        hint = "Write one object per row; in pandas, use to_json(path, orient='records')."
        return [], [Problem(name, None, message, hint)]
    if all_objects:  # GQA's questions by id
        return [{"id": key} | value for key, value in data.items()], []
    if "data" in tables or len(tables) == 1:
        return tables.get("data", next(iter(tables.values()))), []
    keys = ", ".join(map(repr, [*data][:8])) or "none"
    message = f"The file is one object without a list of rows; its keys are {keys}."
    hint = 'Write the rows as a list, or one per line; each needs "question" and "answer".'
    if any("caption" in rows[0] for rows in tables.values()):
        message = "The file holds captions without questions."
        hint = 'Write each as a row: "image", "question" (such as "Describe it."), "answer".'
    return [], [Problem(name, None, message, hint)]


def explain_json_error(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """Return a message with the line of a JSON error, and a hint how to fix it."""
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
            "Put all objects into [ ], separated by commas, or one per line, without commas.",
        )
    if not at:
        return (
            f"The file ends in the middle of a value, at line {line:,}.",
            "Check that it is not cut off.",
        )
    if at == "'":
        return f"Line {line:,} has text in single quotes.", "JSON needs double quotes."
    if "delimiter" in error.msg and before[-1:] in '"}]' and at in '"{[':
        line = text.count("\n", 0, len(before)) + 1
        return (
            f"A comma is missing after line {line:,}, column {len(before.rpartition(chr(10))[2])}.",
            "",
        )
    if "control character" in error.msg:
        return f"Line {line:,} has a line break or tab inside text.", "Write it as \\n or \\t."
    excerpt = text.splitlines()[line - 1].strip()[:60] if line <= text.count("\n") + 1 else ""
    message = f"Line {line:,}, column {column} is not JSON: {excerpt!r}."
    return message, "Fix the line."


def _read_jsonl(text: str, name: str, problems: list[Problem]) -> Records:
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            items.append((number, _load_json(line)))
        except json.JSONDecodeError as error:
            message, hint = explain_json_error(line, error)
            message = message.replace("Line 1 ", "The line ").replace("Line 1,", "The line,")
            problems.append(Problem(name, number, message.replace(", at line 1", ""), hint))
        except JSON_ERRORS as error:  # as in `_read_json`
            message = f"The line is not valid JSON: {json_problem(error)}."
            problems.append(Problem(name, number, message))
    return Records(_without_ambiguous(items, name, problems), problems)


def _read_csv(text: str, name: str, problems: list[Problem]) -> Records:
    lines = list(io.StringIO(text, newline=""))
    start = next(position for position, line in enumerate(lines) if line.strip())
    separator = _EXCEL_SEPARATOR.fullmatch(lines[start].strip("\r\n"))
    if separator and start + 1 < len(lines):
        start += 1
    header = lines[start].rstrip("\r\n")
    delimiter = separator[1] if separator else max("\t,;|", key=header.count)

    def refused(message: str, hint: str) -> Records:
        return Records([], [*problems, Problem(name, None, message, hint)])

    if delimiter not in header:
        if found := _describe_other_type(text[:1000].encode()):  # a web page, a Git LFS pointer
            return refused(*found)
        return refused(
            f"The file has neither JSON objects nor a table; it begins with {shorten(header)}.",
            'A table needs a header such as "image,question,answer".',
        )
    csv.field_size_limit(1 << 28)
    rows = _csv_rows(lines, start, delimiter)
    _, fields = next(rows)
    if isinstance(fields, csv.Error):
        return refused(f"Not a table: {fields} in its header.", "Fix the quotes.")
    if any(map(picture_kind, fields)):
        return refused(
            f"The first line is a row, not a header: {shorten(header)}.",
            'Add a line such as "image,question,answer" above it.',
        )
    names = [field.strip() for field in fields]
    counts = Counter(map(str.lower, names))
    if repeated := [key for key, count in counts.items() if key and count > 1]:
        return refused(f"Two columns are called {repeated[0]!r}.", "Rename one.")
    items = []
    for number, cells in rows:
        if isinstance(cells, csv.Error):
            message = f"The row's quotes do not match: {cells}."
            problems.append(Problem(name, number, message, 'Write a quote inside text as "".'))
        elif not any(map(str.strip, cells)):
            continue  # spreadsheets leave such lines at the end
        elif len(cells) == len(fields):
            items.append((number, dict(zip(names, cells, strict=True))))
        else:
            more = "more" if len(cells) > len(fields) else "fewer"
            message = f"The row has {len(cells)} fields, {more} than the header's {len(fields)}."
            hint = f"Put text that contains {delimiter!r} in double quotes."
            problems.append(Problem(name, number, message, hint))
    return Records(items, problems)


def _csv_rows(
    lines: Sequence[str], start: int, delimiter: str
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield the line number and cells of each record from the line `start` on.

    If a record's quotes do not match, yield the error instead and continue at the next line, so
    that a stray quote makes only its own row unusable. In tab-separated files, where quotes are
    often literal text, such a line is split at the tabs.
    """
    fields = 0
    while start < len(lines):
        rest = (lines[position] for position in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, strict=True, skipinitialspace=True)
        number = start
        try:
            for cells in reader:
                end = start + reader.line_num
                if end - number > 1:
                    _check_continuation(lines[number + 1 : end], delimiter, fields, end)
                fields = fields or len(cells)
                yield number + 1, cells
                number = end
            return
        except csv.Error as error:
            plain = lines[number].rstrip("\r\n").split(delimiter)
            is_plain = delimiter == "\t" and len(plain) == fields
            yield number + 1, plain if is_plain else error
            start = number + 1


def _check_continuation(lines: Sequence[str], delimiter: str, fields: int, end: int) -> None:
    """Check that the continuation lines of a record are not records themselves.

    Quoted text of several lines may contain commas. In comma-separated files, a line therefore
    counts as a record only if it names a picture.

    Args:
        lines: The lines of the record after its first.
        delimiter: The character that separates fields.
        fields: Number of fields of a record.
        end: Number of the record's last line.

    Raises:
        csv.Error: One of the lines is a record.
    """
    for position, line in enumerate(lines, 1):
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        if len(cells) != fields:
            continue
        if position == len(lines):  # what follows the closing quote belongs to the record
            cells = line.partition('"')[0].split(delimiter)[:-1]
        if cells and (delimiter == "\t" or any(map(picture_kind, cells))):
            raise csv.Error(f"it would continue to line {end:,}")
