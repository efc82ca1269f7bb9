"""What one gets without looking at the pictures, beside every accuracy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune.data.read import PictureSource, Row, Turn
from finetune.evaluation.baselines import Baselines, FrequentAnswers
from finetune.evaluation.evaluate import evaluate, measure_blind
from finetune.evaluation.questions import Question, make_questions
from finetune.runs.layout import FREQUENT_ANSWERS_FILE
from tests.finetune.training_data import small_config, write_data
from tests.tiny import picture


def row(name: str, question: str, *answers: str, shown: bool = True) -> Row:
    pictures = (PictureSource.data(_png(), "a.png"),) if shown else ()
    turns = (Turn("user", (*pictures, question)), Turn("assistant", (answers[0],)))
    return Row(name, "data.json", 1, turns, (answers,))


def _png() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    picture(1).image.save(buffer, "PNG")
    return buffer.getvalue()


def questions(*answered: tuple[str, Sequence[str]]) -> list[Question]:
    return make_questions(row(str(i), q, *answers) for i, (q, answers) in enumerate(answered))


YES_NO = questions(*[("Is it red?", ["No."])] * 63, *[("Is it red?", ["yes"])] * 37)


def test_always_no_is_right_as_often_as_no_is_the_answer() -> None:
    frequent = FrequentAnswers.of(YES_NO, "these questions themselves")
    assert frequent is not None
    found = Baselines.of(YES_NO, frequent)
    assert (found.answer, found.always, found.per_type) == ("No.", 0.63, 0.63)
    assert found.types == {"is it": 0.63}
    assert '63.0 % for always answering "No."' in str(found)
    assert "these questions themselves" in str(found)


def test_the_most_frequent_answer_depends_on_the_type_of_question() -> None:
    asked = questions(
        *[("Is it red?", ["no"])] * 5,
        *[("How many are there?", ["2"])] * 3,
        ("How many are there?", ["3"]),
        ("What for?", ["fun"]),
    )
    frequent = FrequentAnswers.of(asked, "the training rows")
    assert frequent is not None
    assert frequent.types == {"is it": "no", "how many": "2"}, "one question is no type"
    assert frequent.answer_to("what for") == "no"
    found = Baselines.of(asked, frequent)
    assert (found.always, found.per_type) == (0.5, 0.8)
    assert found.types == {"is it": 1.0, "how many": 0.75, "what for": 0.0}


def test_spellings_count_together_and_of_several_answers_the_most_frequent_one() -> None:
    ten = ["2"] * 6 + ["two dogs"] * 4
    asked = questions(("How many?", ["Two"]), ("How many?", ten), ("How many?", ["3", ""]))
    frequent = FrequentAnswers.of(asked, "the training rows")
    assert frequent is not None
    assert frequent.overall == "Two"
    assert Baselines.of(asked, frequent).always == pytest.approx(2 / 3)
    assert FrequentAnswers.of([], "the training rows") is None
    assert FrequentAnswers.of(questions(("Who?", [" "])), "the training rows") is None


def test_answers_learned_elsewhere_may_be_wrong_here() -> None:
    frequent = FrequentAnswers.of(questions(*[("Is it?", ["yes"])] * 3), "the training rows")
    assert frequent is not None
    assert Baselines.of(YES_NO, frequent).always == 0.37


def test_frequent_answers_are_kept_with_a_run(tmp_path: Path) -> None:
    frequent = FrequentAnswers.of(YES_NO, "the training rows")
    assert frequent is not None
    frequent.save(tmp_path)
    assert FrequentAnswers.load(tmp_path) == frequent
    (tmp_path / FREQUENT_ANSWERS_FILE).write_text('{"overall": 5}')
    assert FrequentAnswers.load(tmp_path) is None
    assert FrequentAnswers.load(tmp_path / "gone") is None


def test_the_blind_model_is_asked_a_bounded_number_of_questions(tiny_llava_dir: Path) -> None:
    from vqa_app.checkpoints.loader import load_model

    loaded = load_model(tiny_llava_dir)
    model = (loaded.model, loaded.processor, loaded.capabilities)
    asked = [
        *make_questions([row(f"p{i}", f"What is {i}?", "a cat") for i in range(6)]),
        *make_questions([row("text", "Who?", "me", shown=False)]),
    ]
    accuracies = {question.id: 1.0 for question in asked}
    found = measure_blind(*model, asked, accuracies, limit=4, max_new_tokens=2)
    assert found is not None
    assert (found.questions, found.with_pictures) == (4, 1.0)
    assert found.accuracy == 0.0  # of random weights
    assert found.seconds > 0
    assert measure_blind(*model, asked[-1:], accuracies) is None
    assert measure_blind(*model, asked, accuracies, limit=0) is None


def test_the_blind_model_sees_grey_pictures(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_app.checkpoints.loader import load_model

    seen: list[Any] = []

    def encode(processor: Any, conversation: Any, **_: Any) -> Any:
        seen.extend(conversation.pictures)
        return conversation

    monkeypatch.setattr("vqa_app.prompts.prompt.encode", encode)
    monkeypatch.setattr("vqa_app.engine.batched.answer_prompts", lambda *a, **_: ["a cat"])
    loaded = load_model(tiny_llava_dir)
    asked = make_questions([row("a", "What?", "a cat")])
    found = measure_blind(
        loaded.model, loaded.processor, loaded.capabilities, asked, {"a": 0.0}, limit=5
    )
    assert found is not None
    assert (found.accuracy, found.with_pictures) == (1.0, 0.0)
    assert [one.image.getextrema() for one in seen] == [((127, 127),) * 3]
    assert seen[0].image.size == picture(1).image.size


def test_the_command_shows_the_baselines(tiny_llava_dir: Path, tmp_path: Path) -> None:
    from finetune.cli.evaluate import app

    data, model = write_data(tmp_path / "data"), str(tiny_llava_dir)
    common = ["eval", "--data", str(data), "--model", model, "--max-new-tokens", "2"]
    common += ["--losses", "0", "--limit", "6"]
    shown = CliRunner().invoke(app, common)
    assert shown.exit_code == 0, shown.output
    for words in (
        "always ",
        "most frequent answer by type",
        "with grey pictures",
        "counted in these questions themselves",
        "Measured in ",
    ):
        assert words in shown.stdout, words
    values = json.loads(CliRunner().invoke(app, [*common, "--json", "--blind", "2"]).stdout)
    assert values["blind"]["questions"] == 2
    assert 0 < values["baselines"]["always"] <= 1
    without = CliRunner().invoke(app, [*common, "--blind", "0"])
    assert "grey pictures" not in without.stdout


def test_answers_are_printed_as_they_are(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Brackets are markup to rich."""
    from finetune.cli.evaluate import app

    (tmp_path / "d.csv").write_text("question,answer\nWhat?,[/b]\nWho?,[red]\nWhat?,[/b]\n")
    words = ["eval", "--data", str(tmp_path / "d.csv"), "--model", str(tiny_llava_dir)]
    shown = CliRunner().invoke(app, [*words, "--max-new-tokens", "2", "--losses", "0"])
    assert shown.exit_code == 0, shown.output
    assert 'always "[/b]"' in shown.stdout
    assert "66.67 %" in shown.stdout


