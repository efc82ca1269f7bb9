"""Read tables and data sets of the `datasets` library into numbered records.

Pictures are not decoded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.rows import PictureSource, Problem
from finetune.progress import pluralize
from vqa_app.checkpoints.snapshot import download_files
from vqa_app.checkpoints.source import HUB_TIMEOUT
from vqa_app.errors import DataError, first_line
from vqa_app.proxies import proxy_problem

FOR_TRAINING, FOR_TESTING = "for training", "for testing"
_SPLIT_WORDS = {
    split: re.compile(rf"(?<![a-z])({words})(?![a-z])", re.IGNORECASE)
    for split, words in (
        ("train", "train(ing)?"),
        ("test", "test(ing)?"),
        ("validation", "val(id(ation)?)?|dev"),
    )
}
"""What data sets call their splits."""
_CONTROL = re.compile(r"[\0-\x08\x0e-\x1f]")
"""Matches characters that text does not contain."""
_BATCH_ROWS = 32
"""Rows whose pictures are in memory together while a table is read."""


@dataclass(frozen=True)
class Records:
    """The numbered records of a file. Pictures in table columns are `PictureSource` already."""

    items: list[tuple[int, Any]]
    problems: list[Problem]


@dataclass(frozen=True)
class TablePicture:
    """A picture in a table, read on demand."""

    dataset: Any
    """A `datasets.Dataset` in Arrow format, which returns pictures undecoded."""
    row: int
    """Counted from 0."""
    path: tuple[str | int, ...]
    """The column, and the keys and positions inside its value."""

    def read(self) -> bytes:
        """Return the content of the picture file."""
        column, *steps = self.path
        value = self.dataset[self.row].column(column)[0].as_py()
        for step in steps:
            value = value[step]
        return value if isinstance(value, bytes) else value["bytes"]


def visible_files(folder: Path, *patterns: str) -> list[Path]:
    """Return the files below a folder that match a lower-case pattern, without hidden ones.

    macOS adds a `__MACOSX/._NAME` for each file of a zip file, which has its suffix but other
    content.
    """
    return sorted(
        file
        for file in folder.rglob("*")
        if any(fnmatchcase(file.name.lower(), pattern) for pattern in patterns)
        and not any(part.startswith((".", "__MACOSX")) for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def training_files(files: Sequence[Path], folder: Path) -> list[Path]:
    """Return the files of the training split, or all files if there are no splits."""
    return group_by_split(files, folder).get("train") or [*files]


def group_by_split(files: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Group files by the split named in their path below `folder`.

    Files without a split's name belong to the training split if no other file does. The result is
    empty if no path names a split.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        name = file.relative_to(folder).as_posix()
        named = (split for split, word in _SPLIT_WORDS.items() if word.search(name))
        groups.setdefault(next(named, ""), []).append(file)
    rest = groups.pop("", [])
    return {"train": rest} | groups if rest and groups else groups


def is_split_name(name: str) -> bool:
    """Return whether a data set may call a split by this name."""
    return any(word.fullmatch(name) for word in _SPLIT_WORDS.values())


def choose_split(
    splits: Sequence[str], split_or_purpose: str, name: str
) -> tuple[str, list[Problem]]:
    """Return the split to read, and a note if there are others.

    Args:
        splits: The names of all splits.
        split_or_purpose: The name of a split, or `FOR_TRAINING` for train, or `FOR_TESTING` for
            test or else validation; both take the only split there is.
        name: The data set's name for messages.

    Raises:
        DataError: There is no such split, or several fit the purpose.
    """
    listed = ", ".join(splits)
    if split_or_purpose not in (FOR_TRAINING, FOR_TESTING):
        if split_or_purpose not in splits:
            raise DataError(f"{name} has no split {split_or_purpose}.", f"Its splits are {listed}.")
        return split_or_purpose, []
    preferred = ("train",) if split_or_purpose == FOR_TRAINING else ("test", "validation")
    matching = {kind: [s for s in splits if _SPLIT_WORDS[kind].fullmatch(s)] for kind in preferred}
    found = next((matching[kind] for kind in preferred if matching[kind]), list(splits))
    if len(found) > 1:
        raise DataError(
            f"{name} has the splits {listed}; it is unclear which is {split_or_purpose}.",
            f"Choose one: {name}@{found[0]}.",
        )
    if listed == found[0] == preferred[0]:
        return found[0], []
    message = f"Only the split {found[0]} of {listed} is read."
    if len(splits) == 1:
        message = f"Its only split, {found[0]}, is read."
    return found[0], [Problem(name, None, message, note=True)]


def find_metadata(
    folder: Path, split_or_purpose: str, name: str
) -> tuple[Path, list[Problem]] | None:
    """Return the metadata table of a `datasets` picture folder, and notes; else None.

    Args:
        folder: The folder.
        split_or_purpose: See `choose_split`.
        name: The folder's name for messages.

    Raises:
        DataError: The folder has several tables.
    """
    found = visible_files(folder, "metadata.csv", "metadata.jsonl")
    if not found:
        return None
    chosen, notes = choose_files(found, folder, split_or_purpose, name)
    if len(chosen) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in chosen[:5])
        raise DataError(f"{folder} has several tables: {names}.", "Pass each with its own --data.")
    return chosen[0], notes


def choose_files(
    files: Sequence[Path], folder: Path, split_or_purpose: str, name: str
) -> tuple[list[Path], list[Problem]]:
    """Return the files of the split to read, and notes; all files if none names a split.

    Args:
        files: The files.
        folder: The folder that they are in.
        split_or_purpose: See `choose_split`.
        name: The folder's name for messages.

    Raises:
        DataError: There is no such split, or several fit the purpose.
    """
    splits = group_by_split(files, folder)
    if not splits and split_or_purpose in (FOR_TRAINING, FOR_TESTING):
        return [*files], []
    split, notes = choose_split([*splits], split_or_purpose, name)
    return splits[split], notes


def read_folder(path: Path, split_or_purpose: str, name: str) -> Records:
    """Read a folder written by `Dataset.save_to_disk`, or one with Parquet or Arrow files.

    Args:
        path: The folder.
        split_or_purpose: See `choose_split`.
        name: The folder's name for messages.

    Raises:
        DataError: The folder has no data set, or it cannot be read.
    """
    import datasets

    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        with _translate_errors(path):
            loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, dict):
            return _read_split(loaded, split_or_purpose, name)
        refuse_split(split_or_purpose, name)
        return read_table(loaded, name)
    for kind in ("parquet", "arrow"):
        if files := visible_files(path, f"*.{kind}"):
            chosen, notes = choose_files(files, path, split_or_purpose, name)
            records = read_table(load_tables(kind, chosen), f"{name} ({split_or_purpose})")
            records.problems.extend(notes)
            return records
    raise _no_data_set(path)


def _no_data_set(folder: Path) -> DataError:
    """Return an error that says what the folder contains instead of a data set."""
    files = visible_files(folder, "*")
    data = [file for file in files if file.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv")]
    if 0 < len(data) <= 5:
        names = ", ".join(str(file) for file in data)
        return DataError(
            f"The folder {folder} is not a data set of the `datasets` library.",
            f"Pass its data file with --data: {names}.",
        )
    kinds = Counter(file.suffix.lower() or "nameless" for file in files).most_common(3)
    listed = " and ".join(pluralize(number, f"{kind} file") for kind, number in kinds)
    return DataError(
        f"The folder {folder} contains no data set: it has {listed or 'no files'}.",
        'Write the questions into a table with "image", "question" and "answer", and pass that.',
    )


def refuse_split(split_or_purpose: str, name: str) -> None:
    """Refuse a named split of data that has no splits.

    Raises:
        DataError: `split_or_purpose` names a split.
    """
    if split_or_purpose not in (FOR_TRAINING, FOR_TESTING):
        raise DataError(f"{name} has no splits.", f"Leave out @{split_or_purpose}.")


def _read_split(splits: dict[str, Any], split_or_purpose: str, name: str) -> Records:
    split, notes = choose_split([*splits], split_or_purpose, name)
    # The split's name keeps the pictures of train and test apart.
    records = read_table(splits[split], f"{name}@{split}")
    records.problems.extend(notes)
    return records


def read_hub(name: str, split_or_purpose: str) -> Records:
    """Read a data set from the Hugging Face hub, or from the local cache if it is unreachable.

    Args:
        name: `owner/name` or `owner/name:config`.
        split_or_purpose: See `choose_split`.

    Raises:
        DataError: The data set does not exist or cannot be loaded.
    """
    import datasets

    repository, _, config = name.partition(":")
    offline = datasets.config.HF_HUB_OFFLINE
    proxies = None if offline else proxy_problem()
    reachable = not proxies and _check_repository(name, repository)
    try:
        # Without this, `datasets` retries for half a minute when the hub is unreachable.
        datasets.config.HF_HUB_OFFLINE = offline or not reachable
        builder = datasets.load_dataset_builder(repository, config or None)
        _download_data(builder)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    except Exception as error:  # `datasets` raises many types
        if proxies:
            raise DataError(f"Cannot load {name} from the hub. {proxies[0]}", proxies[1]) from error
        raise _cannot_load(name, error, reachable=reachable) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return _read_split(splits, split_or_purpose, name)


def _download_data(builder: Any) -> None:
    """Download the files of a hub data set into the cache, where `datasets` will find them.

    When Ctrl-C arrives, `datasets` would wait until its own downloads are complete.
    """
    from datasets.config import DATASET_INFO_FILENAME
    from huggingface_hub import HfFileSystem

    if Path(builder.cache_dir, DATASET_INFO_FILENAME).is_file():  # it was prepared before
        return
    files: dict[tuple[str, str], list[str]] = {}
    for urls in (builder.config.data_files or {}).values():
        for url in urls:
            if str(url).startswith("hf://datasets/"):
                found: Any = HfFileSystem().resolve_path(str(url))
                files.setdefault((found.repo_id, found.revision), []).append(found.path_in_repo)
    for (repository, revision), paths in files.items():
        download_files(repository, paths, repo_type="dataset", revision=revision)


def _check_repository(name: str, repository: str) -> bool:
    """Return whether the hub can be reached.

    Raises:
        DataError: The hub refuses access to the data set.
    """
    from huggingface_hub import HfApi, constants, errors

    if constants.is_offline_mode():
        return False
    try:
        HfApi().dataset_info(repository, timeout=HUB_TIMEOUT)
    except errors.HfHubHTTPError as error:
        if error.response is None or error.response.status_code < 500:
            raise _cannot_load(name, error) from error
        return False
    except (errors.HTTPError, OSError):
        return False
    except errors.HFValidationError as error:
        raise _cannot_load(name, error) from error
    return True


def _cannot_load(name: str, error: Exception, *, reachable: bool = True) -> DataError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DataError(
            f"The data set {name} is gated: its licence must be accepted first.",
            "Accept it on its page on huggingface.co, then log in with `hf auth login`.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = "There is no such data set, or it is private."
    elif not reachable:
        reason = "The hub cannot be reached."
    else:
        reason = first_line(error)
    return DataError(
        f"There is no file or folder {name}, and it cannot be loaded from the hub: {reason}",
        "Check the path, or the name on huggingface.co and the network.",
    )


def read_table(dataset: Any, name: str) -> Records:
    """Return the rows of a `datasets.Dataset` as numbered records.

    Pictures, also those inside messages, become `PictureSource` without being decoded: a table may
    be larger than memory. Class numbers become class names, bytes of UTF-8 text become text, and
    floats of 16 and 32 bits the shortest number that they are nearest to.
    """
    import datasets

    class_names: dict[str, Callable[[int], str]] = {}
    shortest: dict[str, Callable[[Any], Any]] = {}
    for column, feature in dataset.features.items():
        if dtype := _narrow_float(feature):
            shortest[column] = partial(_shorten_floats, dtype)
        for label in (feature, getattr(feature, "feature", None)):
            if isinstance(label, datasets.ClassLabel):
                class_names[column] = label.int2str
    stored = dataset.with_format("arrow")
    features = datasets.Features(_without_decoding(dict(dataset.features)))
    items: list[tuple[int, Any]] = []
    problems: list[Problem] = []
    for row, encoded in enumerate(_python_rows(stored)):
        if isinstance(encoded, ValueError | OverflowError):
            message = f"The row has a value that cannot be read: {first_line(encoded)}."
            problems.append(Problem(name, row + 1, message, "Store it as text."))
            continue
        record = features.decode_example(encoded)
        pictures = _RowPictures(name, stored, row)
        values = {
            key: _class_name(value, class_names[key])
            if key in class_names
            else pictures.replace_in(shortest.get(key, _unchanged)(value), key)
            for key, value in record.items()
        }
        items.append((row + 1, values))
    return Records(items, problems)


def _python_rows(stored: Any) -> Iterator[dict[str, Any] | ValueError | OverflowError]:
    """Yield the rows of a data set in Arrow format, or why Python has no value for one of them.

    That may be a date after the year 9999, or text that is not UTF-8.
    """
    for batch in stored.iter(_BATCH_ROWS):
        try:
            yield from batch.to_pylist()
        except (ValueError, OverflowError):
            for row in range(len(batch)):
                try:
                    yield batch.slice(row, 1).to_pylist()[0]
                except (ValueError, OverflowError) as error:
                    yield error


def _unchanged(value: Any) -> Any:
    return value


def _narrow_float(feature: Any) -> Any:
    """Return NumPy's type of a column of 16- or 32-bit floats, or of lists of them; else None."""
    while (nested := getattr(feature, "feature", None)) is not None:
        feature = nested
    return {"float16": np.float16, "float32": np.float32}.get(getattr(feature, "dtype", ""))


