"""What a directory's safetensors files hold, read from their headers without loading a tensor."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vqa_app.errors import ModelError

_HEADER_LIMIT = 100_000_000
"""As in the safetensors format: a header is at most 100 MB."""
_SAMPLE = 1024


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    name: str
    dtype: str
    """As safetensors writes it: `BF16`, `F32`, ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """First byte in the file."""
    end: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def model_files(directory: Path) -> list[Path]:
    """The weight files that transformers would load: those of the index, or `model.safetensors`.

    Raises:
        ModelError: the index is cut off or none.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return sorted(directory / name for name in names)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{index} is not a whole index of weights: {error!r}.", "Download the model again."
            ) from error
    single = directory / "model.safetensors"
    return [single] if single.is_file() else []


def stored_tensors(files: list[Path]) -> Iterator[StoredTensor]:
    """Every tensor of these files.

    Raises:
        ModelError: a file that is missing, cut off, too long or no safetensors file.
    """
    for file in files:
        try:
            size = file.stat().st_size
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > min(_HEADER_LIMIT, size):
                    raise ValueError("header longer than the file")
                header = json.loads(stream.read(length))
            base = covered = 8 + length
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                start, end = entry["data_offsets"]
                if base + end > size:
                    raise ValueError(f"{name} ends behind the end of the file")
                shape = tuple(entry["shape"])
                covered = max(covered, base + end)
                yield StoredTensor(name, entry["dtype"], shape, file, base + start, base + end)
            if covered < size:
                raise ValueError("it goes on behind its last tensor")
        except FileNotFoundError:
            raise ModelError(
                f"{file} is missing.", "Download the model again; the copy is not complete."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise ModelError(
                f"{file} is not a whole safetensors file: {error}.", "Download the model again."
            ) from error


def fingerprint(files: list[Path]) -> str:
    """16 hex digits that identify weights, whatever files they are split into.

    A hash over names, dtypes and shapes, and of each tensor its first, middle and last kilobyte:
    cheap for a model of any size, and training changes every one of those.

    Raises:
        ModelError: see `stored_tensors`.
    """
    digest = hashlib.sha256()
    streams = {file: file.open("rb") for file in files if file.is_file()}
    try:
        for tensor in sorted(stored_tensors(files), key=lambda tensor: tensor.name):
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
            stream = streams[tensor.file]
            length = tensor.end - tensor.start
            for offset in (0, length // 2, max(0, length - _SAMPLE)):
                stream.seek(tensor.start + offset)
                digest.update(stream.read(min(_SAMPLE, length - offset)))
    finally:
        for stream in streams.values():
            stream.close()
    return digest.hexdigest()[:16]
