"""The frozen encoder's outputs, computed once for each picture and kept on disk.

What the projector is given is stored as it is: projector and LoRA training then see the very
numbers that they would see with the encoder running, and later epochs and later runs skip it. A
store belongs to one encoder: its name is a hash of the encoder's weights, the picture processing
and the precision.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.samples import Sample
from finetune.parallel import parallel_map
from finetune.training.plan import CPU_TOKENS_AT_ONCE
from vqa_app.devices import is_out_of_memory, release_memory
from vqa_app.errors import DataError
from vqa_app.models.architecture import feature_width, unwrap
from vqa_app.pictures.picture import Picture

GB = 10**9
_RECORDS = "features.bin"
_DIGESTS = "digests.bin"
_DIGEST_BYTES = 32
_STORE = re.compile(r"[0-9a-f]{16}-(float32|bfloat16)")
"""A store's name: its encoder's hash and the precision."""
_PICTURES_AT_ONCE = 32
"""On a GPU. On a CPU fewer, where they are large: more are no faster there, and take memory."""


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "vqa-app" / "features"


@dataclass(frozen=True)
class FeaturePlan:
    """What keeping features would take, decided before anything is computed."""

    pictures: int
    present: int
    """How many of them are there already."""
    bytes_each: int
    use: bool
    why: str
    """One sentence for a person."""


class FeatureStore:
    """Features of one encoder, memory-mapped: [pictures, image tokens, encoder width].

    Records are appended first and their digests after them, so a kill leaves at most one unnamed
    record, which the next writer overwrites.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Args:
        folder: of this encoder; made when something is written.
        shape: (image tokens, encoder width) of each picture.
        """
        self.folder = folder
        self.shape = shape
        self.dtype = dtype
        self.bytes_each = shape[0] * shape[1] * dtype.itemsize
        self._places: dict[bytes, int] = {}
        self._map: np.memmap | None = None
        self._written: set[bytes] = set()
        self._seen = 0  # records whose names are in it
        self.reload()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self._places

    def __getitem__(self, digest: str) -> Tensor:
        """[image tokens, encoder width] of a picture; KeyError where it is not kept."""
        assert self._map is not None, "nothing is kept yet"
        raw = self._map[self._places[bytes.fromhex(digest)]]
        # A copy: tensors over read-only memory could be written to by mistake.
        return torch.from_numpy(raw.copy()).view(self.dtype).view(self.shape)

    def reload(self) -> None:
        """Sees what other processes have added."""
        digests = self.folder / _DIGESTS
        records = self.folder / _RECORDS
        if not (digests.exists() and records.exists()):
            self._places, self._map = {}, None
            return
        named = digests.read_bytes()
        count = min(len(named) // _DIGEST_BYTES, records.stat().st_size // self.bytes_each)
        names = _split(named[: count * _DIGEST_BYTES])
        self._places = {name: place for place, name in enumerate(names)}
        if count:
            self._map = np.memmap(records, np.uint8, "r", shape=(count, self.bytes_each))

    def append(self, digests: Sequence[str], features: Tensor) -> None:
        """Keeps features [pictures, image tokens, encoder width] of pictures that nobody has kept
        by now; call `reload` before reading them.
        """
        if tuple(features.shape[1:]) != self.shape:
            raise ValueError(f"features of shape {tuple(features.shape)}, not [n, {self.shape}]")
        raw = features.to(self.dtype).contiguous().cpu().view(torch.uint8).numpy()
        with self._locked():
            named = self.folder / _DIGESTS
            records = self.folder / _RECORDS
            for path in (named, records):
                path.touch()
            # What one of the files lacks, after a power cut, the other must not promise.
            whole = records.stat().st_size // self.bytes_each
            count = min(whole, named.stat().st_size // _DIGEST_BYTES)
            there = self._names(named, count)
            new = [i for i, digest in enumerate(digests) if bytes.fromhex(digest) not in there]
            with records.open("r+b") as file:
                file.seek(count * self.bytes_each)
                file.write(raw[new].tobytes())
                file.flush()
                os.fsync(file.fileno())
            with named.open("r+b") as file:
                file.truncate(count * _DIGEST_BYTES)
                file.seek(0, os.SEEK_END)
                file.write(b"".join(bytes.fromhex(digests[i]) for i in new))

    def _names(self, named: Path, count: int) -> set[bytes]:
        """The pictures of all records, other processes' too; reads what came since the last
        time.
        """
        if count < self._seen:  # somebody made room
            self._written, self._seen = set(), 0
        with named.open("rb") as file:
            file.seek(self._seen * _DIGEST_BYTES)
            self._written.update(_split(file.read((count - self._seen) * _DIGEST_BYTES)))
        self._seen = count
        return self._written

    def clear(self) -> None:
        """Removes everything that is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._places, self._map, self._written, self._seen = {}, None, set(), 0

    def touch(self) -> None:
        """Notes that the store is in use: what was not for longest makes room first."""
        os.utime(self.folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            yield


def _split(digests: bytes) -> list[bytes]:
    return [digests[i : i + _DIGEST_BYTES] for i in range(0, len(digests), _DIGEST_BYTES)]


def make_plan(
    store: FeatureStore, digests: Sequence[str], limit_gb: float, epochs: float
) -> FeaturePlan:
    """Whether features pay and fit; `make_room` then gives up older stores for them."""
    distinct = set(digests)
    present = sum(digest in store for digest in distinct)
    missing = len(distinct) - present
    needed = len(distinct) * store.bytes_each

    def plan(use: bool, why: str) -> FeaturePlan:
        return FeaturePlan(len(distinct), present, store.bytes_each, use, why)

    if not distinct:
        return plan(False, "The rows show no pictures.")
    if limit_gb == 0:
        return plan(False, "Encoder outputs are not kept (feature_gb is 0).")
    size = f"{len(distinct):,} pictures × {store.bytes_each / 1e3:,.0f} kB = {needed / GB:.2g} GB"
    if needed > limit_gb * GB:
        return plan(
            False, f"Encoder outputs are not kept: {size}, more than feature_gb = {limit_gb:g}."
        )
    if missing and epochs <= 1 and len(distinct) == len(digests) and needed > 0.25 * limit_gb * GB:
        return plan(False, f"Encoder outputs are not kept: one epoch would not use {size} again.")
    anchor = next((p for p in (store.folder, *store.folder.parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(anchor).free
    if missing * store.bytes_each > 0.9 * free:
        return plan(
            False, f"Encoder outputs are not kept: {size}, and the disk has {free / GB:.2g} GB."
        )
    there = f", {present:,} there already" if present else ""
    return plan(True, f"Encoder outputs are kept: {size} in {store.folder}{there}.")


def make_room(store: FeatureStore, needed: int, limit_gb: float) -> None:
    """Removes other encoders' stores, least recently used first, until `needed` more bytes fit the
    bound; and where that isn't enough, what this one has.
    """
    limit = limit_gb * GB
    others = [
        path
        for path in store.folder.parent.glob("*")
        if path != store.folder and _STORE.fullmatch(path.name)  # nothing of somebody else's
    ]
    sizes = {path: sum(f.stat().st_size for f in path.iterdir() if f.is_file()) for path in others}
    used = len(store) * store.bytes_each
    for path in sorted(others, key=lambda p: p.stat().st_mtime):
        if used + needed + sum(sizes.values()) <= limit:
            return
        shutil.rmtree(path, ignore_errors=True)
        del sizes[path]
    if used + needed > limit:
        store.clear()


def open_store(
    model: Any, processor: Any, folder: Path, dtype: torch.dtype, sample: Sample
) -> FeatureStore:
    """The store of a model's encoder.

    Args:
        sample: one that shows pictures; its image tokens are the features of each.
    """
    from vqa_app.prompts.prompt import image_token_id

    tokens = int((sample.input_ids == image_token_id(processor)).sum()) // len(sample.digests)
    name = f"{encoder_hash(model, processor)}-{str(dtype).removeprefix('torch.')}"
    return FeatureStore(folder / name, (tokens, feature_width(unwrap(model))), dtype)


def encoder_hash(model: Any, processor: Any) -> str:
    """16 hex digits over the encoder's weights, which of its outputs are used, and the picture
    processing.
    """
    base = unwrap(model)
    total = hashlib.sha256()
    for name, tensor in sorted(base.model.vision_tower.state_dict().items()):
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    choice = (base.config.vision_feature_layer, base.config.vision_feature_select_strategy)
    settings = processor.image_processor.to_dict()
    total.update(json.dumps([choice, settings], sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]


def pixels_of(processor: Any, picture: Picture) -> Tensor:
    """A picture as the encoder takes it: [3, height, width]."""
    return processor.image_processor([picture.image], return_tensors="pt")["pixel_values"][0]


@torch.no_grad()
def encode_pictures(model: Any, pixels: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """What the projector is given for each picture.

    Args:
        pixels: of each picture, as `pixels_of` gives them.
        dtype: bfloat16 runs the encoder under bf16 autocast as training would; float32 does not.

    Returns:
        [pictures, image tokens, encoder width] in `dtype`.
    """
    base = unwrap(model)
    batch = torch.stack(list(pixels)).to(base.device, base.model.vision_tower.dtype)
    taken: list[Tensor] = []
    hook = base.model.multi_modal_projector.register_forward_pre_hook(
        lambda _module, inputs: taken.append(inputs[0])
    )
    try:
        with _evaluating(base), torch.autocast(base.device.type, dtype, dtype != torch.float32):
            base.get_image_features(pixel_values=batch)
    finally:
        hook.remove()
    return taken[0].to(dtype)


def pictures_at_once(model: Any) -> int:
    """How many pictures the encoder is given together."""
    base = unwrap(model)
    if base.device.type != "cpu":
        return _PICTURES_AT_ONCE
    vision = base.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return min(_PICTURES_AT_ONCE, max(1, CPU_TOKENS_AT_ONCE // patches))


def fill(
    store: FeatureStore,
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    workers: int | None = None,
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encodes every picture of the samples that the store lacks; `reload` it afterwards.

    Args:
        part: (process, processes): each encodes its share.
        on_progress: called with (done, of).
    """
    sources = {
        digest: source
        for sample in samples
        for digest, source in zip(sample.digests, sample.sources, strict=True)
    }
    # Shares are of all pictures: which ones are there already may be another process's work by now.
    share = sorted(sources)[part[0] :: part[1]]
    missing = [digest for digest in share if digest not in store]

    def read(digest: str) -> Tensor:
        picture = sources[digest].open()
        if picture.digest != digest:
            raise DataError(f"{picture.name} has changed meanwhile.", "Run the command again.")
        return pixels_of(processor, picture)

    # Only pixels wait for the encoder: a photograph at full size may take 100 times as much.
    pictures = parallel_map(read, missing, workers)
    at_once, done = pictures_at_once(model), 0
    waiting: list[Tensor] = []
    while done < len(missing):
        waiting += islice(pictures, max(0, at_once - len(waiting)))
        encoded = _encoded(model, waiting[:at_once], store.dtype)
        if encoded is None:
            at_once = min(at_once, len(waiting)) // 2
            release_memory()
            continue
        store.append(missing[done : done + len(encoded)], encoded)
        del waiting[: len(encoded)]
        done += len(encoded)
        if on_progress:
            on_progress(done, len(missing))


def _encoded(model: Any, pixels: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """`encode_pictures`; None where there is no memory for so many, but maybe for fewer."""
    try:
        return encode_pictures(model, pixels, dtype)
    except (RuntimeError, MemoryError) as error:
        if len(pixels) == 1 or not is_out_of_memory(error):
            raise
        return None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
