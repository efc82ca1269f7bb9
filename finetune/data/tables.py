"""Tables and data sets of the `datasets` library → numbered records; pictures stay undecoded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.data.rows import PictureSource, Problem
from finetune.progress import pluralize
from vqa_app.checkpoints.source import HUB_TIMEOUT
from vqa_app.errors import DataError

FOR_TRAINING, FOR_TESTING = "for training", "for testing"
_WORDS = {
    split: re.compile(rf"(?<![a-z])({words})(?![a-z])", re.IGNORECASE)
    for split, words in (
        ("train", "train(ing)?"),
        ("test", "test(ing)?"),
        ("validation", "val(id(ation)?)?|dev"),
    )
}
"""What the splits of data sets are called."""
_ROWS_AT_ONCE = 32
"""Their pictures are in memory together while a table is read."""


@dataclass(frozen=True)
class Records:
    """The numbered records of a file; pictures that stand in a table's columns are `PictureSource`
    already.
    """

    items: list[tuple[int, Any]]
    problems: list[Problem]


@dataclass(frozen=True)
class Cell:
    """A picture in a table."""

    dataset: Any
    """In Arrow's format: as it is stored, undecoded."""
    row: int
    """From 0."""
    path: tuple[str | int, ...]
    """The column, and the keys and positions below it."""

    def read(self) -> bytes:
        column, *below = self.path
        value = self.dataset[self.row].column(column)[0].as_py()
        for step in below:
            value = value[step]
        return value if isinstance(value, bytes) else value["bytes"]


def training_files(files: Sequence[Path], folder: Path) -> list[Path]:
    """Those for training, by a word "train" in their path below `folder`; all where none is."""
    return splits_of(files, folder).get("train") or [*files]


def splits_of(files: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by the split that a word in their path below `folder` says; what has no such word is
    for training where nothing else is. Empty where no file has one.
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        name = file.relative_to(folder).as_posix()
        said = (split for split, word in _WORDS.items() if word.search(name))
        found.setdefault(next(said, ""), []).append(file)
    rest = found.pop("", [])
    return {"train": rest} | found if rest and found else found


def is_split(name: str) -> bool:
    """Whether a split would be called so."""
    return any(word.fullmatch(name) for word in _WORDS.values())


def choose_split(splits: Sequence[str], wanted: str, name: str) -> tuple[str, list[Problem]]:
    """The split to read, and a note where there is another.

    Args:
        wanted: a split that somebody named; or what the rows are for: `for training` takes the
            split train, `for testing` test or validation, and both the only one there is.

    Raises:
        DataError: there is no such split, or several might be meant.
    """
    listed = ", ".join(splits)
    if wanted not in (FOR_TRAINING, FOR_TESTING):
        if wanted not in splits:
            raise DataError(f"{name} has the splits {listed}.", f"None is called {wanted}.")
        return wanted, []
    kinds = ("train",) if wanted == FOR_TRAINING else ("test", "validation")
    alike = {kind: [s for s in splits if _WORDS[kind].fullmatch(s)] for kind in kinds}
    found = next((alike[kind] for kind in kinds if alike[kind]), list(splits))
    if len(found) > 1:
        hint = f"Say which: {name}@{found[0]}."
        raise DataError(f"{name} has the splits {listed}; none is {wanted} alone.", hint)
    if listed == found[0] == kinds[0]:
        return found[0], []
    what = f"Only the split {found[0]} is read, of {listed}."
    if len(splits) == 1:
        what = f"Its only split, {found[0]}, is read."
    return found[0], [Problem(name, None, what, note=True)]


def metadata_of(folder: Path, wanted: str, name: str) -> tuple[Path, list[Problem]] | None:
    """The table of a `datasets` picture folder, whose pictures lie beside it, and notes; None of
    another.

    Raises:
        DataError: there are several.
    """
    found = sorted(file for kind in ("csv", "jsonl") for file in folder.rglob(f"metadata.{kind}"))
    if not found:
        return None
    chosen, notes = _files_of_split(found, folder, wanted, name)
    if len(chosen) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in chosen[:5])
        raise DataError(f"{folder} has several tables: {names}.", "Give each with a --data.")
    return chosen[0], notes


def _files_of_split(
    files: Sequence[Path], folder: Path, wanted: str, name: str
) -> tuple[list[Path], list[Problem]]:
    splits = splits_of(files, folder)
    if not splits and wanted in (FOR_TRAINING, FOR_TESTING):
        return [*files], []
    split, notes = choose_split([*splits], wanted, name)
    return splits[split], notes


def read_folder(path: Path, wanted: str, name: str) -> Records:
    """Reads a `datasets` folder: one written by `save_to_disk`, or one of Parquet or Arrow
    files.

    Args:
        wanted: see `choose_split`.
    """
    import datasets

    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        with _reading(path):
            loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, dict):
            return _read_split(loaded, wanted, name)
        refuse_split(wanted, name)
        return read_table(loaded, name)
    for kind in ("parquet", "arrow"):
        if files := sorted(path.rglob(f"*.{kind}")):
            chosen, notes = _files_of_split(files, path, wanted, name)
            found = read_table(load_tables(kind, chosen), f"{name} ({wanted})")
            found.problems.extend(notes)
            return found
    raise _no_data_set(path)


