"""Inspect safetensors files by their headers, without loading a tensor."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vqa_app.errors import ModelError
from vqa_app.files import JSON_ERRORS

_HEADER_LIMIT = 100_000_000
"""Largest header in bytes that the safetensors format allows."""
_SAMPLE = 1024
"""Bytes of a tensor that are hashed at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    name: str
    dtype: str
    """Name of the dtype in safetensors, such as `BF16` or `F32`."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """Offset of the first byte in the file."""
    end: int
    """Offset after the last byte."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def model_files(directory: Path) -> list[Path]:
    """List the weight files that transformers loads: those in the index, or `model.safetensors`.

    Raises:
        ModelError: The index is damaged.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return sorted(directory / name for name in names)
        except (OSError, *JSON_ERRORS, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is damaged.", "Download the model again.") from error
    single = directory / "model.safetensors"
    return [single] if single.is_file() else []


def stored_tensors(files: list[Path]) -> Iterator[StoredTensor]:
    """Yield all tensors of these files.

    Raises:
        ModelError: A file is missing, truncated, too long or not a safetensors file.
    """
    for file in files:
        try:
            size = file.stat().st_size
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > min(_HEADER_LIMIT, size):
                    raise _damaged(file, "the header is longer than the file")
                header = json.loads(stream.read(length))
            base = covered = 8 + length
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                start, end = entry["data_offsets"]
                if base + end > size:
                    raise _damaged(file, f"{name} extends beyond the end of the file")
                shape = tuple(entry["shape"])
                covered = max(covered, base + end)
                yield StoredTensor(name, entry["dtype"], shape, file, base + start, base + end)
            if covered < size:
                raise _damaged(file, "it continues after its last tensor")
        except FileNotFoundError:
            raise ModelError(
                f"{file} is missing.", "Download the model again; this copy is incomplete."
            ) from None
        except (OSError, *JSON_ERRORS, KeyError, TypeError, struct.error) as error:
            raise _damaged(file, "its header cannot be read") from error


def _damaged(file: Path, reason: str) -> ModelError:
    problem = f"{file} is not a valid safetensors file: {reason}."
    return ModelError(problem, "Download the model again.")


def fingerprint(files: list[Path]) -> str:
    """Return 16 hex digits that identify weights, regardless of how they are split into files.

    They are a hash over names, dtypes and shapes and over the first, middle and last kilobyte of
    each tensor. This is fast for a model of any size, and training changes all of those bytes.

    Raises:
        ModelError: See `stored_tensors`.
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
