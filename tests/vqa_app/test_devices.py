"""Devices and precisions chosen by default, and free memory."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from finetune.config import FinetuneConfig
from finetune.training.device import training_autocast, training_device
from finetune.training.train import train
from vqa_app.checkpoints.memory import check_memory
from vqa_app.checkpoints.weights import StoredTensor
from vqa_app.cli.main import app
from vqa_app.devices import (
    SMALL_MODEL,
    choose_device,
    choose_dtype,
    computes_in_bfloat16,
    device_error,
    free_memory,
    is_out_of_memory,
)
from vqa_app.errors import ModelError, UsageError

GB = 10**9
CPU = torch.device("cpu")


@pytest.fixture
def bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a CPU with instructions for bfloat16."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


def test_models_answer_and_train_in_bfloat16_if_the_cpu_supports_it(bf16_cpu: None) -> None:
    assert choose_dtype("auto", CPU, SMALL_MODEL) == torch.bfloat16
    assert choose_dtype("auto", CPU, SMALL_MODEL - 1) == torch.float32
    assert training_autocast("auto", CPU) == torch.bfloat16
    assert training_autocast("fp32", CPU) is None


def test_training_accepts_the_same_devices_as_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(training_device("auto")) in ("cpu", "mps", "cuda:0")
    for name, kind in (("gpu", UsageError), ("cuda:99", ModelError), ("cpu:x", UsageError)):
        with pytest.raises(kind, match=f"device {name!r}"):
            train(FinetuneConfig(data=("none.json",), out="nowhere", device=name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert str(training_device("auto")) == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(training_device("auto")) == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "1")  # of `accelerate launch`
    assert str(training_device("auto")) == "cuda:1"
    for command in ("finetune", "eval"):
        help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
        assert "auto, cpu, cuda, cuda:1 or mps" in help_text


@pytest.mark.parametrize(
    ("kind", "version", "parameters", "overflows", "expected"),
    [
        ("cuda", (8, 0), 10**6, False, torch.bfloat16),  # A100
        ("cuda", (8, 0), 10**9, True, torch.bfloat16),
        ("cuda", (12, 0), 10**9, False, torch.bfloat16),  # a laptop's RTX 5070
        ("cuda", (7, 5), 10**9, False, torch.float16),  # T4: bfloat16 is only emulated
        ("cuda", (7, 5), 10**9, True, torch.float32),
        ("cuda", (6, 1), 10**9, False, torch.float16),  # GTX 1080
        ("mps", (15, 2), 10**9, True, torch.bfloat16),
        ("mps", (14, 0), 10**6, False, torch.bfloat16),
        ("mps", (13, 7), 10**9, False, torch.float16),  # torch refuses bfloat16 there
        ("mps", (13, 7), 10**9, True, torch.float32),
        ("cpu", None, 10**6, False, torch.float32),
    ],
)
def test_each_device_serves_the_precision_that_it_computes_in(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    version: tuple[int, int] | None,
    parameters: int,
    overflows: bool,
    expected: torch.dtype,
) -> None:
    """The version is a GPU's compute capability, or a Mac's macOS."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: version)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *one: version >= one)
    device = torch.device(kind)
    assert choose_dtype("auto", device, parameters, overflows=overflows) == expected
    assert choose_dtype("float32", device, parameters, overflows=overflows) == torch.float32


