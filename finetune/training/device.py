"""The device that this process trains on, and the processes beside it."""

from __future__ import annotations

import os
import platform
import sys
import traceback
from datetime import timedelta
from typing import Any

import torch

from finetune.config import FinetuneConfig
from vqa_app import devices
from vqa_app.devices import choose_device, computes_in_bfloat16
from vqa_app.errors import UsageError

PATIENCE = timedelta(hours=2)
"""How long processes wait for the first one while it answers, saves and verifies alone."""

LESS_MEMORY = "Close other programs, use a smaller model or --stage qlora, or more memory."


def join_processes(config: FinetuneConfig) -> tuple[int, int]:
    """This process's number and how many there are; `accelerate launch` starts several.

    Raises:
        UsageError: the config shards, and there are no GPUs.
    """
    from accelerate import PartialState

    device = device_of(config)
    for option in ("fsdp", "deepspeed"):
        if getattr(config, option) and not device.startswith("cuda"):
            raise UsageError(
                f"{option} shards over GPUs, and none is used.", f"Leave {option} out."
            )
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    return state.process_index, state.num_processes


def device_of(config: FinetuneConfig) -> str:
    """`cpu`, `mps` or `cuda:N`, this process's own.

    Raises:
        ModelError: it cannot be used here.
        UsageError: a GPU that the Trainer would not take: it takes the first that is visible.
    """
    device = choose_device(config.device)
    if device.type != "cuda":
        return str(device)
    if device.index:
        raise UsageError(
            f"Training cannot be given the device {config.device!r}.",
            f"Set CUDA_VISIBLE_DEVICES={device.index} and give --device cuda.",
        )
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def idle_gpus(config: FinetuneConfig, processes: int) -> str:
    """A sentence about GPUs that a start without `accelerate launch` does not use; or nothing."""
    here = torch.cuda.device_count()
    if processes > 1 or here < 2 or not device_of(config).startswith("cuda"):
        return ""
    return f"One of {here} GPUs trains; accelerate launch -m finetune ... uses all."


def computes_bf16(config: FinetuneConfig) -> bool:
    """Whether the forward pass runs in bf16: as asked, or where the hardware has it."""
    if config.precision != "auto":
        return config.precision == "bf16"
    # On ARM models answer in bf16, too; whether they train faster in it has not been measured.
    arm = platform.machine().lower() in ("aarch64", "arm64")
    device = torch.device(device_of(config))
    return computes_in_bfloat16(device) and not (device.type == "cpu" and arm)


def free_memory(config: FinetuneConfig) -> int:
    """Bytes free on the device; on mps and cpu the machine's."""
    return devices.free_memory(torch.device(device_of(config)))


def held_memory(config: FinetuneConfig) -> int:
    """Bytes that this process has taken of the device's memory."""
    if device_of(config).startswith("cuda"):
        return torch.cuda.memory_allocated(torch.device(device_of(config)))
    import psutil

    return psutil.Process().memory_info().rss


def reset_peak_memory(config: FinetuneConfig) -> None:
    """Counts `peak_memory` of a GPU anew; a program's own cannot be."""
    if device_of(config).startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(torch.device(device_of(config)))


def clear_frames(error: BaseException | None) -> None:
    """Empties the calls that an error remembers: their variables hold models."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def peak_memory(config: FinetuneConfig) -> int:
    """Most bytes that this process has held of the device's memory."""
    if device_of(config).startswith("cuda"):
        return torch.cuda.max_memory_allocated(torch.device(device_of(config)))
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def wait(processes: int) -> None:
    """Until every process has come here."""
    if processes > 1:
        torch.distributed.barrier()


def from_main(value: Any, processes: int) -> Any:
    """The first process's value, in all of them."""
    if processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]
