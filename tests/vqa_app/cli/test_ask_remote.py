"""`vqa-app ask` with a model on a server, which is a stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import exp
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests import tiny
from tests.openai_stand_in import ANSWER, DONE, StandIn, delta, logprob, respond, stand_in, stream
from vqa_app.cli.main import app

Ask = Callable[..., Result]


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    with stand_in() as server:
        yield server


@pytest.fixture
def server(running: StandIn) -> StandIn:
    running.reset()
    return running


@pytest.fixture
def ask(server: StandIn) -> Ask:
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["ask", "--model", server.address, *words])


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "noise.png"
    tiny.picture(0, (96, 64)).image.save(path)
    return str(path)


def test_the_answer_goes_to_stdout(ask: Ask, picture: str) -> None:
    result = ask(picture, "What is it?")
    assert (result.exit_code, result.stdout) == (0, "red\n"), result.stderr


def test_json_has_null_for_what_the_server_does_not_say(
    ask: Ask, server: StandIn, picture: str
) -> None:
    row = json.loads(ask("--json", picture, "What is it?").stdout)
    assert row["answer"] == "red"
    assert row["model"] == f"{server.address}#tiny"
    unknown = {"confidence", "prompt_tokens", "image_tokens", "cached_tokens", "new_tokens"}
    assert {name for name, value in row.items() if value is None} == unknown


def test_a_shrunk_picture_is_told(ask: Ask, server: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    tiny.picture(0, (2100, 10)).image.save(path)
    result = ask("--json", str(path), "What is it?")
    assert "wide.png: shrunk to 2,048 × 10 pixels for the server" in result.stderr
    (shown,) = json.loads(result.stdout)["pictures"]
    assert shown["changes"] == ["shrunk to 2,048 × 10 pixels for the server"]


def test_abstaining_needs_the_confidence(ask: Ask, server: StandIn, picture: str) -> None:
    server.script(stream(logprob("red", -2.0), DONE))
    assert ask("--abstain", "0.5", picture, "What?").stdout == "I am not sure.\n"
    result = ask("--abstain", "0.5", picture, "What?")
    assert result.exit_code == 4
    assert "--abstain needs" in result.stderr


def test_choices_say_how_they_were_made(ask: Ask, server: StandIn, picture: str) -> None:
    message = {"content": '{"answer": "blue"}'}
    server.otherwise = respond(200, {"choices": [{"message": message}]})
    row = json.loads(ask("--json", "--choices", "red,blue", picture, "Which?").stdout)
    assert (row["answer"], row["chosen_by"], row["confidence"]) == ("blue", "response_format", None)
    assert "choices" not in row


def test_many_files_are_asked_about_at_once(ask: Ask, server: StandIn, tmp_path: Path) -> None:
    for number in range(5):
        tiny.picture(number, (20, 20)).image.save(tmp_path / f"{number}.png")
    result = ask("--each", str(tmp_path), "What?")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(Path(row["picture"]).name, row["answer"]) for row in rows] == [
        (f"{number}.png", "red") for number in range(5)
    ]
    assert "sent to 127.0.0.1" in result.stderr


def test_answers_that_follow_a_schema_make_a_table(
    ask: Ask, server: StandIn, tmp_path: Path
) -> None:
    for number in range(3):
        tiny.picture(number, (20, 20)).image.save(tmp_path / f"{number}.png")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    out = tmp_path / "table.csv"
    words = ("What?", "--schema", str(schema), "--out", str(out))
    server.otherwise = stream(delta('{"colour": "red", "sides": [1, 2]}'), delta(finish="stop"))
    result = ask("--each", str(tmp_path / "[01].png"), *words)
    assert result.exit_code == 0, result.stderr
    assert f"2answered,in{out}" in "".join(result.stderr.split())  # without its line breaks
    server.otherwise = stream(delta('{"colour": "re'), delta(finish="length"))
    result = ask("--each", str(tmp_path / "*.png"), *words)
    assert "2 of 3 are already answered" in result.stderr
    assert len(server.requests) == 3
    header, *rows = out.read_text("utf-8").splitlines()
    assert header == "picture,colour,sides,answer,confidence,finish_reason"
    assert rows[0] == f'{tmp_path / "0.png"},red,"[1, 2]",,,stop'
    assert rows[2] == f'{tmp_path / "2.png"},,,"{{""colour"": ""re",,length'


def test_json_has_the_value_of_an_answer_that_follows_a_schema(
    ask: Ask, server: StandIn, picture: str, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    question = ("--json", "--schema", str(schema), picture, "What?")
    server.otherwise = stream(logprob('{"a": 1', -0.5), logprob("}", 0.0), delta(finish="stop"))
    row = json.loads(ask(*question).stdout)
    assert row["value"] == {"a": 1}
    assert row["fields"] == {"a": pytest.approx(exp(-0.5))}
    server.otherwise = stream(delta('{"a": nu'), delta(finish="length"))
    cut = ask(*question)
    assert "value" not in json.loads(cut.stdout)
    assert json.loads(cut.stdout)["finish_reason"] == "length"
    assert "was cut off" in ask(*question[1:]).stderr


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_what_is_no_schema_is_refused_before_anything_is_asked(
    ask: Ask, server: StandIn, picture: str, tmp_path: Path, text: str
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(text)
    result = ask("--schema", str(schema), picture, "What?")
    assert result.exit_code == 2
    assert "chema" in result.stderr
    assert not server.headers


def test_explain_is_refused_before_the_question_is_asked(
    ask: Ask, server: StandIn, picture: str, tmp_path: Path
) -> None:
    result = ask("--explain", str(tmp_path / "map.png"), picture, "What?")
    assert result.exit_code == 4
    assert "does not support attention maps" in result.stderr
    assert not server.requests


@pytest.mark.parametrize("option", ["--adapter=x", "--quantize=4bit", "--device=cpu"])
def test_options_for_loading_a_model_are_refused(ask: Ask, picture: str, option: str) -> None:
    result = ask(option, picture, "What?")
    assert result.exit_code == 2
    assert f"{option.partition('=')[0]} cannot be combined with a server" in result.stderr


def test_the_key_comes_from_the_environment_and_stays_secret(
    ask: Ask, server: StandIn, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQA_API_KEY", "sk-secret")
    result = ask("--json", picture, "What?")
    assert server.headers[-1]["authorization"] == "Bearer sk-secret"
    help_text = CliRunner().invoke(app, ["ask", "--help"]).output
    assert "sk-secret" not in result.output + help_text
    assert "VQA_API_KEY" in help_text


def test_a_broken_answer_is_reported_in_two_lines(ask: Ask, server: StandIn, picture: str) -> None:
    server.script(stream(delta("re"), cut=True))
    result = ask(picture, "What?")
    assert result.exit_code == 4
    assert result.stdout.startswith("re")
    assert "broke before the answer was complete" in result.stderr
    assert "Traceback" not in result.stderr


def test_neither_torch_nor_transformers_is_imported(server: StandIn, picture: str) -> None:
    server.otherwise = stream(*ANSWER)
    code = (
        "import sys\n"
        "from vqa_app.cli import main\n"
        f"try: main(['ask', '--model', {server.address!r}, {picture!r}, 'What?'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'gradio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "red\nset()\n", done.stderr[-2000:]


def test_serve_refuses_to_repeat_another_server(server: StandIn) -> None:
    result = CliRunner().invoke(app, ["serve", "--model", server.address])
    assert result.exit_code == 2
    assert "is a server with this API already" in result.stderr
