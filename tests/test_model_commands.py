"""`vqa-app models` and `vqa-app compose`: what they show, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vqa_app import modeling
from vqa_app.catalogue import CATALOGUE
from vqa_app.cli import app


def test_models_lists_the_catalogue_a_line_each() -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for entry in CATALOGUE:
        (line,) = [line for line in lines if line.startswith(f"{entry.name} ")]
        assert entry.size in line
        assert entry.licence in line


def test_models_as_json_says_what_is_here(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["models", "--json", "--runs", str(tmp_path)])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) >= {entry.name for entry in CATALOGUE}
    assert all(isinstance(row["cached"], bool) and row["memory"] > 0 for row in rows.values())


def test_compose_hands_everything_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def compose(encoder: str, llm: str, out: Path, **options: object) -> Path:
        calls.append((encoder, llm, out, options))
        return out

    monkeypatch.setattr(modeling, "compose", compose)
    words = ["compose", "--encoder", "a/b", "--llm", "c/d", "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(app, [*words, "--dtype", "float32", "--seed", "3", "--offline"])
    assert result.exit_code == 0, result.output
    options = {"dtype": "float32", "seed": 3, "offline": True}
    assert calls == [("a/b", "c/d", tmp_path / "new", options)]
    assert f"finetune --model {tmp_path / 'new'} --stage projector" in result.stdout


def test_compose_from_parts_that_are_nowhere(tmp_path: Path) -> None:
    words = ["compose", "--encoder", "no/such-encoder", "--llm", "no/such-llm"]
    result = CliRunner().invoke(app, [*words, "--offline", "--out", str(tmp_path / "new")])
    assert result.exit_code == 4
    assert "no/such-encoder" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2
    assert not (tmp_path / "new").exists()
