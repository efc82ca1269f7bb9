"""Devices of a run, and the memory that it releases; GPUs as far as a machine without can test."""

from __future__ import annotations

import gc
import weakref
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.training import stages
from finetune.training.device import Machine, join_processes, set_up_machine, training_device
from finetune.training.plan import TrainingSettings
from finetune.training.train import train
from finetune.training.trainer import training_arguments
from tests.finetune.training_data import small_config, write_data
from vqa_app import devices
from vqa_app.engine.batched import MAX_ROWS, max_batch_rows
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


def test_one_process_trains_on_one_gpu_and_mentions_the_others(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nn.DataParallel` would split each of the objective's inputs by its own length."""
    gpu = Machine(torch.device("cuda:0"), bf16=True)
    config = FinetuneConfig(out="run", device="cuda")
    arguments = training_arguments(config, SETTINGS, gpu, every_parameter_used=True, width=64)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == SETTINGS.micro_batch_size
    assert "One of 2 GPUs trains; accelerate launch" in gpu.idle_gpus()
    assert not Machine(torch.device("cuda:0"), bf16=True, processes=2).idle_gpus()
    assert not Machine(torch.device("cpu"), bf16=True).idle_gpus()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not gpu.idle_gpus()


def test_a_gpu_other_than_the_first_is_refused_with_advice(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer would train on the first one."""
    with pytest.raises(UsageError, match="'cuda:1'") as refused:
        training_device("cuda:1")
    assert "CUDA_VISIBLE_DEVICES=1" in refused.value.hint
    monkeypatch.setenv("LOCAL_RANK", "1")  # of `accelerate launch`
    assert training_device("cuda:0") == torch.device("cuda:1")


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
