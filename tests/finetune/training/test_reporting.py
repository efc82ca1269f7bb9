"""`report_to`: integrations get every step and evaluation; a missing one is an early error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from finetune.config import FinetuneConfig
from finetune.training.train import train
from tests.finetune.training_data import small_config, write_data
from vqa_app.errors import UsageError


def config(model: Path, folder: Path) -> FinetuneConfig:
    return small_config(
        model,
        write_data(folder / "data"),
        folder / "run",
        eval_fraction=0.3,
        eval_every=0.0,
        max_steps=2,
        batch_size=2,
        report_to=("tensorboard",),
    )


@pytest.mark.slow
def test_an_integration_gets_every_step_and_evaluation(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[tuple[int, dict[str, float]]] = []

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            assert (args.project, args.run_name) == ("vqa-app", Path(args.output_dir).name)
            received.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    train(config(tiny_llava_dir, tmp_path))
    assert [
        step for step, logs in received if {"loss", "grad_norm", "learning_rate"} <= set(logs)
    ] == [
        1,
        2,
    ]
    assert [step for step, logs in received if "eval_vqa_accuracy" in logs] == [2]


def test_tensorboard_files_hold_the_losses(tiny_llava_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(config(tiny_llava_dir, tmp_path)).run
    (file,) = run.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in events.Scalars("eval/vqa_accuracy")] == [2]


def test_a_missing_integration_is_an_error_before_anything_is_read(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    chosen = config(tiny_llava_dir, tmp_path).replace(data=("gone",))
    with pytest.raises(UsageError, match="tensorboard: it is not installed") as missing:
        train(chosen)
    assert missing.value.hint == "pip install tensorboard"
    with pytest.raises(UsageError, match="'tensorbord'"):
        train(chosen.replace(report_to=("tensorbord",)))
