"""Every accepted format → rows.

    rows      what a row is: turns with lazily opened pictures
    files     JSON, JSONL, CSV, TSV → numbered records
    tables    Parquet, Arrow, `datasets` folders, the hub → numbered records
    values    what a cell says: lists as text, answers
    pictures  which value names a picture, and which file that is
    messages  who speaks in a conversation, and where the pictures stand
    records   one record (LLaVA, ShareGPT, OpenAI messages, the_cauldron, question/answer) → one row
    vqa2      the official VQA v2 pair of files
    split     training and held-out rows, by picture; how often a row is shown

Formats are told by content, and whatever is wrong has a file, a row and a hint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.data import files, tables, vqa_v2
from finetune.data.picture_columns import Context
from finetune.data.records import read_record, with_weight
from finetune.data.rows import BadRow, PictureSource, Problem, ReadRows, Row, Turn
from finetune.data.split import Split, split_by_picture
from finetune.data.tables import FOR_TESTING, FOR_TRAINING
from finetune.progress import pluralize
from vqa_app.errors import DataError

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

_KEYS_SHOWN = 6


def read_rows(
    sources: str | Path | Sequence[str | Path],
    images: Sequence[str | Path] = (),
    purpose: str = FOR_TRAINING,
) -> ReadRows:
    """Reads and mixes data files.

    Args:
        sources: files, folders or hub data sets, each with an optional split and weight
            (`owner/name:config@validation`, `mine.json@2`, `folder@train@0.5`).
        images: folders that picture paths are relative to; default: each file's own, and `images`
            in it.
        purpose: what the rows are for, where a source has several splits and names none:
            `FOR_TRAINING` takes train, `FOR_TESTING` test or else validation.

    Raises:
        DataError: a source that is not there. What is wrong inside files is in the result instead.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    rows: list[Row] = []
    problems: list[Problem] = []
    official: list[tuple[Path, float, dict]] = []
    for source in sources:
        text, split, weight = _parse(str(source))
        path = Path(text).expanduser()
        if _is_file(path) and (content := vqa_v2.load_official(path)) is not None:
            official.append((path, weight, content))
            continue
        records, context = _read_source(text, path, images, split, purpose)
        name = context.file
        problems += records.problems
        of_source: list[Row] = []
        for number, record in records.items:
            try:
                of_source.append(with_weight(read_record(record, number, context), weight))
            except BadRow as bad:
                problems.append(Problem(name, number, bad.message, bad.hint))
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                what = f"The row is malformed: {str(error)[:100]}."
                problems.append(Problem(name, number, what, "Compare it with the other rows."))
        rows += of_source
        problems += _doubts(name, of_source, context)
    rows += _read_official(official, images, problems)
    notes = tuple(problem for problem in problems if problem.note)
    return ReadRows(tuple(rows), tuple(p for p in problems if not p.note), notes)


def _doubts(name: str, rows: Sequence[Row], context: Context) -> Iterator[Problem]:
    """Notes on what of a source the model will not see."""
    if context.unseen:
        what = f"Pictures, or their names, that the model is not shown: {_most(context.unseen)}."
        hint = "If it is to see them, call all of a row's pictures image_1, image_2, in order."
        yield Problem(name, None, what, hint, note=True)
    if context.unshown:
        what = f"Not shown to the model: {_most(context.unshown)}."
        yield Problem(name, None, what, note=True)
    for what, count in context.remarks.items():
        yield Problem(name, None, f"{what} ({pluralize(count, 'row')}).", note=True)
    if len(rows) > 1 and not any(row.pictures for row in rows):
        what = f"None of its {len(rows):,} rows shows a picture."
        yield Problem(name, None, what, note=True)


def _most(keys: Counter[str]) -> str:
    found = keys.most_common()
    shown = ", ".join(key for key, _ in found[:_KEYS_SHOWN])
    more = f" and {len(found) - _KEYS_SHOWN} more" if len(found) > _KEYS_SHOWN else ""
    return f"{shown}{more} ({pluralize(found[0][1], 'row')})"


