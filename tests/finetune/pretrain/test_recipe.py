"""The recipe of the built-in model at toy size, from end to end and after an interruption."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
    SiglipModel,
)

from finetune.data.read import read_rows
from finetune.pretrain.exam import Exam, evaluate_dialogues, evaluate_world, load_model
from finetune.pretrain.export import Selection, export, export_dialogues
from finetune.pretrain.language import train_language
from finetune.pretrain.optim import StageConfig
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.recipe import Plan, build, examine
from finetune.pretrain.world.mixture import World, open_rooms
from tests.finetune.pretrain.packed_data import pack_noise_icons, pack_noise_photos
from vqa_app import builtin

pytestmark = pytest.mark.slow

SHAPES = World({"shapes": 1.0})


def test_the_tiny_recipe_writes_a_standard_checkpoint(tmp_path: Path) -> None:
    photos = pack_noise_photos(tmp_path / "photos")
    icons = pack_noise_icons(tmp_path / "icons")
    plan = Plan(tmp_path / "run", photos, icons, 8, 3, 4, tiny=True, processes=2)
    final = build(plan)
    model = AutoModelForImageTextToText.from_pretrained(final)
    processor = AutoProcessor.from_pretrained(final)
    assert model.config.model_type == "llava"
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    assert model.config.image_seq_length == plan.tower_config.grid.tokens
    wide = Image.new("RGB", (200, 50), "red")
    pixels = processor.image_processor(wide, return_tensors="pt")["pixel_values"]
    assert pixels[0, :, 0].abs().max() < 0.01  # padded, not stretched
    towers = SiglipModel.from_pretrained(final / "siglip")
    assert towers.config.text_config.vocab_size == len(processor.tokenizer)
    scores = examine(plan, final)
    assert {"count", "(after a second picture)", "(Tiny ImageNet: named)"} <= set(scores)
    before = final.stat().st_mtime_ns
    assert build(plan) == final  # a second call does nothing
    assert final.stat().st_mtime_ns == before


def test_without_packed_data_the_recipe_trains_the_drawn_rooms_and_says_what_it_lacks(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(tmp_path, pictures=8, language_steps=2, alignment_steps=3, tiny=True)
    tokenizer.save_pretrained(plan.towers / "tokenizer")
    final = build(plan)
    assert "No --icons" in capsys.readouterr().out
    assert "(Tiny ImageNet: named)" not in examine(plan, final)


def test_an_interrupted_stage_continues_from_its_saved_state(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    grid = PatchGrid(64, 4)
    stage = StageConfig(tmp_path, tokenizer, SHAPES, grid, steps=3, tiny=True)
    train_language(stage, scale=0.1)
    state = torch.load(tmp_path / "language.pt", weights_only=True)
    assert state["step"] == 3
    train_language(replace(stage, steps=5), scale=0.1)
    continued = torch.load(tmp_path / "language.pt", weights_only=True)
    assert continued["step"] == 5
    assert continued["kept"]["number"] > state["kept"]["number"]


def test_the_exam_measures_checkpoints_that_stretch_pictures() -> None:
    model, packer = load_model(Path(builtin.__path__[0]))
    assert model.grid == PatchGrid(128, 8, padded=False)
    scores = evaluate_world(model, packer, Exam(SHAPES, 20, max_objects=3))
    questions = sum(n for name, (_, n) in scores.items() if not name.startswith("("))
    right = sum(s * n for name, (s, n) in scores.items() if not name.startswith("("))
    assert right / questions > 0.8
    assert evaluate_dialogues(model, packer, SHAPES, 2)["(turns 1-9)"][1] > 5


def test_exported_questions_can_be_read_like_users_data(tmp_path: Path) -> None:
    selection = Selection("test", SHAPES, ("colour", "count"), most=4)
    path = export(tmp_path, 5, selection, per_skill=True)
    rows = read_rows([str(path)]).rows
    assert {row.question_type for row in rows} == {"colour", "count"}
    assert all(row.turns for row in rows)


def test_exported_dialogues_keep_pictures_at_their_questions(tmp_path: Path) -> None:
    rooms, _ = open_rooms(None, None)
    path = export_dialogues(tmp_path, 6, World({"wide shapes": 1.0}, rooms))
    rows = read_rows([str(path)]).rows
    assert len(rows) == 6
    assert max(len(row.turns) for row in rows) > 9
