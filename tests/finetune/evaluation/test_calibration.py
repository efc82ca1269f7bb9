"""A calibrated confidence is how often such answers are right, and is kept with the weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from finetune.cli.evaluate import app
from finetune.evaluation.calibration import bins, calibrate, calibration_error, fit, halves
from finetune.evaluation.predictions import Prediction
from tests.tiny import tiny_llava
from vqa_app.checkpoints.calibration import Calibration, log_odds, read_calibration
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, GenerationOptions, confidence_text
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import Conversation

CALIBRATION = Calibration(0.5, -1.0, "", None, 300, 0.02)


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


def test_calibrating_lowers_the_error_on_questions_not_fitted_to() -> None:
    report = calibrate(Loaded(), predictions(2000))  # type: ignore[arg-type]  # enough of a model
    assert report.error_before > 0.15
    assert report.calibration.error < 0.05
    assert report.calibration.fingerprint == "0123"


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(UsageError, match="199 questions are too few"):
        calibrate(Loaded(), predictions(199))  # type: ignore[arg-type]  # enough of a model


@pytest.mark.parametrize(("slope", "expected"), [(100.0, 0.0), (-100.0, 1.0)])
def test_a_steep_curve_gives_probabilities(slope: float, expected: float) -> None:
    steep = replace(CALIBRATION, slope=slope, offset=0.0)
    assert steep.probability(-20.0) == pytest.approx(expected)


def test_a_calibration_holds_for_its_own_weights_only(tmp_path: Path) -> None:
    replace(CALIBRATION, fingerprint="0123").save(tmp_path)
    found = read_calibration(tmp_path, "0123", None)
    assert found == replace(CALIBRATION, fingerprint="0123")
    assert read_calibration(tmp_path, "4567", None) is None
    assert read_calibration(tmp_path, "0123", "4bit") is None
    assert read_calibration(tmp_path / "none", "0123", None) is None


@pytest.mark.parametrize("text", ["", "[]", '{"slope": "x"}'])
def test_a_damaged_calibration_is_reported_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "calibration.json").write_text(text)
    assert read_calibration(tmp_path, "0123", None) is None
    assert "not calibrated" in caplog.text


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


def test_eval_keeps_the_calibration_with_the_model(tmp_path: Path, one_thread: None) -> None:
    model = tiny_llava(tmp_path / "model")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    rows = ["image,question,answer", *(f"red.png,Is it {n}?,yes" for n in range(200))]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    command = ["eval", "--model", model, "--data", tmp_path / "data.csv", "--images", tmp_path]
    command += ["--losses", 0, "--max-new-tokens", 4, "--calibrate"]
    out = tmp_path / "predictions.jsonl"
    shown = CliRunner().invoke(app, [str(word) for word in [*command, "--out", out]])
    assert shown.exit_code == 0, shown.output
    assert "Expected calibration error" in shown.stdout
    assert "The curve of all 200 questions" in shown.stdout

    rows_written = map(json.loads, out.read_text().splitlines())
    assert all(row["log_probability"] < 0 < row["token_confidence"] for row in rows_written)
    calibration = load_model(model).calibration
    assert calibration is not None
    assert calibration.questions == 200


def test_only_complete_answers_are_calibrated(tiny_llava_dir: Path, one_thread: None) -> None:
    engine = LocalEngine(load_model(tiny_llava_dir))
    engine._calibration = CALIBRATION
    question = Conversation.ask("What?")
    cut = ask(engine, question, max_new_tokens=3)
    assert (cut.finish_reason, cut.calibrated) == ("length", False)
    tokens = engine._runtime.processor.tokenizer(cut.text)["input_ids"]
    engine._end_tokens = {tokens[-1]}
    whole = ask(engine, question)
    assert whole.finish_reason == "stop"
    assert whole.calibrated
    assert whole.confidence < cut.confidence  # slope and offset halve the odds and more
    engine.close()


@pytest.mark.parametrize("model", ["builtin", "owner/name"])
def test_a_model_without_a_folder_of_its_own_is_refused_before_it_is_loaded(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    rows = ["image,question,answer", *(f"red.png,Is it {n}?,yes" for n in range(200))]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    command = ["eval", "--model", model, "--data", tmp_path / "data.csv", "--calibrate"]
    error = CliRunner().invoke(app, [*map(str, command), "--images", str(tmp_path)]).exception
    assert isinstance(error, UsageError)
    assert "folder" in error.problem
