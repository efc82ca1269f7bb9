"""Read data of any supported format into rows.

    rows             rows: turns with lazily opened pictures
    files            JSON, JSONL, CSV and TSV files -> numbered records
    tables           Parquet, Arrow, `datasets` folders and hub data sets -> numbered records
    cells            values: lists written as text, answers
    picture_columns  which values name pictures, and the files they name
    messages         conversations: roles, and where the pictures belong
    records          one record (LLaVA, ShareGPT, OpenAI, the_cauldron, question/answer) -> one row
    vqa_v2           VQA v2's official pair of files
    split            training and held-out rows

Formats are recognised by content. Each problem has a file, a row and a hint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data import files, tables, vqa_v2
from finetune.data.cells import is_missing
from finetune.data.picture_columns import Context
from finetune.data.records import read_record, with_weight
from finetune.data.rows import BadRow, PictureSource, Problem, ReadRows, Row, Turn
from finetune.data.split import Split, split_by_picture
from finetune.data.tables import FOR_TESTING, FOR_TRAINING
from finetune.progress import pluralize
from vqa_app.errors import DataError
from vqa_app.suggestions import suggest

__all__ = [
    "FOR_TESTING",
    "FOR_TRAINING",
    "PictureSource",
    "Problem",
    "ReadRows",
    "Row",
    "Split",
    "Turn",
    "check_sources",
    "read_rows",
    "split_by_picture",
]

_MAX_KEYS_SHOWN = 6


def read_rows(
    sources: str | Path | Sequence[str | Path],
    images: Sequence[str | Path] = (),
    purpose: str = FOR_TRAINING,
) -> ReadRows:
    """Read and combine data sources.

    Args:
        sources: Files, folders or hub data sets, each with an optional split and weight
            (`owner/name:config@validation`, `mine.json@2`, `folder@train@0.5`).
        images: Folders that picture paths are relative to; by default, the folder of each file and
            its subfolder `images`.
        purpose: What the rows are for. Of a source with several splits, `FOR_TRAINING` takes train,
            and `FOR_TESTING` test or else validation, unless the source names a split.

    Raises:
        DataError: A source does not exist. Errors inside a file are part of the result instead.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    rows: list[Row] = []
    problems: list[Problem] = []
    official: list[tuple[Path, float, dict[str, Any]]] = []
    for source in sources:
        text, split, weight = _parse_source(str(source))
        path = Path(text).expanduser()
        if _is_file(path) and (content := vqa_v2.load_official(path)) is not None:
            official.append((path, weight, content))
            continue
        records, context = _read_source(text, path, images, split, purpose)
        name = context.file
        problems += records.problems
        source_rows: list[Row] = []
        for number, record in records.items:
            if _is_blank(record):
                continue
            try:
                source_rows.append(with_weight(read_record(record, number, context), weight))
            except BadRow as bad:
                problems.append(Problem(name, number, bad.message, bad.hint))
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                message = f"The row is malformed: {str(error)[:100]}."
                problems.append(Problem(name, number, message, "Compare it with the other rows."))
        rows += source_rows
        problems += _notes(name, source_rows, context)
    rows += _read_official(official, images, problems)
    notes = tuple(problem for problem in problems if problem.note)
    return ReadRows(tuple(rows), tuple(p for p in problems if not p.note), notes)


def _notes(name: str, rows: Sequence[Row], context: Context) -> Iterator[Problem]:
    """Yield notes on the parts of a source that are not shown to the model."""
    if context.unused_pictures:
        keys = _list_keys(context.unused_pictures)
        message = f"Pictures or picture names that are not shown to the model: {keys}."
        hint = "To show them, name a row's picture columns image_1, image_2, ... in order."
        yield Problem(name, None, message, hint, note=True)
    if context.unused_keys:
        message = f"Not shown to the model: {_list_keys(context.unused_keys)}."
        yield Problem(name, None, message, note=True)
    for message, count in context.remarks.items():
        yield Problem(name, None, f"{message} ({pluralize(count, 'row')}).", note=True)
    if len(rows) > 1 and not any(row.pictures for row in rows):
        yield Problem(name, None, f"None of the {len(rows):,} rows has a picture.", note=True)


def _is_blank(record: Any) -> bool:
    """Return whether a record has keys and no value, like the rows below a spreadsheet's last."""
    values = record.values() if isinstance(record, Mapping) else ()
    return bool(values) and all(
        is_missing(value) or (isinstance(value, str) and not value.strip()) for value in values
    )


