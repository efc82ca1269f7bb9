"""Devices, precisions and free memory."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from vqa_app.errors import ModelError, UsageError, first_line

if TYPE_CHECKING:
    import torch

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Quantization: TypeAlias = Literal["4bit", "8bit"]

SMALL_MODEL = 100_000_000
"""Below this many parameters, CPUs compute in float32. Instructions for bfloat16 would halve the
prefill time, but that is milliseconds, and in float32 an answer does not depend on how much of the
prompt came from the cache."""

_OUT_OF_MEMORY = ("out of memory", "defaultcpuallocator", "alloc_failed", "invalid buffer size")
"""Parts of torch's messages: on CUDA and mps; on CPUs; in cuBLAS and cuDNN; on mps for a tensor."""

_DEVICE_FAILURES = (
    "no kernel image", "cuda error", "cuda driver", "nvidia driver", "cuda unknown error",
    "no cuda gpus", "cuda setup", "cudnn_status", "cublas_status", "hip error", "mps backend"
)  # fmt: skip
"""Parts of messages of torch and bitsandbytes about a GPU or its driver."""

_drop_caches: list[Callable[[], bool]] = []
"""See `register_caches`."""


def choose_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is the first available of cuda, mps and cpu.

    Raises:
        UsageError: There is no such name.
        ModelError: This machine or this installation of torch has no such device.
    """
    import torch

    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    advice = (
        f"Available here: {', '.join(available)}. Give --device {available[0]}, or leave it out."
    )
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"There is no device {name!r}.", advice) from error
    try:
        if device.type == "meta":  # tensors without data
            raise RuntimeError("the meta device computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = _why_unavailable(device) or first_line(error).rstrip(".")
        raise ModelError(f"The device {name!r} cannot be used: {reason}.", advice) from error
    return device


def available_devices() -> list[str]:
    """Return the names of this machine's devices that torch can use, the fastest first."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{number}" for number in range(count)] if count > 1 else ["cuda"] * count
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _why_unavailable(device: torch.device) -> str:
    """Return why torch cannot use a device; "" if only torch's own error says it."""
    import torch

    if device.type == "cuda":
        if not torch.backends.cuda.is_built():
            return "the installed torch was built without CUDA"
        if not torch.cuda.is_available():
            return "torch finds no NVIDIA GPU"
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            return f"there {'is one GPU' if count == 1 else f'are {count} GPUs'}, counted from 0"
    if device.type == "mps":
        return "torch finds no GPU of Apple's"
    return ""


def choose_dtype(
    name: str, device: torch.device, parameters: int, *, overflows: bool = False
) -> torch.dtype:
    """Return the dtype of this name; `auto` is bfloat16 where the device computes in it.

    | device                        | auto                                    |
    |-------------------------------|-----------------------------------------|
    | GPU, bfloat16 instructions    | bfloat16                                |
    | older GPU, such as a T4       | float16; float32 for one that overflows |
    | Mac, macOS 14 or newer        | bfloat16                                |
    | Mac, older macOS              | float16; float32 for one that overflows |
    | CPU, bfloat16 instructions    | bfloat16; float32 for a small model     |
    | other CPU                     | float32                                 |

    Args:
        name: One of `Dtype`.
        device: Where the model will run.
        parameters: Number of the model's parameters.
        overflows: Whether the model's values are too large for float16.

    Raises:
        UsageError: The name is unknown.
    """
    import torch

    if name != "auto":
        check_dtype(name)
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu" and parameters < SMALL_MODEL:
        return torch.float32
    if computes_in_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type != "cpu" and not overflows else torch.float32


def check_dtype(name: str) -> None:
    """Check that a name is one of `Dtype`.

    Raises:
        UsageError: It is not; the message lists the choices.
    """
    if name not in get_args(Dtype):
        raise UsageError(f"Unknown dtype {name!r}.", f"Choose {', '.join(get_args(Dtype))}.")


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions and torch has kernels for them.

    Emulation does not count, because it is slower than float32.
    """
    import torch

    if device.type == "cuda":  # this very GPU: a machine may have an A100 beside a T4
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":  # whose kernels come with macOS
        return torch.backends.mps.is_macos_or_newer(14, 0)
    from vqa_app.torch_internals import has_bf16_instructions, has_bf16_kernels

    return has_bf16_kernels() and has_bf16_instructions()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    Only CUDA has a class for it; on other devices only the message says so.
    """
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in message for part in _OUT_OF_MEMORY)
    )


def clear_frames(error: BaseException | None) -> None:
    """Clear the variables in an error's traceback: they keep models and KV caches in memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def device_error(error: BaseException) -> ModelError | None:
    """Return what to say about a GPU or driver that fails; None for any other error.

    Running out of memory is not a failure of the device, nor is an assertion in a kernel.
    """
    message = str(error).lower()
    if (
        not isinstance(error, RuntimeError)
        or is_out_of_memory(error)
        or "device-side assert" in message
        or not any(part in message for part in _DEVICE_FAILURES)
    ):
        return None
    if "no kernel image" in message:
        hint = "Install a torch built for this GPU: https://pytorch.org/get-started."
    else:
        hint = "Update the GPU's driver, or restart the machine."
    return ModelError(
        f"The GPU cannot be used: {first_line(error).rstrip('.')}.",
        f"{hint} `--device cpu` works without the GPU.",
    )


def free_memory(device: torch.device) -> int:
    """Return the free device memory, in bytes.

    Memory that torch's GPU allocator keeps after tensors were freed counts as free, because torch
    reuses it. On cpu this is the machine's available memory; on mps it is no more than what macOS
    recommends to a program, which is less than the machine's.
    """
    import torch

    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reusable)
    import psutil

    available = int(psutil.virtual_memory().available)
    if device.type == "mps":
        used = torch.mps.current_allocated_memory()
        available += torch.mps.driver_allocated_memory() - used
        return max(0, min(available, torch.mps.recommended_max_memory() - used))
    return available


def release_memory() -> None:
    """Collect unreachable models and return their GPU memory to the driver.

    Takes tenths of a second, too long for loops.
    """
    gc.collect()  # modules with hooks and caches are cycles
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def register_caches(drop: Callable[[], bool]) -> None:
    """Register caches whose content can be computed again, also by an engine in use.

    Args:
        drop: Drops all that they hold, and returns whether they held anything. It is called on any
            thread, whenever memory is scarce.
    """
    _drop_caches.append(drop)


def reclaim_memory() -> bool:
    """Drop all registered caches and release their memory; for whoever would refuse for lack of it.

    A prompt that has to be read again costs less than a model that has to be loaded again, or that
    is not loaded at all.

    Returns:
        Whether the caches held anything.
    """
    held = [drop() for drop in _drop_caches]
    release_memory()
    return any(held)
