"""GPUs, as far as a machine without any can tell: which train, and what is let go."""

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
from finetune.training import device, stages
from finetune.training.plan import Settings
from finetune.training.train import train
from tests.finetune.training_data import small_config, write_data
from vqa_app.engine.batched import MOST_ROWS, max_batch_rows
from vqa_app.errors import ModelError, UsageError

SETTINGS = Settings(
    "lora", 1e-3, 1e-3, 4, 8, 0.0, 1.0, 4, 2, 2, 8, False, False, gradient_checkpointing=False
)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_one_process_trains_on_one_gpu_and_tells_of_the_others(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nn.DataParallel` would cut each of the objective's inputs to pieces by its own length."""
    config = FinetuneConfig(out="run", device="cuda")
    arguments = stages.training_arguments(config, SETTINGS, True)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == SETTINGS.micro_batch_size
    assert "One of 2 GPUs trains; accelerate launch" in device.idle_gpus(config, 1)
    assert not device.idle_gpus(config, 2)
    assert not device.idle_gpus(config.replace(device="cpu"), 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not device.idle_gpus(config, 1)


def test_another_gpu_than_the_first_is_refused_with_how_to_take_it(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer would train on the first all the same."""
    with pytest.raises(UsageError, match="'cuda:1'") as refused:
        device.device_of(FinetuneConfig(device="cuda:1"))
    assert "CUDA_VISIBLE_DEVICES=1" in refused.value.hint
    monkeypatch.setenv("LOCAL_RANK", "1")  # of `accelerate launch`
    assert device.device_of(FinetuneConfig(device="cuda:0")) == "cuda:1"


def test_evaluations_may_use_what_pytorch_keeps_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a training the driver sees nearly all memory taken."""
    for name, value in (("mem_get_info", (0, 1 << 36)), ("memory_reserved", 1 << 35)):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1 << 34)
    text = SimpleNamespace(
        num_key_value_heads=8, num_attention_heads=8, head_dim=128, num_hidden_layers=32
    )
    config = SimpleNamespace(get_text_config=lambda: text)
    model: Any = SimpleNamespace(config=config, dtype=torch.float16, device=torch.device("cuda:0"))
    assert max_batch_rows(model, 1024) == 32  # of 128 MiB each, in a quarter of 16 GiB
    assert max_batch_rows(model, 16) == MOST_ROWS


def test_processes_wait_for_one_that_answers_and_saves_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL would end them after ten minutes."""
    given: dict[str, Any] = {}

    def state(**options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(process_index=1, num_processes=2)

    monkeypatch.setattr(accelerate, "PartialState", state)
    assert device.join_processes(FinetuneConfig(device="cpu")) == (1, 2)
    assert given["timeout"] >= timedelta(hours=1)


@pytest.fixture
def config(tiny_llava_dir: Path, tmp_path: Path) -> FinetuneConfig:
    options = {"eval_fraction": 0.3, "eval_questions": 2, "max_steps": 1, "batch_size": 2}
    return small_config(tiny_llava_dir, write_data(tmp_path), tmp_path / "run", **options)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """The models that a run loads to train."""
    seen: list[weakref.ref] = []
    freeze_base = stages.freeze_base

    def noting(*arguments: Any) -> Any:
        frozen = freeze_base(*arguments)
        seen.append(weakref.ref(frozen.model))
        return frozen

    monkeypatch.setattr(stages, "freeze_base", noting)
    return seen


def test_a_run_lets_go_of_its_model(config: FinetuneConfig, models: list[weakref.ref]) -> None:
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
def test_a_full_memory_is_told_with_its_phase_and_holds_no_model(
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
