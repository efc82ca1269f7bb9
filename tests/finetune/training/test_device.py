"""Devices of a run, and the memory that it releases; GPUs as far as a machine without can test."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import numpy as np
import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.training import held_out, stages
from finetune.training.device import (
    Machine,
    join_processes,
    set_up_machine,
    training_autocast,
    training_device,
)
from finetune.training.plan import TrainingSettings
from finetune.training.train import train
from finetune.training.trainer import training_arguments
from tests.finetune.training_data import small_config, write_data
from vqa_app import devices
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.batch_memory import MAX_ROWS, max_batch_rows
from vqa_app.engine.cache_budget import shared_budget
from vqa_app.engine.kv_cache import KVCache, PrefixCache
from vqa_app.errors import ModelError, UsageError

SETTINGS = TrainingSettings(
    stage="lora",
    lr=1e-3,
    projector_lr=1e-3,
    rank=4,
    alpha=8,
    dropout=0.0,
    epochs=1.0,
    batch_size=4,
    micro_batch_size=2,
    micro_batches=2,
    steps=8,
    eight_bit_optimizer=False,
    gradient_checkpointing=False,
)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)


def test_one_process_trains_on_one_gpu_and_mentions_the_others(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nn.DataParallel` would split each of the objective's inputs by its own length."""
    gpu = Machine(torch.device("cuda:0"), autocast=torch.bfloat16)
    config = FinetuneConfig(out="run", device="cuda")
    arguments = training_arguments(config, SETTINGS, gpu, every_parameter_used=True, width=64)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == SETTINGS.micro_batch_size
    assert "One of 2 GPUs trains; accelerate launch" in gpu.idle_gpus()
    assert not Machine(torch.device("cuda:0"), autocast=torch.bfloat16, processes=2).idle_gpus()
    assert not Machine(torch.device("cpu"), autocast=torch.bfloat16).idle_gpus()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not gpu.idle_gpus()


def test_training_takes_any_gpu_by_its_number(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer on its own would take the first one."""
    assert training_device("cuda:1") == torch.device("cuda:1")
    assert training_device("cuda") == torch.device("cuda:0")
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(accelerate.PartialState, "_shared_state", {})
    gpu = Machine(torch.device("cuda:1"), autocast=None)
    config = FinetuneConfig(out="run", device="cuda:1")
    arguments = training_arguments(config, SETTINGS, gpu, every_parameter_used=True, width=64)
    assert arguments.device == accelerate.PartialState().device == torch.device("cuda:1")
    assert current[-1] == torch.device("cuda:1")
    assert arguments.n_gpu == 1


def test_of_several_processes_each_has_a_gpu_of_its_own(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")  # of `accelerate launch`
    for name in ("auto", "cuda", "cuda:0"):
        monkeypatch.setattr(devices, "choose_device", lambda _: torch.device("cuda:0"))
        assert training_device(name) == torch.device("cuda:1")
    with pytest.raises(UsageError, match="--device is cuda:1") as refused:
        training_device("cuda:1")
    assert "CUDA_VISIBLE_DEVICES" in refused.value.hint
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="2 GPUs, and process 3") as refused:
        training_device("auto")
    assert "--num_processes 2" in refused.value.hint


def test_what_caches_of_chat_models_hold_counts_as_free_memory_in_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the page, where both share a process. Such a cache is dropped before the run plans."""
    budget, states = shared_budget(torch.device("cpu")), torch.zeros(1, 1, 4, 4)
    cache, kv = PrefixCache(budget), KVCache.empty(1)
    kv.update(states, states, 0)
    monkeypatch.setattr(devices, "free_memory", lambda _: 1000 - cache.nbytes)
    stage: Any = SimpleNamespace(
        config=FinetuneConfig(), machine=Machine(torch.device("cpu"), autocast=None)
    )
    cache.put(np.arange(4), kv)
    assert cache.nbytes
    assert stages._memory(stage).free == 1000


BF16, FP16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("kind", "version", "precision", "sharded", "expected"),
    [
        ("cuda", (8, 0), "auto", False, BF16),  # A100
        ("cuda", (8, 9), "auto", True, BF16),  # a laptop's RTX 4060
        ("cuda", (8, 0), "fp32", False, None),
        ("cuda", (7, 5), "auto", False, FP16),  # T4
        ("cuda", (7, 0), "auto", False, FP16),  # V100
        ("cuda", (7, 5), "auto", True, None),
        ("cuda", (7, 5), "bf16", False, BF16),
        ("cuda", (8, 0), "fp16", False, FP16),
        ("cuda", (7, 5), "fp16", True, UsageError),
        ("mps", (14, 0), "auto", False, BF16),
        ("mps", (13, 7), "auto", False, None),
        ("mps", (14, 0), "fp16", False, UsageError),
        ("cpu", None, "fp32", False, None),
        ("cpu", None, "fp16", False, UsageError),
    ],
)
def test_each_device_trains_in_a_precision_that_it_computes_in(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    version: tuple[int, int] | None,
    precision: str,
    sharded: bool,
    expected: torch.dtype | type[UsageError] | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: version)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *one: version >= one)
    device = torch.device(kind)
    if expected is UsageError:
        with pytest.raises(UsageError, match="--precision fp16 does not train"):
            training_autocast(precision, device, sharded=sharded)
        return
    found = training_autocast(precision, device, sharded=sharded)
    assert found == expected
    machine = Machine(device, found)
    assert machine.dtype == (expected or torch.float32)
    assert machine.scales_loss is (expected == FP16)


