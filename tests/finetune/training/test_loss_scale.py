"""Training in fp16 with a scaled loss, as on a T4; here on a CPU, with torch's own scaler.

accelerate makes the scaler on GPUs only, so it is put in its place.
"""

from __future__ import annotations

import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.progress import Progress
from finetune.runs.checkpoint import latest_checkpoint
from finetune.training.device import Machine
from finetune.training.train import train
from finetune.training.trainer import FinetuneTrainer, training_arguments
from tests.finetune.training.test_device import SETTINGS
from tests.finetune.training_data import metrics, small_config, write_data
from vqa_app.errors import DataError


@pytest.fixture
def config(tiny_llava_dir: Path, tmp_path: Path) -> FinetuneConfig:
    options = {"eval_fraction": 0.3, "eval_questions": 2, "max_steps": 6, "batch_size": 2}
    options |= {"eval_every": 0.0, "save_every": 2.0, "lr": 1e-2, "projector_lr": 1e-2}
    return small_config(tiny_llava_dir, write_data(tmp_path), tmp_path / "run", **options)


@pytest.fixture
def scalers(monkeypatch: pytest.MonkeyPatch) -> list[torch.amp.GradScaler]:
    """Train in fp16; the first of these scalers is used, then the next, each by one run."""
    recipe = import_module("finetune.training.train")
    fp16 = Machine(torch.device("cpu"), torch.float16)
    monkeypatch.setattr(recipe, "set_up_machine", lambda _: fp16)
    waiting: list[torch.amp.GradScaler] = []
    create = FinetuneTrainer.__init__

    def create_with_scaler(self: FinetuneTrainer, *given: Any, **options: Any) -> None:
        create(self, *given, **options)
        self.accelerator.scaler = waiting.pop(0)
        self.accelerator.native_amp = True
        self.accelerator.state._mixed_precision = "fp16"

    monkeypatch.setattr(FinetuneTrainer, "__init__", create_with_scaler)
    return waiting


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if "loss" in line]


def test_the_trainer_is_asked_for_a_scaler_on_a_gpu_without_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune.training.trainer.train_on", lambda *_: None)
    config = FinetuneConfig(out="run")
    for autocast, scaled in ((torch.float16, True), (torch.bfloat16, False), (None, False)):
        machine = Machine(torch.device("cuda:0"), autocast)
        given = {"every_parameter_used": True, "width": 64}
        assert training_arguments(config, SETTINGS, machine, **given).fp16 is scaled


@pytest.mark.slow
def test_fp16_has_the_losses_of_fp32(
    config: FinetuneConfig, scalers: list[torch.amp.GradScaler], tmp_path: Path
) -> None:
    scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**10))
    train(config)
    with pytest.MonkeyPatch.context() as patch:
        recipe = import_module("finetune.training.train")
        fp32 = Machine(torch.device("cpu"), None)
        patch.setattr(recipe, "set_up_machine", lambda _: fp32)
        scalers.append(torch.amp.GradScaler("cpu", enabled=False))
        train(config.replace(out=str(tmp_path / "fp32")))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "fp32"), rel=2e-2)
    assert len(set(losses(tmp_path / "run"))) == 6


@pytest.mark.slow
def test_steps_whose_scaled_gradients_overflow_are_skipped_and_the_scale_is_resumed(
    config: FinetuneConfig, scalers: list[torch.amp.GradScaler], tmp_path: Path
) -> None:
    first = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    scalers.append(first)
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.phase == "training" and progress.done == 3:
            cancel.set()

    assert not train(config, stop, cancel).finished
    assert first.get_scale() <= 2.0**27, "halved by every step"
    skipped = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert skipped
    assert all("grad_norm" not in line for line in skipped)
    folder = latest_checkpoint(tmp_path / "run")
    assert folder is not None
    assert torch.load(folder / "scaler.pt")["scale"] == first.get_scale()
    second = torch.amp.GradScaler("cpu")
    scalers.append(second)
    assert train(config).finished
    assert 2.0**20 < second.get_scale() < first.get_scale()


@pytest.mark.slow
def test_gradients_that_overflow_at_any_scale_end_the_run(
    config: FinetuneConfig, scalers: list[torch.amp.GradScaler], monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0))
    clip = FinetuneTrainer.__bases__[0]._clip_grad_norm

    def overflow(self: FinetuneTrainer, model: torch.nn.Module) -> Any:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(float("nan"))
        return clip(self, model)

    monkeypatch.setattr(FinetuneTrainer.__bases__[0], "_clip_grad_norm", overflow)
    with pytest.raises(DataError, match="gradient is not finite at step 2") as stopped:
        train(config)
    assert "--precision fp32" in stopped.value.hint
