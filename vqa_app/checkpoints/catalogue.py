"""The list of models: the built-in one, a selection from the hub, and local runs.

This module does not import torch, so that the list is shown quickly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from vqa_app.checkpoints import source
from vqa_app.checkpoints.adapters import PEFT_FILE, PROJECTOR_FILE, is_adapter
from vqa_app.checkpoints.manifest import MANIFEST_FILE, read_manifest
from vqa_app.checkpoints.memory import WEIGHTS_SHARE
from vqa_app.checkpoints.weights import model_files, stored_tensors
from vqa_app.errors import ModelError
from vqa_app.files import format_bytes

EntryKind: TypeAlias = Literal["builtin", "hub", "run"]

WORKING_SHARE = 1.2
"""Memory in use relative to that of the weights, for activations, image features and KV cache too.
A rule of thumb, conservative for short conversations."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A model in the list."""

    name: str
    """The name for `load_model` and `--model`."""
    kind: EntryKind
    parameters: int
    """Number of parameters, including those of an adapter's base. Two significant digits for hub
    models; 0 if the base is unknown."""
    licence: str
    note: str
    """What the model is good for, in a few words."""
    download: int
    """Size of the files in bytes."""
    cached: bool = False
    """Whether the model can be loaded without a download."""
    gated: bool = False
    """Whether its licence must be accepted on the hub."""

    @property
    def size(self) -> str:
        """Size of the files, such as `1.8 GB`."""
        return format_bytes(self.download)

    @property
    def memory(self) -> int:
        """Estimated memory in use with 16-bit weights, in bytes."""
        return int(2 * self.parameters * WORKING_SHARE)

    @property
    def memory_4bit(self) -> int:
        """Estimated memory in use with `--quantize 4bit`, in bytes."""
        return int(self.memory * WEIGHTS_SHARE["4bit"])


def _hub(
    name: str, billions: float, licence: str, note: str, *, gated: bool = False
) -> CatalogueEntry:
    """Return the entry of a hub model whose weights are stored in 16 bits."""
    parameters = int(billions * 1e9)
    return CatalogueEntry(name, "hub", parameters, licence, note, 2 * parameters, gated=gated)


CATALOGUE = (
    _hub("HuggingFaceTB/SmolVLM-256M-Instruct", 0.26, "Apache 2.0", "the smallest; fast on a CPU"),
    _hub("HuggingFaceTB/SmolVLM-500M-Instruct", 0.51, "Apache 2.0", "small, better at documents"),
    _hub(
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        0.89,
        "Tongyi Qianwen Research",
        "a small LLaVA for several pictures; no commercial use",
    ),
    _hub(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        0.89,
        "Apache 2.0",
        "a small LLaVA-OneVision for high resolution",
    ),
    _hub("Qwen/Qwen3-VL-2B-Instruct", 2.1, "Apache 2.0", "any resolution, long documents"),
    _hub("Qwen/Qwen2-VL-2B-Instruct", 2.2, "Apache 2.0", "any resolution, many languages"),
    _hub("HuggingFaceTB/SmolVLM-Instruct", 2.2, "Apache 2.0", "few image tokens for its size"),
    _hub(
        "google/paligemma2-3b-mix-448",
        3.0,
        "Gemma",
        "short answers, one question at a time",
        gated=True,
    ),
    _hub(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        3.8,
        "Qwen Research",
        "reads documents well; no commercial use",
    ),
    _hub("google/gemma-3-4b-it", 4.3, "Gemma", "good at conversation", gated=True),
    _hub("llava-hf/llava-1.5-7b-hf", 7.1, "Llama 2", "LLaVA-1.5, the classic"),
    _hub("Qwen/Qwen2.5-VL-7B-Instruct", 8.3, "Apache 2.0", "the best answers in this list"),
)
"""Models on the hub by size, with parameters and licences as stated on their pages."""


def catalogue(runs: Path | None = None) -> list[CatalogueEntry]:
    """List the built-in model, if installed, then hub models by size, then runs.

    Args:
        runs: A directory whose subdirectories may be runs of `vqa-app finetune`.
    """
    entries = [*_builtin(), *(replace(entry, cached=is_cached(entry.name)) for entry in CATALOGUE)]
    return [*entries, *(local_runs(runs) if runs is not None else ())]


def is_cached(name: str) -> bool:
    """Return whether all weights of a hub model are in the local cache."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(name, local_files_only=True))
        files = model_files(directory)
    except (OSError, ValueError, ModelError):
        return False
    return bool(files) and all(file.is_file() for file in files)


def local_runs(directory: Path) -> list[CatalogueEntry]:
    """List the finished runs in a directory, newest first."""
    if not directory.is_dir():
        return []
    manifests = sorted(
        directory.glob(f"*/{MANIFEST_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    return [entry for path in manifests for entry in _run(path.parent)]


def _builtin() -> Iterable[CatalogueEntry]:
    try:
        directory = source.find(source.BUILTIN).directory
    except ModelError:
        return
    yield _local_entry(
        source.BUILTIN,
        "builtin",
        directory,
        "Apache 2.0",
        "installed with vqa-app; knows only simple drawings",
    )


def _run(directory: Path) -> Iterable[CatalogueEntry]:
    try:
        manifest = read_manifest(directory)
        if manifest is None or not (model_files(directory) or is_adapter(directory)):
            return
        base = manifest.base.name
        note = f"{manifest.kind} on {base}, {manifest.created[:10]}"
        entry = _local_entry(str(directory), "run", directory, f"that of {base}", note)
    except ModelError:
        return
    if not manifest.whole_model:
        of_base = _parameters(base)
        total = entry.parameters + of_base if of_base else 0
        local = base == source.BUILTIN or Path(base).is_dir() or is_cached(base)
        entry = replace(entry, parameters=total, cached=local)
    yield entry


def _parameters(name: str) -> int | None:
    """Return the number of parameters of a run's base model, or None if it is unknown."""
    listed = next((entry.parameters for entry in CATALOGUE if entry.name == name), None)
    if listed is not None:
        return listed
    try:
        directory = source.find(name, offline=True).directory
        return sum(tensor.size for tensor in stored_tensors(model_files(directory)))
    except ModelError:
        return None


def _local_entry(
    name: str, kind: EntryKind, directory: Path, licence: str, note: str
) -> CatalogueEntry:
    adapter = [directory / file for file in (PEFT_FILE, PROJECTOR_FILE)]
    files = model_files(directory) or [file for file in adapter if file.is_file()]
    parameters = sum(tensor.size for tensor in stored_tensors(files))
    size = sum(file.stat().st_size for file in files)
    return CatalogueEntry(name, kind, parameters, licence, note, size, cached=True)