@pytest.mark.slow
def test_a_run_keeps_and_reports_its_baselines(tiny_llava_dir: Path, tmp_path: Path) -> None:
    from finetune.training.train import train

    data, messages = write_data(tmp_path / "data"), []
    config = small_config(
        tiny_llava_dir, data, tmp_path / "run", eval_fraction=0.3, eval_every=0.0, max_steps=2
    )
    run = train(config, on_progress=lambda progress: messages.append(progress.message)).run
    assert "better than on new rows" not in (run / "report.html").read_text("utf-8")
    assert any("Without looking at the pictures" in message for message in messages)
    assert any("with grey pictures" in message for message in messages)
    assert FrequentAnswers.load(run) is not None
    for file in ("report.html", "README.md"):
        text = (run / file).read_text("utf-8")
        assert "without looking" in text
        assert "grey pictures" in text
    again = evaluate(run, data, max_new_tokens=2, losses=0, blind=2, limit=4)
    assert again.baselines is not None
    assert again.baselines.source == "the training rows"


def test_a_run_evaluated_on_its_training_rows_says_so(tiny_llava_dir: Path, tmp_path: Path) -> None:
    from finetune.training.train import train

    data = write_data(tmp_path / "data")
    config = small_config(tiny_llava_dir, data, tmp_path / "run", eval_every=0.0, max_steps=1)
    run = train(config.replace(eval_data=(str(data),))).run
    for file in ("report.html", "README.md"):
        assert "show the pictures of, 8 held-out rows" in (run / file).read_text("utf-8")