def _shorten_floats(dtype: Any, value: Any) -> Any:
    """Return 0.1 for the 0.10000000149011612 that a 32-bit float of 0.1 becomes in Python."""
    if isinstance(value, list):
        return [_shorten_floats(dtype, item) for item in value]
    return float(str(dtype(value))) if isinstance(value, float) else value


def _without_decoding(feature: Any) -> Any:
    """Return the feature with decoding of nested pictures switched off."""
    if isinstance(feature, dict):
        return {key: _without_decoding(nested) for key, nested in feature.items()}
    if (nested := getattr(feature, "feature", None)) is not None:
        return replace(feature, feature=_without_decoding(nested))
    return replace(feature, decode=False) if hasattr(feature, "decode") else feature


@dataclass(frozen=True)
class _RowPictures:
    """The pictures of one table row."""

    table: str
    dataset: Any
    row: int
    """Counted from 0."""

    def replace_in(self, value: Any, *path: str | int) -> Any:
        """Return the value with a `PictureSource` in place of each picture's content."""
        if isinstance(value, list):
            return [self.replace_in(item, *path, index) for index, item in enumerate(value)]
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(value, bytes) and (text := _decode_text(value)) is not None:
            return text
        if isinstance(content, bytes) and content:
            number = next((step + 1 for step in reversed(path) if isinstance(step, int)), 1)
            key = ".".join(map(str, (self.row + 1, *path)))
            picture = TablePicture(self.dataset, self.row, path)
            shown = f"{path[0]} {number} of row {self.row + 1:,}"
            return PictureSource(shown, f"{self.table}#{key}", picture)
        if isinstance(value, dict):
            return {key: self.replace_in(item, *path, key) for key, item in value.items()}
        return value


