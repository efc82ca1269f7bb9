"""Tables and data sets of the `datasets` library → numbered records; pictures stay undecoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.datasets.rows import PictureSource, Problem
from vqa_app.errors import DataError
from vqa_app.sources import HUB_TIMEOUT


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
        value = value[self.position] if isinstance(value, list) else value
        return value if isinstance(value, bytes) else value["bytes"]


def train_files(files: Sequence[Path], folder: Path) -> list[Path]:
    """Those for training, by a word "train" in their path below `folder`; all where none is."""
    word = re.compile(r"(^|[^a-z])train(ing)?([^a-z]|$)", re.IGNORECASE)
    return [file for file in files if word.search(file.relative_to(folder).as_posix())] or [*files]


def metadata_of(folder: Path) -> Path | None:
    """The table of a `datasets` picture folder, whose pictures lie beside it; None of another.

    Raises:
        DataError: there are several.
    """
    found = sorted(file for kind in ("csv", "jsonl") for file in folder.rglob(f"metadata.{kind}"))
    chosen = train_files(found, folder)
    if len(chosen) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in chosen[:5])
        raise DataError(f"{folder} has several tables: {names}.", "Give each with a --data.")
    return chosen[0] if chosen else None


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
            found = read_table(load_tables(kind, train), name)
            if len(train) < len(files):
                what = f"Only the train files are read, {len(train)} of {len(files)}."
                found.problems.append(Problem(name, None, what, note=True))
            return found
    raise DataError(
        f"The folder {path} holds no data set.",
        "Give the JSON or CSV file in it, a folder of Parquet files, or one of save_to_disk.",
    )


def read_hub(name: str) -> Records:
    """Reads the train split of `owner/name` or `owner/name:config` from the Hugging Face hub; from
    the local cache where the hub cannot be reached.

    Raises:
        DataError: there is none, or it cannot be had.
    """
    import datasets

    repository, _, config = name.partition(":")
    reached = _look_up(name, repository)
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        datasets.config.HF_HUB_OFFLINE = offline or not reached  # else it tries for half a minute
        return read_table(datasets.load_dataset(repository, config or None, split="train"), name)
    except Exception as error:  # the library raises many kinds; all mean the same to a person
        unreached = None if reached else "The hub cannot be reached."
        raise _not_had(name, error, unreached) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


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
    """Numbers the rows of a `datasets.Dataset`; its pictures stay undecoded and are read again when
    needed, and class numbers become the classes' names."""
    import datasets

    names: dict[str, Callable[[int], str]] = {}
    for column, feature in dataset.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        elif isinstance(inner, datasets.Image):
            kind = datasets.List(datasets.Image(decode=False))
            dataset = dataset.cast_column(column, kind)
        elif isinstance(feature, datasets.ClassLabel):
            names[column] = feature.int2str
        elif isinstance(inner, datasets.ClassLabel):
            names[column] = inner.int2str
    items = [(number, _light(record, names)) for number, record in enumerate(dataset, 1)]
    return Records(items, [], Table(name, dataset))


def _light(record: dict[str, Any], names: dict[str, Callable[[int], str]]) -> dict[str, Any]:
    """With classes by name; of pictures only that they are there, not their bytes: a table may be
    larger than memory."""

    def strip(value: Any) -> Any:
        if isinstance(value, bytes) and value:
            return {"bytes": b"", "path": None}
        if isinstance(value, dict) and value.get("bytes") is not None:
            return {"bytes": b"", "path": value.get("path")}
        return [strip(item) for item in value] if isinstance(value, list) else value

    def named(value: Any, name: Callable[[int], str]) -> Any:
        if isinstance(value, list):
            return [named(item, name) for item in value]
        return value if value is None or value < 0 else name(value)  # -1: nobody knows

    return {
        key: named(value, names[key]) if key in names else strip(value)
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
