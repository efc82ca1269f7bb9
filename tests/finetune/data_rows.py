"""Small data files with two pictures, and helpers to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.data.read import Problem, Row, read_rows


def picture_folder(tmp_path: Path) -> Path:
    """Write `images/cat.png` and `images/dog.png`, next to which tests write data files."""
    (tmp_path / "images").mkdir()
    for name, colour in (("cat", "red"), ("dog", "blue")):
        Image.new("RGB", (8, 6), colour).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write(folder: Path, content: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def only_row(path: Path, **options: Any) -> Row:
    data = read_rows(path, **options)
    assert data.problems == ()
    (row,) = data.rows
    return row


def only_problem(path: Path) -> Problem:
    data = read_rows(path)
    assert len(data.problems) == 1
    return data.problems[0]


def turns_of(row: Row) -> list[tuple[str, str, int]]:
    """Return (role, text, number of pictures) of every turn."""
    return [(turn.role, turn.text, len(turn.pictures)) for turn in row.turns]


def llava(value: str = "<image>\nWhat is it?", answer: str = "a cat", **record: Any) -> dict:
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": "cat.png", "conversations": turns} | record


CAT = [("user", "What is it?", 1), ("assistant", "a cat", 0)]


def question(**record: Any) -> dict:
    return {"question": "What is it?", "answer": "a cat"} | record
