"""`vqa-app ask` with a real model, which is tiny and has random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests import tiny
from vqa_app.cli.main import app
from vqa_app.errors import UsageError

Ask = Callable[..., Result]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "noise.png"
    tiny.picture(0, (96, 64)).image.save(path)
    return str(path)


@pytest.fixture
def ask(tiny_llava_dir: Path) -> Ask:
    runner = CliRunner()
    common = ("ask", "--model", str(tiny_llava_dir), "--temperature", "0", "--max-new-tokens", "8")
    return lambda *words: runner.invoke(app, [*common, *words])


def test_the_streamed_answer_equals_the_answer_in_json(ask: Ask, picture: str) -> None:
    streamed = ask(picture, "What is it?")
    assert streamed.exit_code == 0, streamed.stderr
    row = json.loads(ask("--json", picture, "What is it?").stdout)
    assert streamed.stdout == row["answer"] + "\n"
    assert row["new_tokens"] == 8
    assert row["image_tokens"] > 0
    assert 0.0 < row["confidence"] < 1.0


def test_two_pictures_have_twice_the_image_tokens(ask: Ask, picture: str) -> None:
    one = json.loads(ask("--json", picture, "What is it?").stdout)
    two = json.loads(ask("--json", picture, picture, "What is it?").stdout)
    assert two["image_tokens"] == 2 * one["image_tokens"]


def test_the_probabilities_of_choices_sum_to_one(ask: Ask, picture: str) -> None:
    result = ask("--json", "--choices", "red,blue,green", picture, "Which?")
    chances = json.loads(result.stdout)["choices"]
    assert set(chances) == {"red", "blue", "green"}
    assert sum(chances.values()) == pytest.approx(1.0, abs=1e-3)


def test_explain_saves_a_real_attention_map(ask: Ask, picture: str, tmp_path: Path) -> None:
    target = tmp_path / "map.png"
    result = ask("--explain", str(target), picture, "What is it?")
    assert result.exit_code == 0, result.stderr
    with Image.open(target) as drawn:
        assert drawn.size == (512, 341)


def test_each_gives_the_same_answers_as_single_questions(
    ask: Ask, picture: str, tmp_path: Path
) -> None:
    Image.new("RGB", (30, 90), (10, 200, 10)).save(tmp_path / "plain.png")
    result = ask("--each", str(tmp_path / "*.png"), "What is it?")
    rows = {Path(r["picture"]).name: r for r in map(json.loads, result.stdout.splitlines())}
    assert set(rows) == {"noise.png", "plain.png"}
    for name, row in rows.items():
        alone = json.loads(ask("--json", str(tmp_path / name), "What is it?").stdout)
        assert row["answer"] == alone["answer"]


def test_a_schema_gives_json_with_a_confidence_for_each_value(
    ask: Ask, picture: str, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    properties = {"colour": {"enum": ["red", "blue"]}}
    shape = {"type": "object", "properties": properties, "required": ["colour"]}
    schema.write_text(json.dumps({**shape, "additionalProperties": False}))
    room = ("--max-new-tokens", "40")
    plain = ask("--schema", str(schema), *room, picture, "Which colour?")
    assert plain.exit_code == 0, plain.stderr
    row = json.loads(ask("--json", "--schema", str(schema), *room, picture, "Which colour?").stdout)
    assert row["value"] == json.loads(plain.stdout)
    assert row["value"]["colour"] in ("red", "blue")
    assert 0 < row["fields"]["colour"] <= 1


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "Could not read the schema"), ("{", "not JSON"), ('{"not": {}}', "cannot be enforced")],
)
def test_a_schema_that_cannot_be_used_is_reported(
    ask: Ask, picture: str, tmp_path: Path, content: str | None, words: str
) -> None:
    schema = tmp_path / "schema.json"
    if content is not None:
        schema.write_text(content)
    result = ask("--schema", str(schema), picture, "Which colour?")
    assert result.exit_code == UsageError.exit_code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_model_is_reported(picture: str) -> None:
    result = CliRunner().invoke(app, ["ask", "--model", "no/such-model", picture, "What?"])
    assert result.exit_code == 4
    assert "no/such-model" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2
