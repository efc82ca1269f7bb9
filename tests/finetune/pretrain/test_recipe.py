"""The recipe of the built-in model at toy size, from end to end and after an interruption."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, SiglipModel

from finetune.data.read import read_rows
from finetune.pretrain.encoder import train_encoder
from finetune.pretrain.export import Selection, export
from finetune.pretrain.language import train_language
from finetune.pretrain.optim import StageConfig
from finetune.pretrain.recipe import Plan, build
from finetune.pretrain.tokenizer import train_tokenizer
from finetune.pretrain.world.mixture import World

pytestmark = pytest.mark.slow

SHAPES = World({"shapes": 1.0})


def test_the_tiny_recipe_writes_a_standard_checkpoint(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "run", minutes=0.15, tiny=True, parallel=True)
    final = build(plan)
    model = AutoModelForImageTextToText.from_pretrained(final)
    processor = AutoProcessor.from_pretrained(final)
    assert model.config.model_type == "llava"
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    towers = SiglipModel.from_pretrained(final / "siglip")
    assert towers.config.text_config.vocab_size == len(processor.tokenizer)
    before = final.stat().st_mtime_ns
    assert build(plan) == final  # a second call does nothing
    assert final.stat().st_mtime_ns == before


def test_an_interrupted_stage_continues_from_its_saved_state(tmp_path: Path) -> None:
    stage = StageConfig(tmp_path, train_tokenizer(scenes=40), SHAPES, minutes=0.02, tiny=True)
    train_language(stage, scale=0.1)
    train_encoder(stage, batch=8, capacity=50)
    for name in ("language.pt", "encoder.pt"):
        state = torch.load(tmp_path / name, weights_only=True)
        assert state["step"] > 0
        torch.save({**state, "spent": 0.0}, tmp_path / name)  # as if interrupted early
    steps = {
        n: torch.load(tmp_path / n, weights_only=True)["step"]
        for n in ("language.pt", "encoder.pt")
    }
    train_language(stage, scale=0.1)
    train_encoder(stage, batch=8, capacity=50)
    for name, before in steps.items():
        assert torch.load(tmp_path / name, weights_only=True)["step"] > before


def test_exported_questions_can_be_read_like_users_data(tmp_path: Path) -> None:
    selection = Selection("test", SHAPES, ("colour", "count"), most=4)
    path = export(tmp_path, 5, selection, per_skill=True)
    rows = read_rows([str(path)]).rows
    assert {row.question_type for row in rows} == {"colour", "count"}
    assert all(row.turns for row in rows)
