"""A calibrated confidence is how often such answers are right, and is kept with the weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from finetune.cli.evaluate import app
from finetune.evaluation.calibration import bins, calibrate, calibration_error, fit, halves
from finetune.evaluation.predictions import Prediction
from tests.tiny import tiny_llava
from vqa_app.checkpoints.calibration import (
    Calibration,
    count_words,
    is_denial,
    log_odds,
    read_calibration,
)
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, GenerationOptions, confidence_text
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import Conversation

CALIBRATION = Calibration(0.5, -1.0, "0123", None, 300, 0.02, longest_answer=3)


def overconfident(count: int = 2000) -> tuple[Any, Any]:
    """Make log odds of answers that are right less often than these say."""
    rng = np.random.default_rng(0)
    odds = rng.normal(2.0, 2.0, count)
    return odds, (rng.random(count) < 1 / (1 + np.exp(-(0.5 * odds - 1)))).astype(float)


def test_the_curve_is_found() -> None:
    assert fit(*overconfident(20_000)) == pytest.approx((0.5, -1.0), abs=0.1)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_answers_that_are_all_right_or_all_wrong_give_a_finite_curve(right: float) -> None:
    odds, _ = overconfident(300)
    assert all(map(math.isfinite, fit(odds, np.full(300, right))))


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    confidence = np.array([0.95] * 4 + [0.55] * 4)
    right = np.array([1, 1, 1, 0, 1, 1, 0, 0.0])
    found = bins(confidence, right)
    assert [(one.answers, one.accuracy) for one in found] == [(4, 0.5), (4, 0.75)]
    assert calibration_error(found) == pytest.approx((0.05 + 0.2) / 2)


def test_questions_about_one_picture_are_in_one_half() -> None:
    pictures = [("a",), ("b",), ("a",), ("c",), ("b",)]
    assert halves(pictures).tolist() == [True, False, True, True, False]


def predictions(count: int) -> list[Prediction]:
    odds, right = overconfident(count)
    p = 1 / (1 + np.exp(-odds))
    shown = Prediction("", "", (), "", "What?", ("yes",), "yes", 1.0)
    return [
        replace(
            shown,
            pictures=(str(i),),
            vqa_accuracy=float(right[i]),
            log_probability=float(np.log(p[i])),
            token_confidence=float(p[i]),
        )
        for i in range(count)
    ]


class Loaded:
    fingerprint, quantization = "0123", "4bit"


LOADED: Any = Loaded()  # enough of a model


def test_calibrating_lowers_the_error_on_questions_not_fitted_to() -> None:
    report = calibrate(LOADED, predictions(2000))
    assert report.error_before > 0.15
    assert report.calibration.error < 0.05
    assert report.calibration.fingerprint == "0123"


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 200 questions to calibrate with, got 199"):
        calibrate(LOADED, predictions(199))


@pytest.mark.parametrize(("slope", "expected"), [(100.0, 0.0), (-100.0, 1.0)])
def test_a_steep_curve_gives_probabilities(slope: float, expected: float) -> None:
    steep = replace(CALIBRATION, slope=slope, offset=0.0)
    assert steep.probability(-20.0) == pytest.approx(expected)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for the user's data, which does not exist yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "vqa-app"


@pytest.mark.parametrize("own", [True, False])
def test_a_calibration_holds_for_its_own_weights_only(
    tmp_path: Path, data: Path, own: bool
) -> None:
    folder = tmp_path / "run" if own else None
    CALIBRATION.save(folder)
    shipped = tmp_path / "none"
    assert read_calibration(folder, shipped, "0123", None) == CALIBRATION
    assert read_calibration(folder, shipped, "4567", None) is None
    assert read_calibration(folder, shipped, "0123", "4bit") is None


@pytest.mark.parametrize("own", [True, False])
def test_each_quantisation_has_a_calibration_of_its_own(
    tmp_path: Path, data: Path, own: bool
) -> None:
    folder = tmp_path / "run" if own else None
    quantized = replace(CALIBRATION, quantization="4bit", slope=0.7)
    assert CALIBRATION.save(folder) != quantized.save(folder)
    for calibration in (CALIBRATION, quantized):
        found = read_calibration(folder, tmp_path, "0123", calibration.quantization)
        assert found == calibration


def test_the_users_calibration_of_a_model_replaces_the_one_that_came_with_it(
    tmp_path: Path, data: Path
) -> None:
    shipped = replace(CALIBRATION, slope=0.9)
    shipped.save(tmp_path)
    assert read_calibration(None, tmp_path, "0123", None) == shipped
    assert CALIBRATION.save(None).parent == data / "calibrations"
    assert read_calibration(None, tmp_path, "0123", None) == CALIBRATION
    assert read_calibration(None, tmp_path, "4567", None) is None


def test_in_a_read_only_folder_it_is_kept_among_the_users_data(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").write_text("a file, into which nothing can be put")
    assert CALIBRATION.save(tmp_path / "run").parent == data / "calibrations"
    assert read_calibration(tmp_path / "run", tmp_path, "0123", None) == CALIBRATION


def test_where_nothing_can_be_written_is_reported(tmp_path: Path, data: Path) -> None:
    data.parent.write_text("a file")
    with pytest.raises(UsageError, match=r"Could not write .*calibrations"):
        CALIBRATION.save(None)


def test_a_user_without_a_home_has_the_calibration_that_came_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    CALIBRATION.save(tmp_path)
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "home", fail)
    assert read_calibration(None, tmp_path, "0123", None) == CALIBRATION
    with pytest.raises(UsageError, match="home"):
        CALIBRATION.save(None)


@pytest.mark.parametrize("text", ["", "[]", '{"slope": "x"}'])
def test_a_damaged_calibration_is_reported_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "calibration.json").write_text(text)
    assert read_calibration(None, tmp_path, "0123", None) is None
    assert "not calibrated" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"), [("red", 1), ("a red car", 3), ("3.5 %", 2), ("一辆红车", 4), ("", 0)]
)
def test_words_are_counted_and_characters_in_languages_without_spaces(
    text: str, words: int
) -> None:
    assert count_words(text) == words


def with_answers(shown: list[Prediction], known: str, predicted: str) -> list[Prediction]:
    return [replace(p, answers=(known,), prediction=predicted) for p in shown]


def test_it_holds_for_answers_as_long_as_the_known_ones() -> None:
    short = with_answers(predictions(475), "red", "red")
    odd = with_answers(predictions(25), "it is red and also a little blue", "red")
    calibration = calibrate(LOADED, short + odd).calibration
    assert calibration.longest_answer == 3
    assert calibration.covers("dark red")
    assert not calibration.covers("The car is red.")
    sentences = with_answers(predictions(400), "The car is red and has two doors.", "It is red.")
    assert calibrate(LOADED, sentences).calibration.longest_answer == 8


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "no",
            "No.",
            "0",
            "none",
            "unknown",
            "no dogs",
            "There are no dogs.",
            "No, there is no dog.",
        ),
        *("There is no car in the picture.", "Yes, there is no star.", "Nothing is written there."),
        *("I cannot tell that from the picture.", "I do not know this kind of picture."),
    ],
)
def test_how_often_denials_and_refusals_are_right_depends_on_the_pictures(answer: str) -> None:
    assert is_denial(answer)
    assert not replace(CALIBRATION, longest_answer=20).covers(answer)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "No, it is blue.",
            "yes",
            "3 of them are not red.",
            "nose",
            "05",
            "No, there is a red car.",
        ),
        *("north", "10", "0.5", "It is a dog.", ""),
    ],
)
def test_answers_that_affirm_something_are_no_denials(answer: str) -> None:
    assert not is_denial(answer)


def test_denials_are_not_calibrated_with() -> None:
    affirmed = with_answers(predictions(1000), "a dog", "a dog")
    denied = [
        replace(p, vqa_accuracy=0.0) for p in with_answers(predictions(500), "a dog", "no dogs")
    ]
    both = calibrate(LOADED, affirmed + denied).calibration
    assert both == calibrate(LOADED, affirmed).calibration


def test_longer_answers_than_the_known_ones_are_not_taken_for_wrong() -> None:
    short = with_answers(predictions(1000), "red", "red")
    spoken = [
        replace(p, vqa_accuracy=0.0)
        for p in with_answers(predictions(1000), "red", "The car is red.")
    ]
    both = calibrate(LOADED, short + spoken).calibration
    assert both == calibrate(LOADED, short).calibration
    with pytest.raises(UsageError, match="Only 0 of 1,000 answers have up to 3 words"):
        calibrate(LOADED, spoken)


@pytest.mark.parametrize("value", [0.0, -1e-12, -0.7, -50.0, -math.inf])
def test_every_log_probability_has_a_finite_confidence(value: float) -> None:
    assert math.isfinite(log_odds(value))
    assert 0 < CALIBRATION.probability(value) < 1


def test_the_words_say_what_was_measured() -> None:
    assert confidence_text(0.716, True) == "72 % likely to be right"
    assert confidence_text(0.98, False) == "98 % sure of its words"
    assert confidence_text(1.0, False) == "99 % sure of its words"


def ask(engine: LocalEngine, question: Conversation, **options: Any) -> Answer:
    *_, answer = engine.stream(question, GenerationOptions(temperature=0.0, **options))
    assert isinstance(answer, Answer)
    return answer


def calibrate_command(tmp_path: Path, count: int, *options: object) -> Result:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    rows = ["image,question,answer", *(f"red.png,Is it {n}?,yes" for n in range(count))]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    command = ["eval", "--data", tmp_path / "data.csv", "--images", tmp_path, "--calibrate"]
    command += ["--losses", 0, "--blind", 0, "--max-new-tokens", 3, *options]
    return CliRunner().invoke(app, [str(word) for word in command])


def test_eval_keeps_the_calibration_with_the_model(tmp_path: Path, one_thread: None) -> None:
    model = tiny_llava(tmp_path / "model")
    out = tmp_path / "predictions.jsonl"
    shown = calibrate_command(tmp_path, 210, "--model", model, "--out", out)
    assert shown.exit_code == 0, shown.output
    assert "Expected calibration error" in shown.stdout
    assert "It holds for answers of up to 3 words" in shown.stdout
    assert str(model / "calibration.json") in shown.stdout

    rows_written = map(json.loads, out.read_text().splitlines())
    assert all(row["log_probability"] < 0 < row["token_confidence"] for row in rows_written)
    calibration = load_model(model).calibration
    assert calibration is not None
    assert 200 <= calibration.questions <= 210


def test_that_of_a_hub_model_is_kept_among_the_users_data_and_that_of_an_adapter_with_it(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--owner--name"
    snapshot = tiny_llava(repository / "snapshots" / ("1" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    before = sorted(cache.rglob("*"))

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    weights = load_model(snapshot).model.state_dict()
    projector = {name: w for name, w in weights.items() if ".multi_modal_projector." in name}
    save_file(projector, adapter / "projector.safetensors")
    for name in ("owner/name", snapshot):
        shown = calibrate_command(tmp_path, 210, "--model", name)
        assert shown.exit_code == 0, shown.output
        assert str(data / "calibrations") in shown.stdout
    assert load_model("owner/name").calibration is not None
    assert load_model("owner/name", adapter).calibration is None, "other weights"
    shown = calibrate_command(tmp_path, 210, "--model", "owner/name", "--adapter", adapter)
    assert shown.exit_code == 0, shown.output
    assert str(adapter / "calibration.json") in shown.stdout
    assert load_model("owner/name", adapter).calibration is not None
    assert sorted(cache.rglob("*")) == before


def test_results_are_shown_even_if_they_are_too_few_to_calibrate_with(
    tmp_path: Path, tiny_llava_dir: Path
) -> None:
    result = calibrate_command(tmp_path, 200, "--model", tiny_llava_dir, "--max-new-tokens", 12)
    assert isinstance(result.exception, UsageError)
    assert "VQA accuracy" in result.stdout
    assert "--answer-style short" in result.exception.hint


def test_too_few_questions_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    result = calibrate_command(tmp_path, 199, "--model", "owner/name")
    assert isinstance(result.exception, UsageError)
    assert "at least 200 questions" in result.exception.problem


def test_only_complete_answers_of_measured_lengths_are_calibrated(
    tiny_llava_dir: Path, one_thread: None
) -> None:
    engine = LocalEngine(load_model(tiny_llava_dir))
    engine._calibration = replace(CALIBRATION, longest_answer=9)
    question = Conversation.ask("What?")
    cut = ask(engine, question, max_new_tokens=3)
    assert (cut.finish_reason, cut.calibrated) == ("length", False)
    tokens = engine._runtime.processor.tokenizer(cut.text)["input_ids"]
    engine._end_tokens = {tokens[-1]}
    whole = ask(engine, question)
    assert whole.finish_reason == "stop"
    assert whole.calibrated
    engine._calibration = replace(CALIBRATION, longest_answer=0)
    assert not ask(engine, question).calibrated
    assert whole.confidence < cut.confidence  # slope and offset halve the odds and more
    engine.close()