def test_the_precision_is_that_of_the_gpu_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own question is about the current GPU, an A100 beside a T4."""
    capabilities = {0: (8, 0), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capabilities[device.index]
    )
    found = [choose_dtype("auto", torch.device(f"cuda:{n}"), SMALL_MODEL) for n in (0, 1)]
    assert found == [torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    ("name", "overflows"), [("gemma3", True), ("paligemma", False), ("llava-siglip", False)]
)
def test_models_known_to_overflow_are_not_served_in_float16(
    tiny_checkpoint: Callable[[str], Path], name: str, overflows: bool
) -> None:
    from transformers import AutoConfig

    from vqa_app.models.architecture import overflows_in_float16

    assert overflows_in_float16(AutoConfig.from_pretrained(tiny_checkpoint(name))) is overflows


@pytest.mark.parametrize(
    ("name", "built", "gpus", "problem", "hint"),
    [
        (
            "cuda",
            False,
            0,
            "'cuda' cannot be used: the installed torch was built without CUDA",
            "cpu",
        ),
        ("cuda", True, 0, "'cuda' cannot be used: torch finds no NVIDIA GPU", "cpu"),
        (
            "cuda:7",
            True,
            1,
            "'cuda:7' cannot be used: there is one GPU, counted from 0",
            "cuda, cpu",
        ),
        ("cuda:2", True, 2, "'cuda:2' cannot be used: there are 2 GPUs", "cuda:0, cuda:1, cpu"),
        ("mps", True, 0, "'mps' cannot be used: torch finds no GPU of Apple's", "cpu"),
        ("meta", True, 0, "'meta' cannot be used: the meta device computes nothing", "cpu"),
        ("gpu", True, 1, "There is no device 'gpu'", "cuda, cpu"),
        ("cuda:x", False, 0, "There is no device 'cuda:x'", "cpu"),
    ],
)
def test_an_unusable_device_is_explained_with_those_that_can_be_used(
    monkeypatch: pytest.MonkeyPatch, name: str, built: bool, gpus: int, problem: str, hint: str
) -> None:
    def empty(*_: object, device: torch.device) -> None:
        raise RuntimeError(f"no {device}\nExtra lines for developers")

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises((ModelError, UsageError), match=re.escape(problem)) as raised:
        choose_device(name)
    first = hint.split(", ")[0]
    assert raised.value.hint == f"Available here: {hint}. Give --device {first}, or leave it out."


def test_training_on_arm_stays_in_float32(bf16_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert computes_in_bfloat16(CPU)
    assert training_autocast("auto", CPU) is None


def test_a_torch_without_onednn_has_no_bfloat16_kernels(
    bf16_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Macs, where the operator does not exist."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    assert training_autocast("auto", CPU) is None
    assert choose_dtype("auto", CPU, SMALL_MODEL) == torch.float32


def test_doctor_and_memory_errors_use_the_same_gigabyte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = SimpleNamespace(total=32 * GB, available=9.2 * GB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert "32.0 GB memory, 9.2 GB available" in CliRunner().invoke(app, ["doctor"]).stdout
    tensor = StoredTensor("weight", "BF16", (7, GB), Path("model.safetensors"), 0, 14 * GB)
    with pytest.raises(ModelError, match=r"needs 14\.0 GB of memory; 9\.2 GB are free"):
        check_memory("a/b", [tensor], CPU, torch.bfloat16, None)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.00 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"), True),
        (RuntimeError("Invalid buffer size: 24.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_errors_of_all_devices_are_recognised(error: Exception, full: bool) -> None:
    assert is_out_of_memory(error) == full


NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCompile with"


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (NO_KERNEL, "Install a torch built for this GPU"),
        ("The NVIDIA driver on your system is too old (found version 11040).", "Update the GPU's"),
        ("CUDA driver version is insufficient for CUDA runtime version", "Update the GPU's driver"),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", "restart"),
        ("No CUDA GPUs are available", "--device cpu"),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "Update the GPU's driver"),
    ],
)
def test_errors_of_gpus_and_drivers_say_what_to_do(message: str, hint: str) -> None:
    failure = device_error(RuntimeError(message))
    assert failure is not None
    assert message.splitlines()[0].rstrip(".") in failure.problem
    assert hint in failure.hint
    assert "--device cpu" in failure.hint


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.00 GiB."),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("Error(s) in loading state_dict"),
        ValueError("no kernel image"),
    ],
)
def test_other_errors_are_not_blamed_on_the_gpu(error: Exception) -> None:
    assert device_error(error) is None


@pytest.mark.parametrize("call", ["from_pretrained", "to"])
def test_a_gpu_that_fails_while_loading_is_not_blamed_on_the_files(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    from transformers import AutoModelForImageTextToText, PreTrainedModel

    from vqa_app.checkpoints.loader import load_model

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(NO_KERNEL)

    owner = AutoModelForImageTextToText if call == "from_pretrained" else PreTrainedModel
    monkeypatch.setattr(owner, call, fail)
    with pytest.raises(ModelError, match="GPU cannot be used: CUDA error: no kernel") as failed:
        load_model(str(tiny_llava_dir), device="cpu")
    assert "Install a torch" in failed.value.hint


def test_a_gpu_that_fails_in_training_is_reported_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib import import_module

    from finetune.training.device import Machine
    from finetune.training.interrupt import Stop

    recipe = import_module("finetune.training.train")

    def fail(*_: object) -> None:
        raise RuntimeError(NO_KERNEL)

    monkeypatch.setattr(recipe, "_run_steps", fail)
    with pytest.raises(ModelError, match="GPU cannot be used"):
        recipe.train_stage(FinetuneConfig(), Machine(CPU, None), lambda _: None, Stop(None))


def _weights(size: int, dtype: str = "BF16") -> StoredTensor:
    """Return weights of this many bytes."""
    return StoredTensor("weight", dtype, (size // 2,), Path("model.safetensors"), 0, size)


def test_memory_that_torch_keeps_of_freed_models_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (3 * GB, 24 * GB))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 20 * GB)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 5 * GB)
    gpu = torch.device("cuda")
    assert free_memory(gpu) == 18 * GB
    check_memory("a/b", [_weights(17 * GB)], gpu, torch.bfloat16, None)
    with pytest.raises(ModelError, match=r"needs 19\.0 GB of GPU memory; 18\.0 GB are free"):
        check_memory("a/b", [_weights(19 * GB)], gpu, torch.bfloat16, None)


def test_a_mac_frees_no_more_than_macos_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MacBook with 16 GB, of which a program should use 12; torch keeps 1 GB of freed tensors."""
    monkeypatch.setattr("torch.mps.recommended_max_memory", lambda: 12 * GB)
    monkeypatch.setattr("torch.mps.current_allocated_memory", lambda: 5 * GB)
    monkeypatch.setattr("torch.mps.driver_allocated_memory", lambda: 6 * GB)
    for available, free in ((9, 7), (3, 4)):
        memory = SimpleNamespace(available=available * GB)
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        assert free_memory(torch.device("mps")) == free * GB


def test_unreachable_models_are_collected_before_loading_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected: list[bool] = []
    monkeypatch.setattr(
        "vqa_app.checkpoints.memory.free_memory", lambda device: (9 if collected else 1) * GB
    )
    monkeypatch.setattr("gc.collect", lambda: collected.append(True))
    check_memory("a/b", [_weights(GB)], CPU, torch.bfloat16, None)
    assert not collected  # because that takes time
    check_memory("a/b", [_weights(8 * GB)], CPU, torch.bfloat16, None)
    assert collected


def test_weights_of_any_dtype_are_counted() -> None:
    check_memory("a/b", [_weights(8, "C64")], CPU, torch.bfloat16, None)
