"""The frozen encoder's outputs, computed once for each picture and stored on disk.

The projector's inputs are stored unchanged: training sees exactly the numbers that the encoder
would compute, and later epochs and runs do not run it. Each store belongs to one encoder and
precision; its name contains a hash of the encoder's weights and the picture processing.
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
from finetune.progress import pluralize
from finetune.training.plan import CPU_TOKENS_AT_ONCE
from vqa_app.devices import is_out_of_memory, reclaim_memory
from vqa_app.errors import DataError
from vqa_app.files import format_bytes
from vqa_app.models.architecture import feature_width, unwrap
from vqa_app.pictures.picture import Picture
from vqa_app.user_folders import user_cache

GB = 10**9
_RECORDS = "features.bin"
_DIGESTS = "digests.bin"
_DIGEST_BYTES = 32
_STORE = re.compile(r"[0-9a-f]{16}-(float32|bfloat16|float16)")
"""A store's name: its encoder's hash and the precision."""
_PICTURES_AT_ONCE = 32
"""Batch size of the encoder on a GPU. On a CPU, fewer large pictures are encoded at a time: more
would take memory and be no faster."""


def default_folder() -> Path:
    """Return the folder of all stores in the user's cache."""
    return user_cache("features")


@dataclass(frozen=True)
class FeaturePlan:
    """Whether to store features, and the space that they take; decided before any is computed."""

    pictures: int
    present: int
    """Number of these pictures that are stored already."""
    bytes_each: int
    use: bool
    reason: str
    """One sentence for the user."""