def _decode_text(content: bytes) -> str | None:
    """Return the text that bytes contain; None for other content, such as a picture."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


def _class_name(value: Any, name_of: Callable[[int], str]) -> Any:
    if isinstance(value, list):
        return [_class_name(item, name_of) for item in value]
    return value if value is None or value < 0 else name_of(value)  # -1 means unlabelled


def load_tables(kind: str, files: Sequence[Path]) -> Any:
    """Load Parquet or Arrow files as one `datasets.Dataset`.

    Args:
        kind: "parquet" or "arrow".
        files: The files.

    Raises:
        DataError: A file cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    with _translate_errors(files[0]):
        return datasets.load_dataset(kind, data_files=list(map(str, files)), split="train")


@contextmanager
def _translate_errors(path: str | Path) -> Iterator[None]:
    """Turn the many exception types of `datasets` and pyarrow into a `DataError`."""
    try:
        yield
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        hint = "Check that the file is complete."
        if "BatchSize must be greater" in reason:
            reason, hint = "It has no rows.", "Check how it was made."
        if "datasets dtype" in reason:
            hint = "Store the column as text, numbers or bytes."
        if found := re.match(r"Multiple matches for FieldRef\.Name\((.*?)\)", reason):
            reason, hint = f"Two columns are called {found[1]!r}.", "Rename one."
        raise DataError(f"Cannot read {path}: {reason}", hint) from error
