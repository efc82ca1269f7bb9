"""Any image-text model with a projector and an LLM trains, and its run opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from finetune.train import train
from tests.architectures import ARCHITECTURES
from tests.finetune_data import metrics, write_data
from vqa_app.errors import DataError
from vqa_app.loading import load_model

PICTURES_ONLY = {"blip-2", "kosmos-2", "mllama"}
"""mllama takes text alone too, but not in a batch with pictures."""


@pytest.mark.parametrize("stage", ["projector", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_trains_and_its_run_opens(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, name: str, stage: str
) -> None:
    text_rows = 0 if name in PICTURES_ONLY else 1
    data = write_data(tmp_path / "data", pictures=3, text_rows=text_rows)
    config = FinetuneConfig(
        model=str(tiny_checkpoint(name)),
        data=(str(data),),
        out=str(tmp_path / "run"),
        feature_dir=str(tmp_path / "features"),
        stage=stage,
        max_steps=2,
        batch_size=3 + text_rows,
        micro_batch_size=2,
        warmup=0.0,
        schedule="constant",
        rank=4,
        lr=3e-4,
        projector_lr=3e-4,
        eval_fraction=0.0,
        device="cpu",
        precision="fp32",
        workers=1,
    )
    run = train(config).run
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert len(losses) == 2 and losses[-1] < losses[0]
    assert load_model(str(run), device="cpu", dtype="float32").name == str(run)


def test_mllama_says_that_text_rows_stand_alone(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    config = FinetuneConfig(
        model=str(tiny_checkpoint("mllama")),
        data=(str(write_data(tmp_path / "data", pictures=1, text_rows=1)),),
        out=str(tmp_path / "run"),
        max_steps=1,
        batch_size=2,
        eval_fraction=0.0,
        device="cpu",
        precision="fp32",
        workers=1,
    )
    with pytest.raises(DataError, match="with and without pictures"):
        train(config)
    assert train(config.replace(micro_batch_size=1, resume="never")).finished
