"""GPUs, as far as a machine without any can tell: which train, and what is let go."""

from __future__ import annotations

import pytest
import torch

from finetune import machine, stages
from finetune.config import FinetuneConfig
from finetune.defaults import Settings
from vqa_app.errors import UsageError

SETTINGS = Settings(
    "lora", 1e-3, 1e-3, 4, 8, 0.0, 1.0, 4, 2, 2, 8, False, False, gradient_checkpointing=False
)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_one_process_trains_on_one_gpu_and_tells_of_the_others(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nn.DataParallel` would cut each of the objective's inputs to pieces by its own length."""
    config = FinetuneConfig(out="run", device="cuda")
    arguments = stages.training_arguments(config, SETTINGS, True)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == SETTINGS.micro_batch_size
    assert "One of 2 GPUs trains; accelerate launch" in machine.idle_gpus(config, 1)
    assert not machine.idle_gpus(config, 2)
    assert not machine.idle_gpus(config.replace(device="cpu"), 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not machine.idle_gpus(config, 1)


def test_another_gpu_than_the_first_is_refused_with_how_to_take_it(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer would train on the first all the same."""
    with pytest.raises(UsageError, match="'cuda:1'") as refused:
        machine.device_of(FinetuneConfig(device="cuda:1"))
    assert "CUDA_VISIBLE_DEVICES=1" in refused.value.hint
    monkeypatch.setenv("LOCAL_RANK", "1")  # of `accelerate launch`
    assert machine.device_of(FinetuneConfig(device="cuda:0")) == "cuda:1"