def check_sources(
    sources: str | Path | Sequence[str | Path], images: Sequence[str | Path] = ()
) -> None:
    """Refuses at once what `read_rows` would refuse for not being there; it takes the same.

    Raises:
        DataError: a file or folder that does not exist, or what cannot be a hub data set.
    """
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        text, _, _ = _parse(str(source))
        path = Path(text).expanduser()
        if not (path.is_dir() or _is_file(path)):
            _check_hub_name(text, path)
    _roots(images, Path())


def _check_hub_name(text: str, path: Path) -> None:
    is_data = path.suffix.lower() in files.ENDINGS
    if text.count("/") != 1 or is_data or text.startswith((".", "~", "/")):
        raise DataError(f"There is no file {text}.", "Check the path.")
    if path.parent.is_dir():
        raise DataError(
            f"There is no {path.name} in the folder {path.parent}.",
            "Check the path; to load it from the hub, start in another folder.",
        )


def _read_source(
    text: str, path: Path, images: Sequence[str | Path], split: str, purpose: str
) -> tuple[tables.Records, Context]:
    """The records, and what they are called; a picture folder's are those of its table."""
    name, wanted, folder = text, split or purpose, Path()
    if path.is_dir() and (found := tables.metadata_of(path, wanted, text)) is not None:
        table, notes = found
        name, folder = str(table), table.parent
        records = files.read_file(table, name, FOR_TRAINING)
        records.problems.extend(notes)
    elif path.is_dir():
        records, folder = tables.read_folder(path, wanted, text), path
    elif _is_file(path):
        records, folder = files.read_file(path, text, wanted), path.parent
    else:
        _check_hub_name(text, path)
        records = tables.read_hub(text, wanted)
    if split and name == text:
        name = f"{text}@{split}"
    return records, Context(name, _roots(images, folder))


def _read_official(
    found: list[tuple[Path, float, dict]], images: Sequence[str | Path], problems: list[Problem]
) -> list[Row]:
    """Pairs questions with the annotations that know their ids."""
    rows: list[Row] = []
    annotations = [item for item in found if "annotations" in item[2]]
    answered = {a.get("question_id"): c for _, _, c in annotations for a in c["annotations"]}
    for path, weight, content in (item for item in found if "questions" in item[2]):
        partner = answered.get(content["questions"][0].get("question_id"))
        if partner is None:
            hint = "Give the annotations file with another --data; answers stand there."
            problems.append(
                Problem(str(path), None, "These VQA v2 questions have no annotations.", hint)
            )
            continue
        context = Context(str(path), _roots(images, path.parent))
        rows += [
            with_weight(row, weight) for row in vqa_v2.join(content, partner, context, problems)
        ]
    if annotations and not any("questions" in item[2] for item in found):
        hint = "Give the questions file with another --data."
        name = str(annotations[0][0])
        problems.append(Problem(name, None, "These VQA v2 annotations have no questions.", hint))
    return rows


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _parse(source: str) -> tuple[str, str, float]:
    """The file, folder or data set, the split of it that is named, and its weight."""
    split, weight = "", 1.0
    path, at, last = source.rpartition("@")
    while at and last and "/" not in last and not _is_there(Path(source).expanduser()):
        try:
            weight = float(last)
        except ValueError:
            if split or not last.isidentifier():
                break
            split = last
        source = path
        path, at, last = source.rpartition("@")
    if not 0.001 <= weight <= 100:
        hint = "Give a number from 0.001 to 100."
        raise DataError(f"The weight of {source} is {weight:g}.", hint)
    return source, split, weight


def _is_there(path: Path) -> bool:
    return _is_file(path) or path.is_dir()


def _roots(images: Sequence[str | Path], default: Path) -> tuple[Path, ...]:
    if not images:
        return tuple(root.resolve() for root in (default, default / "images") if root.is_dir())
    roots = tuple(Path(root).expanduser().resolve() for root in images)
    for root in roots:
        if not root.is_dir():
            raise DataError(f"There is no folder {root}.", "Check --images.")
    return roots
