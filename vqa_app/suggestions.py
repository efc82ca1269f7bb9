"""Guesses at what was meant by the name of a file, a model or an option that does not exist."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

MAX_ENTRIES = 2000
"""Entries of folders that are looked at; a guess must not take long."""
_ALIKE = 0.7
"""Similarity of names, 0 to 1, from which one may be a misspelling of the other."""
_SYNONYMS = {
    "model": "base base_model model_name model_name_or_path model_path pretrained",
    "data": "data_path dataset dataset_name train_data train_file",
    "images": "image image_dir image_folder images_dir picture pictures",
    "eval_data": "eval_dataset test_data val_data validation_data",
    "out": "output output_dir output_path save_dir",
    "lr": "learning_rate",
    "projector_lr": "mm_projector_lr",
    "epochs": "num_train_epochs",
    "batch_size": "train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "rank": "lora_r lora_rank r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "warmup": "warmup_ratio",
    "schedule": "lr_scheduler_type",
    "max_length": "max_seq_length model_max_length",
    "max_new_tokens": "max_length max_tokens n_predict",
    "quantize": "load_4bit load_8bit load_in_4bit load_in_8bit quantization",
    "system": "system_prompt",
    "choices": "answers candidates options",
}
"""Our options, with what other programs call them."""


def suggest(
    name: str | os.PathLike[str],
    known: Iterable[str] = (),
    *,
    path: Callable[[Path], bool] | None = None,
    otherwise: str = "",
) -> str:
    """Return a hint such as "Did you mean photos/cat.jpg?".

    Args:
        name: What was given, and does not exist.
        known: Names that would have been right.
        path: If the name may be a path: whether a file or folder may be meant.
        otherwise: The hint if nothing is similar.
    """
    found = _similar_path(Path(name), path) if path is not None else None
    likely = str(found) if found is not None else _similar_name(str(name), known)
    return f"Did you mean {likely}?" if likely else otherwise


def _similar_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs in case and dashes, is a synonym, or is spelt alike."""
    by_plain = {_plain(one): one for one in known}
    plain = _plain(name)
    same = [plain, *(ours for ours, theirs in _SYNONYMS.items() if plain in theirs.split())]
    alike = get_close_matches(plain, by_plain, 1, _ALIKE)
    return next((by_plain[one] for one in (*same, *alike) if one in by_plain), None)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").casefold()


def _similar_path(path: Path, wanted: Callable[[Path], bool]) -> Path | None:
    """Return the path that was probably meant.

    In this order: the same name in other case, or with another ending; the same name in a folder
    below; a name that is spelt alike. If the folder itself does not exist, a similar one is taken.
    """
    try:
        path = Path(os.path.expanduser(path))
        folder: Path | None = path.parent
        if not path.name or path.parent == path:
            return None
        if not path.parent.is_dir():
            folder = _similar_path(path.parent, Path.is_dir)
        if folder is None:
            return None
        if folder != path.parent and wanted(folder / path.name):
            return folder / path.name
        return _similar_entry(folder, path, wanted)
    except (OSError, ValueError):  # not a path, or a folder that cannot be read
        return None


def _similar_entry(folder: Path, path: Path, wanted: Callable[[Path], bool]) -> Path | None:
    name, stem = path.name.casefold(), path.stem.casefold()
    below = list(_walk(folder))
    here = [one for one in below if one.parent == folder and wanted(one)]
    for same in (
        lambda one: one.name.casefold() == name,
        lambda one: one.stem.casefold() == stem,
    ):
        if found := next(filter(same, here), None):
            return found
    if found := next((one for one in below if one.name.casefold() == name and wanted(one)), None):
        return found
    names = {one.name: one for one in here}
    alike = get_close_matches(path.name, names, 1, _ALIKE)
    return names[alike[0]] if alike else None


def _walk(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and in those below it, the nearest first, hidden ones left out."""
    folders, seen = [folder], 0
    while folders:
        try:
            with os.scandir(folders.pop(0)) as scan:
                entries = sorted(islice(scan, MAX_ENTRIES), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            seen += 1
            if seen > MAX_ENTRIES:
                return
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
