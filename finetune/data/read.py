"""Read data of any supported format into rows.

    rows             rows: turns with lazily opened pictures
    archives         zip, tar and compressed files -> the data files inside
    files            JSON, JSONL, CSV and TSV files -> numbered records
    tables           Parquet, Arrow, `datasets` folders and hub data sets -> numbered records
    cells            values: lists written as text, answers
    picture_columns  which values name pictures, and the files they name
    picture_marks    marks in a text that stand for a picture
    messages         conversations: roles, and where the pictures belong
    records          one record (LLaVA, ShareGPT, OpenAI, the_cauldron, question/answer) -> one row
    vqa_v2           VQA v2's official pair of files
    split            training and held-out rows

Formats are recognised by content. Each problem has a file, a row and a hint.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.data import archives, files, tables, vqa_v2
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
_DATA_ENDINGS = {*files.ENDINGS, *archives.ENDINGS}


def read_rows(
    sources: str | Path | Sequence[str | Path],
    images: Sequence[str | Path] = (),
    purpose: str = FOR_TRAINING,
) -> ReadRows:
    """Read and combine data sources.

    Args:
        sources: Files, archives, folders or hub data sets, each with an optional split and weight
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
    official: list[tuple[_Source, dict[str, Any]]] = []
    for source in _expand(sources, purpose, problems):
        if _is_file(source.path) and (content := vqa_v2.load_official(source.path)) is not None:
            official.append((source, content))
            continue
        records, context = _read_source(source, images)
        name = context.file
        problems += map(source.with_archive_name, records.problems)
        source_rows: list[Row] = []
        for number, record in records.items:
            if _is_blank(record):
                continue
            try:
                row = read_record(record, number, context)
                source_rows.append(with_weight(row, source.weight))
            except BadRow as bad:
                problem = Problem(name, number, bad.message, bad.hint)
                problems.append(source.with_archive_name(problem))
            except (ValueError, TypeError, IndexError, AttributeError):
                message = "The row is not laid out as its keys suggest."
                problems.append(Problem(name, number, message, "Compare it with the other rows."))
        rows += source_rows
        problems += _notes(name, source_rows, context)
    rows += _read_official(official, images, problems)
    notes = tuple(problem for problem in problems if problem.note)
    return ReadRows(tuple(rows), tuple(p for p in problems if not p.note), notes)


@dataclass(frozen=True)
class _Source:
    """One file, folder or hub data set, on its own or from an archive."""

    text: str
    """Its name as given; in an archive, the archive's and the path inside."""
    path: Path
    split: str
    weight: float
    purpose: str
    archive: str = ""
    unpacked: Path = Path()
    """The folder of the archive's content."""

    @property
    def split_or_purpose(self) -> str:
        """See `tables.choose_split`."""
        return self.split or self.purpose

    def with_archive_name(self, problem: Problem) -> Problem:
        """Return the problem with the archive's name where it has the folder's."""
        if not self.archive:
            return problem
        found, shown = str(self.unpacked), self.archive
        return replace(
            problem,
            file=problem.file.replace(found, shown),
            message=problem.message.replace(found, shown),
            hint=problem.hint.replace(found, shown),
        )

    def picture_folders(self, images: Sequence[str | Path], folder: Path) -> tuple[Path, ...]:
        """Return the folders that picture paths are relative to.

        Args:
            images: See `read_rows`.
            folder: The folder of the data file.
        """
        folders = _picture_folders(images, folder)
        if images or not self.archive:
            return folders
        return tuple(dict.fromkeys((*folders, *_picture_folders((), self.unpacked))))


def _expand(
    sources: Sequence[str | Path], purpose: str, problems: list[Problem]
) -> Iterator[_Source]:
    """Yield each source; of an archive, each data file in it."""
    for given in sources:
        text, split, weight = _parse_source(str(given))
        path = Path(os.path.expanduser(text))
        source = _Source(text, path, split, weight, purpose)
        if not (_is_file(path) and _is_archive(path)):
            yield source
            continue
        folder = archives.unpacked(path)
        source = replace(source, archive=text, unpacked=folder)
        found, notes, split = archives.find_data(folder, source.split_or_purpose, text)
        problems += map(source.with_archive_name, notes)
        for inner in found:
            name = text if inner == folder else f"{text}/{inner.relative_to(folder).as_posix()}"
            yield replace(source, text=name, path=inner, split=split)


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
        path = Path(os.path.expanduser(text))
        if not (path.is_dir() or _is_file(path)):
            _check_hub_name(text, path)
    _picture_folders(images, Path())