class FeatureStore:
    """Features of one encoder, memory-mapped: [pictures, image tokens, encoder width].

    Features are appended first and their digests afterwards, so that a kill leaves at most one
    record without a digest, which the next writer overwrites.

    Args:
        folder: Folder of this store; created when something is written.
        shape: (image tokens, encoder width) of each picture.
        dtype: Type of the stored numbers.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.folder = folder
        self.shape = shape
        self.dtype = dtype
        self.bytes_each = shape[0] * shape[1] * dtype.itemsize
        self._places: dict[bytes, int] = {}
        self._map: np.memmap | None = None
        self._written: set[bytes] = set()
        self._records_read = 0  # records whose digests are in `_written`
        self.reload()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self._places

    def __getitem__(self, digest: str) -> Tensor:
        """Return [image tokens, encoder width] of a picture; KeyError if it is not stored."""
        assert self._map is not None, "nothing is stored yet"
        raw = self._map[self._places[bytes.fromhex(digest)]]
        # A copy: a tensor over the read-only map could be written to by mistake.
        return torch.from_numpy(raw.copy()).view(self.dtype).view(self.shape)

    def reload(self) -> None:
        """Read what any process has added since the last time."""
        digests = self.folder / _DIGESTS
        records = self.folder / _RECORDS
        if not (digests.exists() and records.exists()):
            self._places, self._map = {}, None
            return
        names = digests.read_bytes()
        count = min(len(names) // _DIGEST_BYTES, records.stat().st_size // self.bytes_each)
        present = _split(names[: count * _DIGEST_BYTES])
        self._places = {name: place for place, name in enumerate(present)}
        if count:
            self._map = np.memmap(records, np.uint8, "r", shape=(count, self.bytes_each))

    def append(self, digests: Sequence[str], features: Tensor) -> None:
        """Store the features of those pictures that are not stored yet.

        Call `reload` before reading them.

        Args:
            digests: Digests of the pictures.
            features: [pictures, image tokens, encoder width]
        """
        if tuple(features.shape[1:]) != self.shape:
            raise ValueError(f"features of shape {tuple(features.shape)}, not [n, {self.shape}]")
        raw = features.to(self.dtype).contiguous().cpu().view(torch.uint8).numpy()
        with self._locked():
            names = self.folder / _DIGESTS
            records = self.folder / _RECORDS
            for path in (names, records):
                path.touch()
            # After a power cut one file may be shorter; only records in both files count.
            complete = records.stat().st_size // self.bytes_each
            count = min(complete, names.stat().st_size // _DIGEST_BYTES)
            present = self._read_names(names, count)
            new = [i for i, digest in enumerate(digests) if bytes.fromhex(digest) not in present]
            with records.open("r+b") as file:
                file.seek(count * self.bytes_each)
                file.write(raw[new].tobytes())
                file.flush()
                os.fsync(file.fileno())
            with names.open("r+b") as file:
                file.truncate(count * _DIGEST_BYTES)
                file.seek(0, os.SEEK_END)
                file.write(b"".join(bytes.fromhex(digests[i]) for i in new))

    def _read_names(self, names: Path, count: int) -> set[bytes]:
        """Return the digests of the first `count` records; only new ones are read from the file."""
        if count < self._records_read:  # another process made room
            self._written, self._records_read = set(), 0
        with names.open("rb") as file:
            file.seek(self._records_read * _DIGEST_BYTES)
            self._written.update(_split(file.read((count - self._records_read) * _DIGEST_BYTES)))
        self._records_read = count
        return self._written

    def clear(self) -> None:
        """Remove everything that is stored."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._places, self._map, self._written, self._records_read = {}, None, set(), 0

    def touch(self) -> None:
        """Mark the store as just used: `make_room` removes the least recently used first."""
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
    """Decide whether features are worth storing and fit on the disk."""
    distinct = set(digests)
    present = sum(digest in store for digest in distinct)
    missing = len(distinct) - present
    needed = len(distinct) * store.bytes_each

    def plan(use: bool, reason: str) -> FeaturePlan:
        return FeaturePlan(len(distinct), present, store.bytes_each, use, reason)

    if not distinct:
        return plan(False, "The rows show no pictures.")
    if limit_gb == 0:
        return plan(False, "Encoder outputs are not kept: --feature-gb is 0.")
    size = f"{format_bytes(needed)} for {pluralize(len(distinct), 'picture')}"
    if needed > limit_gb * GB:
        return plan(
            False, f"Encoder outputs are not kept: {size}, more than --feature-gb {limit_gb:g}."
        )
    if missing and epochs <= 1 and len(distinct) == len(digests) and needed > 0.25 * limit_gb * GB:
        return plan(False, f"Encoder outputs are not kept: a single epoch would not reuse {size}.")
    anchor = next((p for p in (store.folder, *store.folder.parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(anchor).free
    if missing * store.bytes_each > 0.9 * free:
        return plan(
            False,
            f"Encoder outputs are not kept: {size}, and {format_bytes(free)} are free on the disk.",
        )
    pictures = pluralize(len(distinct), "picture")
    return plan(
        True,
        f"Encoder outputs are kept: {format_bytes(needed)} for {pictures}, {present:,} stored"
        " before." + f" They are in {store.folder}.",
    )


def make_room(store: FeatureStore, needed: int, limit_gb: float) -> None:
    """Remove other encoders' stores, least recently used first, until `needed` more bytes fit.

    If that is not enough, this store is cleared, too.

    Args:
        store: The store to make room for.
        needed: Number of bytes to be added.
        limit_gb: Limit of all stores together.
    """
    limit = limit_gb * GB
    others = [
        path
        for path in store.folder.parent.glob("*")
        if path != store.folder
        and _STORE.fullmatch(path.name)  # never a folder that is not a store
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
    """Open the store of a model's encoder.

    Args:
        model: The model with the encoder.
        processor: The model's processor.
        folder: Folder of all stores.
        dtype: Type of the stored numbers.
        sample: A sample with pictures, from which the image tokens per picture are counted.
    """
    from vqa_app.prompts.prompt import image_token_id

    tokens = int((sample.input_ids == image_token_id(processor)).sum()) // len(sample.digests)
    name = f"{encoder_hash(model, processor)}-{str(dtype).removeprefix('torch.')}"
    return FeatureStore(folder / name, (tokens, feature_width(unwrap(model))), dtype)


def encoder_hash(model: Any, processor: Any) -> str:
    """Return 16 hex digits over the encoder's weights, its selected outputs and the processing."""
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
    """Return a picture as the encoder takes it: [3, height, width]."""
    return processor.image_processor([picture.image], return_tensors="pt")["pixel_values"][0]


@torch.no_grad()
def encode_pictures(model: Any, pixels: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the projector's inputs for each picture.

    Args:
        model: The model with the encoder.
        pixels: Result of `pixels_of` for each picture.
        dtype: A 16-bit one runs the encoder under autocast as training would; float32 does not.

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
    """Return how many pictures are encoded in one batch."""
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
    """Encode and store the samples' pictures that are not stored yet; call `reload` afterwards.

    Args:
        store: The store to write to.
        model: The model with the encoder.
        processor: The model's processor.
        samples: The samples with the pictures.
        workers: Number of threads that read pictures.
        part: (number of this process, number of processes); each encodes its share.
        on_progress: Called with the number of pictures done and the total.

    Raises:
        DataError: A picture has changed since the data was checked.
    """
    sources = {
        digest: source
        for sample in samples
        for digest, source in zip(sample.digests, sample.sources, strict=True)
    }
    # Divide all pictures, not the missing ones: another process may already have stored some.
    share = sorted(sources)[part[0] :: part[1]]
    missing = [digest for digest in share if digest not in store]

    def read(digest: str) -> Tensor:
        picture = sources[digest].open()
        if picture.digest != digest:
            raise DataError(
                f"{picture.name} has changed since the data was checked.", "Run the command again."
            )
        return pixels_of(processor, picture)

    # Wait as preprocessed pixels: a decoded photograph may take 100 times as much memory.
    pictures = parallel_map(read, missing, workers)
    at_once, done = pictures_at_once(model), 0
    waiting: list[Tensor] = []
    while done < len(missing):
        waiting += islice(pictures, max(0, at_once - len(waiting)))
        encoded = _encoded(model, waiting[:at_once], store.dtype)
        if encoded is None:
            at_once = min(at_once, len(waiting)) // 2
            reclaim_memory()
            continue
        store.append(missing[done : done + len(encoded)], encoded)
        del waiting[: len(encoded)]
        done += len(encoded)
        if on_progress:
            on_progress(done, len(missing))


def _encoded(model: Any, pixels: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """Return the result of `encode_pictures`; None if memory may suffice for fewer pictures."""
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