def _list_keys(counts: Counter[str]) -> str:
    keys = counts.most_common()
    shown = ", ".join(key for key, _ in keys[:_MAX_KEYS_SHOWN])
    more = f" and {len(keys) - _MAX_KEYS_SHOWN} more" if len(keys) > _MAX_KEYS_SHOWN else ""
    return f"{shown}{more} ({pluralize(keys[0][1], 'row')})"


def check_sources(
    sources: str | Path | Sequence[str | Path], images: Sequence[str | Path] = ()
) -> None:
    """Check that the arguments of `read_rows` name existing files and folders.

    Raises:
        DataError: A file or folder does not exist and cannot be a hub data set.
    """
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        text, _, _ = _parse_source(str(source))
        path = Path(text).expanduser()
        if not (path.is_dir() or _is_file(path)):
            _check_hub_name(text, path)
    _picture_folders(images, Path())


def _check_hub_name(text: str, path: Path) -> None:
    is_data = path.suffix.lower() in files.ENDINGS
    if text.count("/") != 1 or is_data or text.startswith((".", "~", "/")):
        hint = suggest(path, path=_may_be_data, otherwise="Check the path.")
        raise DataError(f"There is no file {text}.", hint)
    if path.parent.is_dir():
        raise DataError(
            f"There is no {path.name} in the folder {path.parent}.",
            suggest(
                path,
                path=_may_be_data,
                otherwise="Check the path; to load it from the hub, run the command in another"
                " folder.",
            ),
        )


def _may_be_data(path: Path) -> bool:
    return path.suffix.lower() in files.ENDINGS or path.is_dir()


def _read_source(
    text: str, path: Path, images: Sequence[str | Path], split: str, purpose: str
) -> tuple[tables.Records, Context]:
    """Read a source other than VQA v2's files."""
    name, split_or_purpose, folder = text, split or purpose, Path()
    if path.is_dir() and (found := tables.find_metadata(path, split_or_purpose, text)) is not None:
        table, notes = found
        name, folder = str(table), table.parent
        records = files.read_file(table, name, FOR_TRAINING)
        records.problems.extend(notes)
    elif path.is_dir():
        records, folder = tables.read_folder(path, split_or_purpose, text), path
    elif _is_file(path):
        records, folder = files.read_file(path, text, split_or_purpose), path.parent
    else:
        _check_hub_name(text, path)
        records = tables.read_hub(text, split_or_purpose)
    if split and name == text:
        name = f"{text}@{split}"
    return records, Context(name, _picture_folders(images, folder))


def _read_official(
    contents: list[tuple[Path, float, dict[str, Any]]],
    images: Sequence[str | Path],
    problems: list[Problem],
) -> list[Row]:
    """Join each VQA v2 question file with the annotation file that has its question ids."""
    rows: list[Row] = []
    annotations = [item for item in contents if "annotations" in item[2]]
    annotated = {a.get("question_id"): c for _, _, c in annotations for a in c["annotations"]}
    for path, weight, content in (item for item in contents if "questions" in item[2]):
        partner = annotated.get(content["questions"][0].get("question_id"))
        if partner is None:
            message = "These VQA v2 questions have no annotations."
            hint = "Pass the annotation file, which has the answers, with another --data."
            problems.append(Problem(str(path), None, message, hint))
            continue
        context = Context(str(path), _picture_folders(images, path.parent))
        rows += [
            with_weight(row, weight) for row in vqa_v2.join(content, partner, context, problems)
        ]
    if annotations and not any("questions" in item[2] for item in contents):
        message = "These VQA v2 annotations have no questions."
        hint = "Pass the question file with another --data."
        problems.append(Problem(str(annotations[0][0]), None, message, hint))
    return rows


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def _parse_source(source: str) -> tuple[str, str, float]:
    """Split `path@split@weight` into its parts; the split may be empty."""
    split, weight = "", 1.0
    path, at, last = source.rpartition("@")
    while at and last and "/" not in last and not _exists(Path(source).expanduser()):
        try:
            weight = float(last)
        except ValueError:
            if split or not last.isidentifier():
                break
            split = last
        source = path
        path, at, last = source.rpartition("@")
    if not 0.001 <= weight <= 100:
        raise DataError(f"The weight of {source} is {weight:g}.", "Use a number from 0.001 to 100.")
    return source, split, weight


def _exists(path: Path) -> bool:
    return _is_file(path) or path.is_dir()


def _picture_folders(images: Sequence[str | Path], default: Path) -> tuple[Path, ...]:
    if not images:
        return tuple(root.resolve() for root in (default, default / "images") if root.is_dir())
    roots = tuple(Path(root).expanduser().resolve() for root in images)
    for root in roots:
        if not root.is_dir():
            hint = suggest(root, path=Path.is_dir, otherwise="Check --images.")
            raise DataError(f"There is no folder {root}.", hint)
    return roots