def _check_hub_name(text: str, path: Path) -> None:
    is_data = path.suffix.lower() in _DATA_ENDINGS
    if os.path.exists(path):
        raise DataError(f"{text} is a pipe or device.", "Save the data to a file first.")
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
    return path.suffix.lower() in _DATA_ENDINGS or path.is_dir()


def _read_source(source: _Source, images: Sequence[str | Path]) -> tuple[tables.Records, Context]:
    """Read a source other than VQA v2's files."""
    path, name, folder = source.path, source.text, Path()
    wanted = source.split_or_purpose
    if path.is_dir() and (found := tables.find_metadata(path, wanted, name)) is not None:
        table, notes = found
        name, folder = str(table), table.parent
        if source.archive:
            name = name.replace(str(source.unpacked), source.archive)
        records = files.read_file(table, name, FOR_TRAINING)
        records.problems.extend(notes)
    elif path.is_dir():
        records, folder = tables.read_folder(path, wanted, name), path
    elif _is_file(path):
        records, folder = files.read_file(path, name, wanted), path.parent
    else:
        _check_hub_name(name, path)
        records = tables.read_hub(name, wanted)
    if source.split and name == source.text:
        name = f"{name}@{source.split}"
    return records, Context(name, source.picture_folders(images, folder))


def _read_official(
    contents: list[tuple[_Source, dict[str, Any]]],
    images: Sequence[str | Path],
    problems: list[Problem],
) -> list[Row]:
    """Join each VQA v2 question file with the annotation file that has its question ids."""
    rows: list[Row] = []
    annotations = [item for item in contents if "annotations" in item[1]]
    annotated = {a.get("question_id"): c for _, c in annotations for a in c["annotations"]}
    for source, content in (item for item in contents if "questions" in item[1]):
        partner = annotated.get(content["questions"][0].get("question_id"))
        if partner is None:
            message = "These VQA v2 questions have no annotations."
            hint = "Pass the annotation file, which has the answers, with another --data."
            problems.append(Problem(source.text, None, message, hint))
            continue
        context = Context(source.text, source.picture_folders(images, source.path.parent))
        found: list[Problem] = []
        joined = [*vqa_v2.join(content, partner, context, found)]
        rows += [with_weight(row, source.weight) for row in joined]
        problems += map(source.with_archive_name, found)
    if annotations and not any("questions" in item[1] for item in contents):
        message = "These VQA v2 annotations have no questions."
        hint = "Pass the question file with another --data."
        problems.append(Problem(annotations[0][0].text, None, message, hint))
    return rows


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def _is_archive(path: Path) -> bool:
    try:
        return archives.is_archive(path)
    except OSError:  # reported when it is read as an ordinary file
        return False


def _parse_source(source: str) -> tuple[str, str, float]:
    """Split `path@split@weight` into its parts; the split may be empty."""
    split, weight = "", 1.0
    path, at, last = source.rpartition("@")
    while at and last and "/" not in last and not _exists(Path(os.path.expanduser(source))):
        try:
            weight = float(last)
        except ValueError:
            if split or not last.isidentifier():
                break
            split = last
        source = path
        path, at, last = source.rpartition("@")
    if not source.strip():
        raise DataError("Expected the name of a data file, got none.", "Give a file or folder.")
    if not 0.001 <= weight <= 100:
        raise DataError(f"The weight of {source} is {weight:g}.", "Use a number from 0.001 to 100.")
    return source, split, weight


def _exists(path: Path) -> bool:
    return _is_file(path) or path.is_dir()


def _picture_folders(images: Sequence[str | Path], default: Path) -> tuple[Path, ...]:
    if not images:
        return tuple(root.resolve() for root in (default, default / "images") if root.is_dir())
    roots = tuple(Path(os.path.expanduser(root)).resolve() for root in images)
    for root in roots:
        if not root.is_dir():
            hint = suggest(root, path=Path.is_dir, otherwise="Check --images.")
            raise DataError(f"There is no folder {root}.", hint)
    return roots
