"""Data with short answers is asked for short answers; runs are asked as they were trained."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from finetune.evaluation.answer_style import ask_for_short_answers, expect_short_answers
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.questions import Question, load_questions, make_questions
from tests.finetune.evaluation.test_evaluate import opened, row
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import SHORT_STYLE

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60)}


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """Write a table as a newcomer does: pictures of discs, with answers of one word."""
    rows = []
    for name, colour in COLOURS.items():
        picture = Image.new("RGB", (200, 200), "white")
        ImageDraw.Draw(picture).ellipse((40, 40, 160, 160), colour, "black", 4)
        picture.save(tmp_path / f"{name}.png")
        rows.append((f"{name}.png", "What colour is the circle?", name))
        rows.append((f"{name}.png", "Is it red?", "yes" if name == "red" else "no"))
    with (tmp_path / "discs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "question", "answer"), *rows])
    return tmp_path / "discs.csv"


def questions(*pairs: tuple[str, str]) -> list[Question]:
    return make_questions([row(f"row {i}", pair) for i, pair in enumerate(pairs)])


def test_the_built_in_model_answers_a_table_with_answers_of_one_word(discs: Path) -> None:
    found = evaluate("builtin", discs, losses=0, blind=0)
    assert found.scores.vqa_accuracy == 1.0
    assert found.answer_style == "short"
    assert all(p.prompt.count(SHORT_STYLE) == 1 for p in found.predictions)
    as_written = evaluate("builtin", discs, losses=0, blind=0, answer_style="as-written")
    assert as_written.scores.vqa_accuracy == 0.0
    assert [p.prediction for p in as_written.predictions][:1] == ["The circle is red."]


def test_a_run_is_asked_its_questions_as_they_are_written(
    discs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.evaluation import evaluate as module

    monkeypatch.setattr(module, "is_finished", lambda folder: True)
    data = load_questions(discs, limit=2)
    assert evaluate("builtin", data, losses=0, blind=0).answer_style == "as-written"
    found = evaluate("builtin", data, losses=0, blind=0, answer_style="short")
    assert found.answer_style == "short"


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("What is it?", "a red bus"), ("Is it?", "no")], True),
        ([("What is shown?", "A red bus in front of a house.")], False),
        ([("What is it?\nAnswer with one word.", "bus"), ("Is it? Reply yes or no.", "no")], False),
        ([("Is it?", "no")] * 9 + [("Why?", "Because it has four legs and a tail.")], True),
        ([("Is it?", "no")] * 8 + [("Why?", "Because it has four legs and a tail.")] * 2, False),
        ([], False),
    ],
)
def test_only_plain_questions_with_short_answers_get_the_instruction(
    pairs: list[tuple[str, str]], expected: bool
) -> None:
    assert expect_short_answers(questions(*pairs)) is expected


def test_a_system_prompt_that_says_how_to_answer_is_enough() -> None:
    data = row("a", ("What is it?", "bus"), system="You answer in one word.")
    assert not expect_short_answers(make_questions([data]))


def test_the_instruction_ends_the_question_wherever_the_picture_stands() -> None:
    data = row("a", ("What is it? ", "bus"))
    question, picture = data.turns[0].parts[1], data.turns[0].parts[0]
    for parts in (data.turns[0].parts, (question, picture)):
        turn = replace(data.turns[0], parts=parts)
        (asked,) = ask_for_short_answers(
            make_questions([replace(data, turns=(turn, data.turns[1]))])
        )
        conversation = asked.conversation(opened(data))
        assert conversation.messages[-1].text.endswith(SHORT_STYLE)
        assert len(conversation.pictures) == 1
    twice = ask_for_short_answers(questions(("What?" + SHORT_STYLE, "bus")))
    assert not twice[0].instruction


def test_predictions_of_another_style_are_not_continued(discs: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    evaluate("builtin", discs, losses=0, blind=0, limit=2, out=out)
    with pytest.raises(UsageError, match="other data"):
        evaluate("builtin", discs, losses=0, blind=0, limit=2, out=out, answer_style="as-written")


def test_an_unknown_style_is_refused(discs: Path) -> None:
    with pytest.raises(UsageError, match="no answer style 'long'"):
        evaluate("builtin", discs, answer_style="long")  # type: ignore[arg-type]


def test_the_command_says_how_it_asked(discs: Path) -> None:
    from finetune.cli.evaluate import app

    words = ["eval", "--data", str(discs), "--losses", "0", "--blind", "0"]
    shown = CliRunner().invoke(app, words)
    assert "100.00 %" in shown.stdout
    assert "builtin: asked for a single word or phrase" in shown.stdout
    words += ["--answer-style", "as-written", "--json"]
    values = json.loads(CliRunner().invoke(app, words).stdout)
    assert values["answer_style"] == "as-written"
