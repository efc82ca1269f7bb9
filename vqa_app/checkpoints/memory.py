"""Whether a model fits into the memory of a device, before it is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vqa_app.checkpoints.weights import StoredTensor
from vqa_app.devices import free_memory, release_memory
from vqa_app.errors import InsufficientMemoryError
from vqa_app.files import format_bytes

WEIGHTS_SHARE = {"4bit": 0.30, "8bit": 0.55}
"""Memory of quantised weights over that of 16-bit ones: NF4 with double quantisation has 4.13 bits
a weight; embeddings, projector and encoder stay as they are."""


def check_memory(
    name: str,
    tensors: Sequence[StoredTensor],
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
) -> None:
    """Refuses weights that alone need more than is free.

    Raises:
        InsufficientMemoryError: with both figures.
    """
    sixteen_bit = 2 * sum(tensor.size for tensor in tensors)
    if quantize is not None:
        needed = int(sixteen_bit * WEIGHTS_SHARE[quantize])
    else:
        needed = sum(
            tensor.size * dtype.itemsize if "F" in tensor.dtype else tensor.end - tensor.start
            for tensor in tensors
        )
    if needed <= free_memory(device):
        return
    release_memory()  # an earlier model may wait for the collector
    free = free_memory(device)
    if needed <= free:
        return
    kind = "GPU memory" if device.type == "cuda" else "memory"
    ways = ["a smaller model"]
    if quantize is None:
        ways.insert(0, "--quantize 4bit")
    if quantize is None and dtype.itemsize > 2:
        ways.insert(0, "--dtype bfloat16")
    raise InsufficientMemoryError(
        f"{name} needs {format_bytes(needed)} of {kind}; {format_bytes(free)} are free.",
        f"Use {' or '.join(ways)}, or close other programs.",
    )
