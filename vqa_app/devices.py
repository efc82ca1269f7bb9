"""Where a model runs and in which precision, and whether it fits there."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from vqa_app.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Quantization: TypeAlias = Literal["4bit", "8bit"]

SMALL = 100_000_000
"""Below this many parameters a CPU computes in float32. bfloat16 would halve the time to read a
prompt where there are instructions for it, but that is milliseconds, and in float32 an answer does
not depend on how a prompt was split between cache and computation."""


_FULL = ("out of memory", "defaultcpuallocator", "alloc_failed", "invalid buffer size")
"""How PyTorch says so: on CUDA and mps; on CPUs; in cuBLAS and cuDNN; on mps for one tensor."""


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first there is of cuda, mps and cpu.

    Raises:
        ModelError: it cannot be used here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        mps = getattr(torch.backends, "mps", None)
        return torch.device("mps" if mps is not None and mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":  # torch's device for tensors without contents
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ModelError(
            f"The device {name!r} cannot be used here.", "Choose auto, cpu, cuda or mps."
        ) from error
    return device


def choose_dtype(name: str, device: torch.device, parameters: int) -> torch.dtype:
    """The dtype of a name; see `vqa_app.checkpoints.loader.load_model` for what `auto` is.

    Raises:
        UsageError: an unknown name.
    """
    import torch

    if name != "auto":
        check_dtype(name)
        return getattr(torch, name)
    if device.type == "cuda":  # emulated where need be: float16 overflows in some models
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and parameters < SMALL:
        return torch.float32
    return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32


def check_dtype(name: str) -> None:
    """Refuses what is none of `Dtype`.

    Raises:
        UsageError: with what to choose from.
    """
    if name not in get_args(Dtype):
        raise UsageError(f"Unknown dtype {name!r}.", f"Choose {', '.join(get_args(Dtype))}.")


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, and torch the kernels that use them.

    Emulation does not count: it is slower than float32.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return True
    from vqa_app.torch_internals import has_bf16_instructions, has_bf16_kernels

    return has_bf16_kernels() and has_bf16_instructions()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells of a full memory, be it in words alone as on all devices but CUDA."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in _FULL)
    )


def free_memory(device: torch.device) -> int:
    """Bytes that a tensor of this process may take on a device.

    What PyTorch's allocator for GPUs keeps of tensors that are gone counts as free: it hands that
    out again, and the driver cannot know. On mps and cpu it is the machine's available memory.
    """
    import torch

    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    return psutil.virtual_memory().available


def release_memory() -> None:
    """Collects models that nothing holds any more, and gives their GPU memory back to the driver.

    Takes tenths of a second: not for loops.
    """
    import torch

    gc.collect()  # modules with hooks and caches are cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
