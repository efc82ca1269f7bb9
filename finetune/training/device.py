"""Where a run trains: device, precision and processes, decided once at its start."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from finetune.config import FinetuneConfig
from vqa_app import devices
from vqa_app.errors import UsageError

BARRIER_TIMEOUT = timedelta(hours=2)
"""How long processes wait for the main one while it answers watch questions, saves and verifies."""

LESS_MEMORY = "Close other programs, use a smaller model or --stage qlora, or more memory."

_FAILED = "vqa-app/failed"
"""Key of the store in which a process says that it has failed."""

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device, in bytes."""

    held: int
    """Held by this process: on a GPU its tensors, on a CPU the whole program."""
    free: int
    """Free memory of the device; on mps and cpu, of the machine."""


@dataclass(frozen=True)
class Machine:
    """The device of this process, its precision, and the processes that train together."""

    device: torch.device
    """The device of this process: cpu, mps or cuda:N."""
    autocast: torch.dtype | None
    """The 16-bit precision to which autocast lowers the forward pass; None: it runs in fp32."""
    process: int = 0
    """Number of this process, from 0."""
    processes: int = 1
    """How many processes train together."""

    @property
    def on_gpu(self) -> bool:
        """Whether the device is not the CPU."""
        return self.device.type != "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes files."""
        return self.process == 0

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the forward pass."""
        return self.autocast or torch.float32

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled up, so that small gradients are not rounded to 0 in fp16."""
        return self.autocast == torch.float16

    def memory(self) -> DeviceMemory:
        """Measure the device's memory as it is now."""
        if self.device.type == "cuda":
            held = torch.cuda.memory_allocated(self.device)
        elif self.device.type == "mps":
            held = torch.mps.current_allocated_memory()
        else:
            import psutil

            held = psutil.Process().memory_info().rss
        return DeviceMemory(held, devices.free_memory(self.device))

    def reset_peak_memory(self) -> None:
        """Reset `peak_memory` on a GPU; on a CPU it is counted from the start of the process."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int:
        """Return the most bytes of the device's memory that this process has held."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            import psutil

            return psutil.Process().memory_info().peak_wset
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def idle_gpus(self) -> str:
        """Return a sentence about GPUs that only `accelerate launch` would use; "" if none."""
        count = torch.cuda.device_count()
        if self.processes > 1 or count < 2 or self.device.type != "cuda":
            return ""
        return f"One of {count} GPUs trains; accelerate launch -m finetune ... uses all."

    def wait_for_all(self) -> None:
        """Wait until every process has reached this call."""
        if self.processes > 1:
            torch.distributed.barrier()

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """End every process soon after one has failed.

        The others wait for it inside an operation of all processes, which only the end of the
        process interrupts. Nothing is lost by that: files are complete or do not exist.
        """
        if self.processes == 1:
            yield
            return
        from vqa_app.torch_internals import process_group_store

        ended = threading.Event()
        store = process_group_store()

        def watch() -> None:
            while not ended.wait(1):
                try:
                    failed = store.check([_FAILED])
                except RuntimeError:  # the process with the store is gone
                    failed = not ended.wait(10)
                if failed:
                    print("Another process has failed, so this one ends.", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(1)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            with contextlib.suppress(RuntimeError):
                process_group_store().set(_FAILED, str(self.process))
            raise
        finally:
            ended.set()
            thread.join(5)

    def from_main(self, value: _Value) -> _Value:
        """Return the main process's value in every process."""
        if self.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


def set_up_machine(config: FinetuneConfig) -> Machine:
    """Choose the device and the precision, and join the other processes, if any.

    Raises:
        ModelError: The device cannot be used here.
        UsageError: The config asks for a GPU of another process, or for what the device lacks.
    """
    device = training_device(config.device)
    for option in ("fsdp", "deepspeed"):
        if getattr(config, option) and device.type != "cuda":
            raise UsageError(
                f"--{option} shards over CUDA GPUs, but this run trains on {device}.",
                f"Leave --{option} out, or train on GPUs: --device cuda.",
            )
        if getattr(config, option) and not torch.distributed.is_nccl_available():
            raise UsageError(
                f"--{option} needs NCCL, which the installed torch does not have.",
                f"Leave --{option} out, or train on Linux; on Windows, WSL has NCCL, too.",
            )
    autocast = training_autocast(
        config.precision, device, sharded=bool(config.fsdp or config.deepspeed)
    )
    return Machine(device, autocast, *join_processes(device, fsdp=config.fsdp is not None))


def why_fp32(config: FinetuneConfig, machine: Machine) -> str:
    """Return why a GPU trains in fp32 although nobody asked for it; "" if it does not."""
    if config.precision != "auto" or machine.autocast is not None:
        return ""
    if machine.device.type == "cuda":  # alone it would train in fp16
        return (
            "Training in fp32: this GPU has no bf16 instructions, and fp16 is not used with --fsdp "
            "or --deepspeed. Without them it trains in fp16."
        )
    return "Training in fp32: bf16 needs macOS 14." if machine.device.type == "mps" else ""


def join_processes(device: torch.device, *, fsdp: bool = False) -> tuple[int, int]:
    """Join the processes that `accelerate launch` or `torchrun` started.

    Args:
        device: The device of this process.
        fsdp: Whether FSDP shards the model, and may offload it to the CPU.

    Returns:
        This process's number, from 0, and the number of processes.
    """
    from accelerate import PartialState

    on_gpu, joined = device.type == "cuda", torch.distributed.is_initialized()
    lacks_nccl = on_gpu and not torch.distributed.is_nccl_available()
    if "LOCAL_RANK" in os.environ and not joined and (fsdp or lacks_nccl):
        # accelerate would join with NCCL alone, which cannot reduce gradients that FSDP has
        # offloaded to the CPU, and which torch lacks on Windows. Gloo reduces those of GPUs, too.
        nccl = on_gpu and not lacks_nccl
        torch.distributed.init_process_group(
            f"cpu:gloo,{device.type}:nccl" if nccl else "gloo", timeout=BARRIER_TIMEOUT
        )
    state = PartialState(cpu=device.type == "cpu", timeout=BARRIER_TIMEOUT)
    return state.process_index, state.num_processes


def training_device(name: str) -> torch.device:
    """Return this process's device: cpu, mps or cuda:N.

    Args:
        name: As in the config; auto is the first available of cuda, mps and cpu.

    Raises:
        ModelError: The device cannot be used here.
        UsageError: One of several processes is given a GPU by its number, or there are fewer GPUs
            than processes.
    """
    device = devices.choose_device(name)
    if device.type != "cuda":
        return device
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is not None and name not in ("auto", "cuda", "cuda:0"):
        raise UsageError(
            f"Several processes train, each on the GPU of its own number, but --device is {name}.",
            "Leave --device out. CUDA_VISIBLE_DEVICES=2,3 chooses the third and fourth GPU.",
        )
    number = int(local_rank or device.index or 0)
    if local_rank is not None and number >= (count := torch.cuda.device_count()):
        raise UsageError(
            f"This machine has {count} GPU{'s' * (count > 1)}, and process {number + 1} would need"
            " another one.",
            f"Start at most {count} on this machine: accelerate launch --num_processes {count}",
        )
    return torch.device("cuda", number)


def training_autocast(
    precision: str, device: torch.device, *, sharded: bool = False
) -> torch.dtype | None:
    """Return the precision to which autocast lowers the forward pass; None for fp32.

    | device                         | auto                |
    |--------------------------------|---------------------|
    | GPU, bf16 instructions         | bf16                |
    | older GPU, such as a T4        | fp16, a scaled loss |
    | older GPUs, FSDP or DeepSpeed  | fp32, see why_fp32  |
    | Mac, macOS 14 or newer         | bf16                |
    | Mac, older macOS               | fp32, see why_fp32  |
    | x86 CPU, bf16 instructions     | bf16                |
    | other CPU                      | fp32                |

    Trained weights are fp32 in every case.

    Args:
        precision: As in the config.
        device: Where the forward pass runs.
        sharded: Whether FSDP or DeepSpeed divides the model. Their scalers of the loss are others.

    Raises:
        UsageError: The config asks for fp16 where it is not supported.
    """
    if precision == "fp16" and (device.type != "cuda" or sharded):
        where = "with --fsdp or --deepspeed" if sharded else f"on {device.type}"
        raise UsageError(
            f"--precision fp16 does not train {where}.", "Choose --precision bf16 or fp32."
        )
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]
    # On ARM models answer in bf16, too; whether they train faster in it has not been measured.
    arm = platform.machine().lower() in ("aarch64", "arm64")
    if devices.computes_in_bfloat16(device) and not (device.type == "cpu" and arm):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" and not sharded else None
