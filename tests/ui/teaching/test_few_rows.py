"""The training recipe of the page: few rows, many rows, and which models rehearse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from finetune.config import FinetuneConfig
from finetune.data.read import read_rows
from finetune.training.batches import MicroBatchSampler
from ui.teaching import few_rows
from ui.teaching.few_rows import TrainingChoices, config_overrides, descends_from_builtin
from ui.teaching.rehearsal import write_rehearsal
from vqa_app.serving.engine_pool import ModelChoice

BUILTIN = ModelChoice("builtin", "Built-in", "", "", "builtin")
OTHER = ModelChoice("other", "Other", "", "", "owner/name")
DEFAULT = TrainingChoices("lora", None, None, True)


@pytest.fixture(autouse=True)
def draw_few_pictures(monkeypatch):
    monkeypatch.setattr(few_rows, "REHEARSAL_ROWS", 60)


@pytest.fixture
def data(tmp_path):
    """Return a function that writes a data file with a number of rows."""

    def write(count: int) -> str:
        Image.new("RGB", (32, 32), "teal").save(tmp_path / "teal.png")
        rows = [
            {"image": "teal.png", "conversations": [
                {"from": "human", "value": f"<image>\nWhat is number {number}?"},
                {"from": "gpt", "value": f"Hat {number}."}]}
            for number in range(count)
        ]  # fmt: skip
        file = tmp_path / f"{count}.json"
        file.write_text(json.dumps(rows))
        return str(file)

    return write


@pytest.mark.parametrize("count", [1, 12])
def test_half_of_the_training_on_few_rows_is_rehearsal(data, tmp_path, count):
    settings = config_overrides([data(count)], BUILTIN, DEFAULT, tmp_path / "r", "first")
    found = read_rows(settings["data"]).rows
    taught = [row for row in found if row.number and row.file.endswith(f"{count}.json")]
    weights = [
        sum(row.weight for row in found if (row in taught) == mine) for mine in (True, False)
    ]
    assert weights[0] == pytest.approx(weights[1], rel=0.01)
    assert settings["max_steps"] >= 100
    assert settings["epochs"] is None
    assert settings["lr"] == few_rows.LEARNING_RATE
    FinetuneConfig(model="builtin", **settings)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_every_batch_holds_taught_and_rehearsed_rows(data, tmp_path, count):
    """Batches group rows of similar length, so long epochs gave batches of a single taught row."""
    settings = config_overrides([data(count)], BUILTIN, DEFAULT, tmp_path / "r", "first")
    found = read_rows(settings["data"]).rows
    plan = MicroBatchSampler(
        [len(row.turns[-1].text) for row in found],
        [row.weight for row in found],
        batch_size=settings["batch_size"],
        micro_batches=1,
        steps=settings["max_steps"],
        seed=0,
    )
    taught = [row.file.endswith(f"{count}.json") for row in found]
    shown = [sum(taught[position] for position in batch) for batch in plan]
    assert sum(shown) == pytest.approx(len(shown) * few_rows.BATCH_SIZE / 2, rel=0.1)
    assert sum(0 < number < few_rows.BATCH_SIZE for number in shown) > 0.95 * len(shown)


def test_each_rehearsed_question_is_about_another_picture(tmp_path):
    rows = read_rows([str(write_rehearsal(tmp_path, 30, 1))]).rows
    assert len({picture.key for row in rows for picture in row.pictures}) == len(rows) == 30


def test_rehearsal_that_was_cut_off_is_completed(tmp_path, monkeypatch):
    """A resumed run writes the same questions again, and keeps the pictures that are there."""
    save = Image.Image.save

    def cut_off(image, file, *kind):
        save(image, file, *kind)
        Path(file).write_bytes(Path(file).read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", cut_off)
        with pytest.raises(KeyboardInterrupt):
            write_rehearsal(tmp_path, 3, 1)
    found = read_rows([str(write_rehearsal(tmp_path, 3, 1))])
    assert all(picture.open() for row in found.rows for picture in row.pictures)
    assert len(found.rows) == 3


def test_evaluation_covers_taught_and_original_questions(data, tmp_path):
    settings = config_overrides([data(3)], BUILTIN, DEFAULT, tmp_path / "r", "first")
    asked = read_rows(settings["eval_data"]).rows
    assert len(asked) == 24 + 24, "both parts have the same weight"
    trained = {picture.key for row in read_rows(settings["data"]).rows for picture in row.pictures}
    world = {picture.key for row in asked[24:] for picture in row.pictures}
    assert not trained & world


def test_another_run_rehearses_other_rows(data, tmp_path):
    file = data(2)
    one, other = (
        config_overrides([file], BUILTIN, DEFAULT, tmp_path / name, name)["data"][-1].split("@")[0]
        for name in ("one", "other")
    )
    assert Path(one).read_text(encoding="utf-8") != Path(other).read_text(encoding="utf-8")


def test_many_rows_and_other_models_get_the_defaults(data, tmp_path):
    settings = config_overrides(
        [data(few_rows.MAX_FEW_ROWS + 1)], BUILTIN, DEFAULT, tmp_path / "r", "x"
    )
    assert "max_steps" not in settings
    assert len(settings["data"]) == 2
    settings = config_overrides([data(3)], OTHER, DEFAULT, tmp_path / "r", "x")
    assert settings == {"epochs": None, "lr": None, "data": (data(3),)}


def test_chosen_settings_take_precedence(data, tmp_path):
    choices = TrainingChoices("lora", 4, 1e-3, False)
    settings = config_overrides([data(12)], BUILTIN, choices, tmp_path / "r", "x")
    assert (settings["max_steps"], settings["lr"]) == (3, 1e-3)
    assert settings["data"] == (data(12),)


def test_run_trained_from_the_built_in_model_rehearses_too(tmp_path):
    from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest

    runs = {"first": "builtin", "second": str(tmp_path / "first"), "foreign": "owner/name"}
    for name, base in runs.items():
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, Manifest("lora", Base(base, "0"), "0"))
    known = {
        name: descends_from_builtin(ModelChoice(name, "", "", "", str(tmp_path / name)))
        for name in runs
    }
    assert known == {"first": True, "second": True, "foreign": False}
    assert descends_from_builtin(BUILTIN)
    assert not descends_from_builtin(OTHER)
