"""Guesses at what was meant: files, folders, options, and the messages that contain them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vqa_app.cli.main import app
from vqa_app.suggestions import MAX_ENTRIES, suggest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the current folder one with pictures, data, a run and a model."""
    for name in ("cat.jpg", "photos/dog.png", "photos/old/Bird.PNG", "kitchen table.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (tmp_path / "notes.txt").write_text("cat")
    for folder in ("runs/mine", "my-llava"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("cat.png", "cat.jpg"),
        ("CAT.JPG", "cat.jpg"),
        ("cat", "cat.jpg"),
        ("dog.png", "photos/dog.png"),
        ("bird.png", "photos/old/Bird.PNG"),
        ("catt.jpg", "cat.jpg"),
        ("photo/dog.png", "photos/dog.png"),
        ("Photos/dog.jpg", "photos/dog.png"),
        ("kitchen_table.png", "kitchen table.png"),
        ("elephant.png", None),
        ("nowhere/at/all/zebra.png", None),
        ("", None),
        ("/", None),
        ("x" * 5000, None),
        ("a\0b.png", None),
    ],
)
def test_the_path_that_was_meant(here: Path, given: str, meant: str | None) -> None:
    def picture(path: Path) -> bool:
        return path.suffix.lower() in (".jpg", ".png") and path.is_file()

    expected = f"Did you mean {Path(meant)}?" if meant else "Check the path."
    assert suggest(given, path=picture, otherwise="Check the path.") == expected
    if meant:
        assert suggest(here / given, path=picture) == f"Did you mean {here / meant}?"


def test_only_what_is_wanted_is_suggested(here: Path) -> None:
    assert suggest("train.json", path=Path.is_dir) == ""
    assert suggest("cat.csv", path=lambda path: path.suffix == ".jsonl") == ""
    assert suggest("photo", path=Path.is_dir) == "Did you mean photos?"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("modle", "model"),
        ("MAX-LENGTH", "max_length"),
        ("base", "model"),
        ("learning_rate", "lr"),
        ("num_train_epochs", "epochs"),
        ("something", None),
    ],
)
def test_the_option_that_was_meant(given: str, meant: str | None) -> None:
    known = ["model", "lr", "epochs", "max_length"]
    assert suggest(given, known) == (f"Did you mean {meant}?" if meant else "")


def test_a_large_folder_is_searched_in_part(tmp_path: Path) -> None:
    for number in range(3 * MAX_ENTRIES):
        (tmp_path / f"{number}").touch()
    start = time.monotonic()
    suggest(tmp_path / "elephant.png", path=Path.is_file)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("words", "code", "meant"),
    [
        (["ask", "cat.png", "What?"], 3, "cat.jpg"),
        (["ask", "dog.png", "What?"], 3, "photos/dog.png"),
        (["ask", "--each", "photo", "What?"], 3, "photos"),
        (["ask", "--modle", "x", "cat.jpg", "What?"], 2, "--model"),
        (["ask", "--base", "x", "cat.jpg", "What?"], 2, "--model"),
        (["ask", "--max-tokens", "5", "cat.jpg", "What?"], 2, "--max-new-tokens"),
        (["ask", "--model", "bultin", "cat.jpg", "What?"], 4, "builtin"),
        (["ask", "--model", "./my_llava", "cat.jpg", "What?"], 4, "my-llava"),
        (["ask", "--model", "run/mine", "cat.jpg", "What?"], 4, "runs/mine"),
        (["ask", "--model", "runs/mien", "cat.jpg", "What?"], 4, "runs/mine"),
        (["ask", "--adapter", "runs/mien", "cat.jpg", "What?"], 4, "runs/mine"),
        (["verify", "runs/mien"], 4, "runs/mine"),
        (["merge", "mine", "--out", "x"], 4, "runs/mine"),
        (["models", "--runs", "run"], 4, "runs"),
        (["eval", "--data", "train.json"], 5, "train.jsonl"),
        (["check-data", "--data", "train.csv"], 5, "train.jsonl"),
        (["check-data", "--data", "train.jsonl", "--images", "photo"], 5, "photos"),
        (["finetune", "--data", "trian.jsonl", "--out", "x"], 5, "train.jsonl"),
        (["finetune", "--learning-rate", "1"], 2, "--lr"),
        (["finetune", "--base", "builtin"], 2, "--model"),
        (["finetune", "--lora-r", "8"], 2, "--rank"),
        (["finetune", "--config", "train.yaml"], 2, "train.jsonl"),
        (
            ["finetune", "--data", "train.jsonl", "--out", "x", "--watch", "cat.png: What?"],
            2,
            "cat.jpg",
        ),
    ],
)
def test_messages_of_commands_suggest_what_was_meant(
    here: Path, words: list[str], code: int, meant: str
) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    text = " ".join(result.stderr.split())
    assert f"Did you mean {meant}?" in text or f"{here / meant}?" in text


def test_a_file_of_a_model_stands_for_its_folder(here: Path) -> None:
    result = CliRunner().invoke(
        app, ["ask", "--model", "runs/mine/config.json", "cat.jpg", "What?"]
    )
    assert "Use the folder with the model's files: runs/mine." in result.stderr