def _no_data_set(folder: Path) -> DataError:
    """Says what lies in it instead."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    what = f"The folder {folder} holds no data set"
    data = [file for file in files if file.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv")]
    if 0 < len(data) <= 5:
        names = ", ".join(str(file) for file in data)
        return DataError(f"{what} that says what it is.", f"Give --data its file: {names}.")
    kinds = Counter(file.suffix.lower() or "nameless" for file in files).most_common(3)
    held = " and ".join(f"{pluralize(number, f'{kind} file')}" for kind, number in kinds)
    hint = 'Write the questions into one table with "image", "question", "answer", and give that.'
    return DataError(f"{what}: it has {held or 'no files'}.", hint)


def refuse_split(wanted: str, name: str) -> None:
    """Raises:
    DataError: somebody named a split of what has none.
    """
    if wanted not in (FOR_TRAINING, FOR_TESTING):
        raise DataError(f"{name} has no splits.", f"Leave out @{wanted}.")


def _read_split(splits: dict[str, Any], wanted: str, name: str) -> Records:
    split, notes = choose_split([*splits], wanted, name)
    found = read_table(splits[split], f"{name}@{split}")  # train and test are other pictures
    found.problems.extend(notes)
    return found


def read_hub(name: str, wanted: str) -> Records:
    """Reads a split of `owner/name` or `owner/name:config` from the Hugging Face hub; from the
    local cache where the hub cannot be reached.

    Args:
        wanted: see `choose_split`.

    Raises:
        DataError: there is none, or it cannot be had.
    """
    import datasets

    repository, _, config = name.partition(":")
    reached = _look_up(name, repository)
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        datasets.config.HF_HUB_OFFLINE = offline or not reached  # else it tries for half a minute
        splits = datasets.load_dataset(repository, config or None)
    except Exception as error:  # the library raises many kinds; all mean the same to a person
        unreached = None if reached else "The hub cannot be reached."
        raise _not_had(name, error, unreached) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return _read_split(splits, wanted, name)


def _look_up(name: str, repository: str) -> bool:
    """Whether the hub can be reached.

    Raises:
        DataError: it says that we cannot have the data set.
    """
    from huggingface_hub import HfApi, constants, errors

    if constants.is_offline_mode():
        return False
    try:
        HfApi().dataset_info(repository, timeout=HUB_TIMEOUT)
    except errors.HfHubHTTPError as error:
        if error.response is None or error.response.status_code < 500:
            raise _not_had(name, error) from error
        return False
    except (errors.HTTPError, OSError):
        return False
    except errors.HFValidationError as error:
        raise _not_had(name, error) from error
    return True


def _not_had(name: str, error: Exception, reason: str | None = None) -> DataError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DataError(
            f"The data set {name} is gated: its owner wants a licence accepted first.",
            "Accept it on its page on huggingface.co, then log in with `hf auth login`.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = "It has no such data set, or a private one."
    reason = reason or (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"There is no file or folder {name}, and it cannot be loaded from the hub: {reason}",
        "Check the path, or the name on huggingface.co and the network.",
    )


def read_table(dataset: Any, name: str) -> Records:
    """Numbers the rows of a `datasets.Dataset`. Its pictures, also those inside messages, stay
    undecoded and are read again when needed: a table may be larger than memory. Class numbers
    become the classes' names.
    """
    import datasets

    names: dict[str, Callable[[int], str]] = {}
    for column, feature in dataset.features.items():
        for label in (feature, getattr(feature, "feature", None)):
            if isinstance(label, datasets.ClassLabel):
                names[column] = label.int2str
    stored = dataset.with_format("arrow")
    features = datasets.Features(_undecoded(dict(dataset.features)))
    items: list[tuple[int, Any]] = []
    for batch in stored.iter(_ROWS_AT_ONCE):
        for record in batch.to_pylist():
            row = len(items)
            light = _light(features.decode_example(record), names, _Pictures(name, stored, row))
            items.append((row + 1, light))
    return Records(items, [])


def _undecoded(feature: Any) -> Any:
    """The same feature whose pictures are left as they are stored, however deep they stand."""
    if isinstance(feature, dict):
        return {key: _undecoded(below) for key, below in feature.items()}
    if (below := getattr(feature, "feature", None)) is not None:
        return replace(feature, feature=_undecoded(below))
    return replace(feature, decode=False) if hasattr(feature, "decode") else feature


@dataclass(frozen=True)
class _Pictures:
    """Finds the pictures of one row."""

    table: str
    dataset: Any
    row: int
    """From 0."""

    def instead(self, value: Any, *path: str | int) -> Any:
        """The value with pictures in place of their bytes."""
        if isinstance(value, list):
            return [self.instead(item, *path, place) for place, item in enumerate(value)]
        stored = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(stored, bytes) and stored:
            place = next((step + 1 for step in reversed(path) if isinstance(step, int)), 1)
            key = ".".join(map(str, (self.row + 1, *path)))
            cell = Cell(self.dataset, self.row, path)
            shown = f"{path[0]} {place} of row {self.row + 1:,}"
            return PictureSource(shown, f"{self.table}#{key}", cell)
        if isinstance(value, dict):
            return {key: self.instead(item, *path, key) for key, item in value.items()}
        return value


def _light(
    record: dict[str, Any], names: dict[str, Callable[[int], str]], pictures: _Pictures
) -> dict[str, Any]:
    """With classes by name, and of pictures only where they are."""

    def named(value: Any, name: Callable[[int], str]) -> Any:
        if isinstance(value, list):
            return [named(item, name) for item in value]
        return value if value is None or value < 0 else name(value)  # -1: nobody knows

    return {
        key: named(value, names[key]) if key in names else pictures.instead(value, key)
        for key, value in record.items()
    }


def load_tables(kind: str, files: Sequence[Path]) -> Any:
    """A `datasets.Dataset` of Parquet or Arrow files.

    Raises:
        DataError: one cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    with _reading(files[0]):
        if kind == "arrow":
            return datasets.concatenate_datasets([_arrow(str(file)) for file in files])
        return datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train")


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
