"""Check that a model fits in the memory of a device before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vqa_app.checkpoints.weights import StoredTensor
from vqa_app.devices import free_memory, reclaim_memory
from vqa_app.errors import InsufficientMemoryError
from vqa_app.files import format_bytes

if TYPE_CHECKING:
    import torch

WEIGHTS_SHARE = {"4bit": 0.33, "8bit": 0.55}
"""Memory of quantised weights relative to 16-bit ones. In 4 bits a weight takes 4.13 bits with
bitsandbytes (NF4 with double quantisation) and 5 on a CPU; embeddings, projector and encoder are
not quantised."""


def check_memory(
    name: str,
    tensors: Sequence[StoredTensor],
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
    needed: int | None = None,
) -> None:
    """Check that there is enough memory for the weights alone, or for this process's part of them.

    Args:
        name: Name of the model in messages.
        tensors: Its weights.
        device: The device to load them to.
        dtype: Precision in which floating-point weights are loaded.
        quantize: `4bit`, `8bit` or None.
        needed: The memory in bytes, if it is known; otherwise it is estimated.

    Raises:
        InsufficientMemoryError: The weights need more memory than is free.
    """
    import torch

    from vqa_app.transformers_internals import shards_on_cpu, shards_while_loading

    if needed is None and quantize is not None:
        needed = int(2 * sum(tensor.size for tensor in tensors) * WEIGHTS_SHARE[quantize])
    if needed is None:
        needed = sum(
            tensor.size * dtype.itemsize if "F" in tensor.dtype else tensor.end - tensor.start
            for tensor in tensors
        )
    if shards_while_loading() and quantize is None:
        needed //= torch.distributed.get_world_size()
        device = torch.device("cpu") if shards_on_cpu() else device
    if device.type == "cpu":  # all processes of this machine load the model at the same time
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if needed <= free_memory(device):
        return
    reclaim_memory()  # from engines in use, and from models that were not garbage-collected yet
    free = free_memory(device)
    if needed <= free:
        return
    kind = "GPU memory" if device.type == "cuda" else "memory"
    remedies = ["a smaller model"]
    if quantize is None:
        remedies.insert(0, "--quantize 4bit")
    if quantize is None and dtype.itemsize > 2:
        remedies.insert(0, "--dtype bfloat16")
    raise InsufficientMemoryError(
        f"{name} needs {format_bytes(needed)} of {kind}; {format_bytes(free)} are free.",
        f"Use {' or '.join(remedies)}, or close other programs.",
    )
