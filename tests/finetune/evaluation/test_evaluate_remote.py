"""Evaluating a model on a server, which is a stand-in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import Response
from typer.testing import CliRunner, Result

from finetune.cli.evaluate import app
from tests.finetune.evaluation.test_evaluate import data_file
from tests.openai_stand_in import DONE, StandIn, delta, refuse, stand_in, stream


async def answer_by_question(body: dict[str, Any]) -> Response:
    """Answer "Question 2?" with "a2", after a while, as if the model thought about it."""
    await asyncio.sleep(0.05)
    question = body["messages"][-1]["content"][-1]["text"]
    number = question.split("?")[0].split()[-1]
    return await stream(delta(f"a{number}"), DONE)(body)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as running:
        running.otherwise = answer_by_question
        yield running


def evaluate(server: StandIn, folder: Path, *options: object) -> Result:
    data = folder / "data.json"
    if not data.exists():
        data_file(folder)
    words = ["eval", "--model", server.address, "--data", str(data)]
    return CliRunner().invoke(app, [*words, *map(str, options)])


def test_questions_are_answered_greedily_and_several_at_once(
    server: StandIn, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    result = evaluate(server, tmp_path, "--json", "--out", out, "--blind", 2)
    values = json.loads(result.stdout)
    assert values["model"] == f"{server.address}#tiny"
    assert (values["scores"]["questions"], values["scores"]["vqa_accuracy"]) == (8, 1.0)
    assert values["loss"] is values["image_gain"] is None
    assert values["blind"]["questions"] == 2
    assert {request["temperature"] for request in server.requests} == {0.0}
    assert 2 <= server.most_in_flight <= 8
    predictions = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    assert sorted(predictions) == sorted(2 * ["a0", "a1", "a2", "a3"])


def test_an_interrupted_evaluation_is_continued(server: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert evaluate(server, tmp_path, "--out", out, "--blind", 0).exit_code == 0
    asked = len(server.requests)
    assert evaluate(server, tmp_path, "--out", out, "--blind", 0).exit_code == 0
    assert len(server.requests) == asked == 8


@pytest.mark.parametrize("option", [("--losses", 5), ("--calibrate",)])
def test_what_needs_the_weights_is_refused_by_name(
    server: StandIn, tmp_path: Path, option: tuple[object, ...]
) -> None:
    result = evaluate(server, tmp_path, *option)
    assert f"{option[0]} needs the weights" in str(result.exception)
    assert not server.requests


def test_a_failing_server_ends_the_evaluation_with_its_words(
    server: StandIn, tmp_path: Path
) -> None:
    server.otherwise = refuse(400, "no such thing")
    result = evaluate(server, tmp_path)
    assert "no such thing" in str(result.exception)