@pytest.mark.parametrize(
    ("device", "autocast", "precision", "reason"),
    [
        ("cuda:0", None, "auto", "no bf16 instructions"),  # a T4 with --fsdp
        ("cuda:0", None, "fp32", ""),
        ("cuda:0", FP16, "auto", ""),
        ("cuda:0", BF16, "auto", ""),
        ("mps", None, "auto", "bf16 needs macOS 14"),
        ("mps", BF16, "auto", ""),
        ("cpu", None, "auto", ""),
    ],
)
def test_a_gpu_that_trains_in_fp32_unasked_says_why(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    autocast: torch.dtype | None,
    precision: Any,
    reason: str,
) -> None:
    def load_base(*_: Any) -> Any:
        raise ModelError("It is enough.")

    messages: list[str] = []
    monkeypatch.setattr(stages, "load_base", load_base)
    config, machine = FinetuneConfig(precision=precision), Machine(torch.device(device), autocast)
    with pytest.raises(ModelError):
        stages.load(config, machine, None, lambda event: messages.append(event.message))
    assert reason in messages[-1]
    assert len(messages) == 1 + bool(reason)


@pytest.mark.parametrize(
    ("stage", "autocast", "dtype", "quantize"),
    [
        ("lora", BF16, "auto", None),
        ("lora", FP16, "auto", None),  # which is float16 there
        ("lora", None, "float32", None),
        ("projector", BF16, "auto", None),
        ("full", BF16, "float32", None),  # all of it trains
        ("full", FP16, "float32", None),
        ("qlora", BF16, "auto", "4bit"),
        ("qlora", FP16, "auto", "4bit"),
    ],
)
def test_each_stage_loads_weights_in_the_precision_that_it_needs(
    monkeypatch: pytest.MonkeyPatch,
    stage: Any,
    autocast: torch.dtype | None,
    dtype: str,
    quantize: str | None,
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(stages, "load_model", lambda _, **options: given.update(options))
    stages.load_base(FinetuneConfig(stage=stage), Machine(torch.device("cuda:1"), autocast))
    assert (given["dtype"], given["quantize"]) == (dtype, quantize)
    assert given["device"] == "cuda:1"


@pytest.mark.parametrize(("name", "precision"), [("gemma3", None), ("llava-siglip", FP16)])
def test_a_model_that_overflows_in_fp16_trains_in_fp32(
    tiny_checkpoint: Callable[[str], Path], name: str, precision: torch.dtype | None
) -> None:
    loaded = load_model(str(tiny_checkpoint(name)), device="cpu")
    messages: list[str] = []
    t4 = Machine(torch.device("cuda:0"), FP16)
    found = stages.without_overflow(t4, loaded, lambda event: messages.append(event.message))
    assert found.autocast == precision
    assert bool(messages) is (precision is None)
    a100 = Machine(torch.device("cuda:0"), BF16)
    assert stages.without_overflow(a100, loaded, lambda _: None) is a100


@pytest.mark.parametrize("served", [torch.float32, BF16])
def test_full_fine_tuning_is_evaluated_in_the_precision_in_which_the_model_will_answer(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, served: torch.dtype
) -> None:
    """All its weights are fp32 while they train, and bf16 when a GPU loads them afterwards."""
    monkeypatch.setattr(held_out, "choose_dtype", lambda *_, **__: served)
    computed: set[torch.dtype] = set()
    answer_questions = held_out.answer_questions

    def answer(model: Any, *given: Any, **options: Any) -> Any:
        head = model.get_output_embeddings()
        hook = head.register_forward_hook(lambda _, __, logits: computed.add(logits.dtype))
        try:
            return answer_questions(model, *given, **options)
        finally:
            hook.remove()

    monkeypatch.setattr(held_out, "answer_questions", answer)
    train(config.replace(stage="full", rank=None, precision="fp32"))
    assert computed == {served}


@pytest.mark.parametrize("option", ["fsdp", "deepspeed"])
def test_sharding_without_nccl_is_refused_in_words(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Torch for Windows has none."""
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    config = FinetuneConfig(out="run", device="cuda", precision="bf16", **{option: "default"})
    with pytest.raises(UsageError, match=f"--{option} needs NCCL"):
        set_up_machine(config)


def test_gpus_without_nccl_train_together_over_gloo(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends: list[str] = []
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **_: backends.append(backend)
    )
    state = SimpleNamespace(process_index=0, num_processes=2)
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: state)
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = FinetuneConfig(out="run", device="cuda", precision="bf16")
    assert set_up_machine(config).processes == 2
    assert backends == ["gloo"]


def test_evaluation_may_use_memory_that_pytorch_has_reserved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """During training the driver reports nearly all memory as taken."""
    for name, value in (("mem_get_info", (0, 1 << 36)), ("memory_reserved", 1 << 35)):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1 << 34)
    text = SimpleNamespace(
        num_key_value_heads=8, num_attention_heads=8, head_dim=128, num_hidden_layers=32
    )
    config = SimpleNamespace(get_text_config=lambda: text)
    model: Any = SimpleNamespace(config=config, dtype=torch.float16, device=torch.device("cuda:0"))
    assert max_batch_rows(model, 1024) == 32  # of 128 MiB each, in a quarter of 16 GiB
    assert max_batch_rows(model, 16) == MAX_ROWS


def test_processes_wait_long_for_the_one_that_evaluates_and_saves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL would end them after ten minutes."""
    given: dict[str, Any] = {}

    def state(**options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(process_index=1, num_processes=2)

    monkeypatch.setattr(accelerate, "PartialState", state)
    assert join_processes(torch.device("cpu")) == (1, 2)
    assert given["timeout"] >= timedelta(hours=1)


@pytest.mark.parametrize("sharding", [None, "default", "offload"])
def test_fsdp_has_a_backend_for_what_it_offloads_to_the_cpu(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, sharding: str | None
) -> None:
    """With NCCL alone: "No backend type associated with device type cpu"."""
    backends: list[str] = []
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **_: backends.append(backend)
    )
    state = SimpleNamespace(process_index=0, num_processes=2)
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: state)
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = FinetuneConfig(out="run", device="cuda", precision="bf16", fsdp=sharding)
    assert set_up_machine(config).processes == 2
    assert backends == (["cpu:gloo,cuda:nccl"] if sharding else [])


@pytest.fixture
def config(tiny_llava_dir: Path, tmp_path: Path) -> FinetuneConfig:
    options = {"eval_fraction": 0.3, "eval_questions": 2, "max_steps": 1, "batch_size": 2}
    return small_config(tiny_llava_dir, write_data(tmp_path), tmp_path / "run", **options)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """Collect references to the models that runs load to train."""
    loaded: list[weakref.ref] = []
    freeze_base = stages.freeze_base

    def recording(*arguments: Any) -> Any:
        trained = freeze_base(*arguments)
        loaded.append(weakref.ref(trained.model))
        return trained

    monkeypatch.setattr(stages, "freeze_base", recording)
    return loaded


@pytest.mark.slow
def test_a_run_releases_its_model(config: FinetuneConfig, models: list[weakref.ref]) -> None:
    gc.disable()
    try:
        train(config)
    finally:
        gc.enable()
    assert models
    assert not any(model() for model in models)


@pytest.mark.parametrize(
    ("place", "phase"),
    [
        ("finetune.training.feature_store.encode_pictures", "encoding"),
        ("finetune.training.held_out.Evaluation.at_step", "evaluating"),
        ("finetune.training.finish.save", "saving"),
    ],
)
def test_out_of_memory_is_reported_with_its_phase_and_releases_the_model(
    config: FinetuneConfig,
    models: list[weakref.ref],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    phase: str,
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(place, full)
    with pytest.raises(ModelError, match=f"Out of memory while {phase}"):
        train(config)
    assert models
    assert not any(model() for model in models)
