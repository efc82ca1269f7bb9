"""Models to choose from: the built-in one, a few good ones on the hub, and runs on this machine.

Imports no torch: it is read to show a list.
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

Kind: TypeAlias = Literal["builtin", "hub", "run"]

WORKING_SHARE = 1.2
"""Memory in use over that of the weights: activations, image features and KV cache of a short chat.
A rule of thumb, on the safe side for short conversations."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A model in the list."""

    name: str
    """What `load_model` and `--model` take."""
    kind: Kind
    parameters: int
    """Number of weights, of an adapter with those of its base; of hub models to two digits. 0 where
    the base is not known here."""
    licence: str
    note: str
    """What it is good for, a few words."""
    download: int
    """Bytes of the files."""
    cached: bool = False
    """Whether it can be loaded without a download."""
    gated: bool = False
    """Whether the hub wants its licence accepted first."""

    @property
    def size(self) -> str:
        """The download in words."""
        return format_bytes(self.download)

    @property
    def memory(self) -> int:
        """Bytes in use in 16 bits, estimated."""
        return int(2 * self.parameters * WORKING_SHARE)

    @property
    def memory_4bit(self) -> int:
        """Bytes in use with `--quantize 4bit`, estimated."""
        return int(self.memory * WEIGHTS_SHARE["4bit"])


def _hub(
    name: str, billions: float, licence: str, note: str, *, gated: bool = False
) -> CatalogueEntry:
    """A hub model whose weights are stored in 16 bits."""
    parameters = int(billions * 1e9)
    return CatalogueEntry(name, "hub", parameters, licence, note, 2 * parameters, gated=gated)


CATALOGUE = (
    _hub("HuggingFaceTB/SmolVLM-256M-Instruct", 0.26, "Apache 2.0", "the smallest; quick on a CPU"),
    _hub("HuggingFaceTB/SmolVLM-500M-Instruct", 0.51, "Apache 2.0", "small, better at documents"),
    _hub(
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        0.89,
        "Tongyi Qianwen Research",
        "a small LLaVA, several pictures; not for commerce",
    ),
    _hub(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        0.89,
        "Apache 2.0",
        "a small LLaVA-OneVision, high resolution",
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
        "reads documents well; not for commerce",
    ),
    _hub("google/gemma-3-4b-it", 4.3, "Gemma", "good at conversation", gated=True),
    _hub("llava-hf/llava-1.5-7b-hf", 7.1, "Llama 2", "LLaVA-1.5, the classic"),
    _hub("Qwen/Qwen2.5-VL-7B-Instruct", 8.3, "Apache 2.0", "the best answers in this list"),
)
"""By size. Parameters and licences as their pages on the hub state them."""


def catalogue(runs: Path | None = None) -> list[CatalogueEntry]:
    """The built-in model, if this installation has it, then hub models by size, then runs.

    Args:
        runs: a directory whose subdirectories may be runs of `vqa-app finetune`.
    """
    entries = [*_builtin(), *(replace(entry, cached=is_cached(entry.name)) for entry in CATALOGUE)]
    return [*entries, *(local_runs(runs) if runs is not None else ())]


def is_cached(name: str) -> bool:
    """Whether all weights of a hub model lie in the local cache."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(name, local_files_only=True))
        files = model_files(directory)
    except (OSError, ValueError, ModelError):
        return False
    return bool(files) and all(file.is_file() for file in files)


def local_runs(directory: Path) -> list[CatalogueEntry]:
    """The runs in a directory, newest first; what is no whole run is passed over."""
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
    yield _described(
        source.BUILTIN,
        "builtin",
        directory,
        "as vqa-app",
        "comes with vqa-app; its own small world",
    )


def _run(directory: Path) -> Iterable[CatalogueEntry]:
    try:
        manifest = read_manifest(directory)
        if manifest is None or not (model_files(directory) or is_adapter(directory)):
            return
        base = manifest.base.name
        note = f"{manifest.kind} on {base}, {manifest.created[:10]}"
        entry = _described(str(directory), "run", directory, f"that of {base}", note)
    except ModelError:
        return
    if not manifest.whole_model:
        known = _parameters(base)
        whole = entry.parameters + known if known else 0
        entry = replace(entry, parameters=whole, cached=base == source.BUILTIN or _is_here(base))
    yield entry


def _is_here(name: str) -> bool:
    return Path(name).is_dir() or is_cached(name)


def _parameters(name: str) -> int | None:
    """Number of weights of a model that a run began with; None where nothing here tells."""
    listed = next((entry.parameters for entry in CATALOGUE if entry.name == name), None)
    if listed is not None:
        return listed
    try:
        directory = source.find(name, offline=True).directory
        return sum(tensor.size for tensor in stored_tensors(model_files(directory)))
    except ModelError:
        return None


def _described(name: str, kind: Kind, directory: Path, licence: str, note: str) -> CatalogueEntry:
    adapter = [directory / file for file in (PEFT_FILE, PROJECTOR_FILE)]
    files = model_files(directory) or [file for file in adapter if file.is_file()]
    parameters = sum(tensor.size for tensor in stored_tensors(files))
    size = sum(file.stat().st_size for file in files)
    return CatalogueEntry(name, kind, parameters, licence, note, size, cached=True)
