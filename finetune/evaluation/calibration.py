"""Fit a model's calibration to answered questions, and measure what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from finetune.data.samples import SHORT_ANSWER_WORDS
from finetune.evaluation.predictions import Prediction
from vqa_app.checkpoints.calibration import (
    Calibration,
    count_words,
    is_measured,
    log_odds,
)
from vqa_app.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vqa_app.checkpoints.loader import LoadedModel

    Floats: TypeAlias = NDArray[np.float64]

MIN_QUESTIONS = 200
"""Fewer do not show how often a model is right when it claims nine times out of ten."""
BINS = 10
_USUAL_SHARE = 0.95
"""Share of the known answers that decides which answers are short enough: a few longer ones in a
data set of single words say nothing about sentences."""
_STEPS = 50
_SMALLEST_STEP = 1e-9
_RIDGE = 1e-3
"""Keeps the curve finite where all answers are right, or all wrong."""


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence."""

    low: float
    high: float
    answers: int
    confidence: float
    """Their mean confidence."""
    accuracy: float
    """How many of them are right."""


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration, and how well confidences agree with how often answers are right."""

    calibration: Calibration
    error_before: float
    """Expected calibration error of the mean token probability, which is shown otherwise."""
    bins: tuple[Bin, ...]
    """The calibrated confidences of questions that the curve was not fitted to."""


def calibrate(loaded: LoadedModel, predictions: Sequence[Prediction]) -> CalibrationReport:
    """Fit a calibration to predictions with log probabilities.

    It holds for answers about as long as the known ones: a sentence never equals a word, so it is
    not known whether a longer answer is right. It does not hold for denials; see `is_measured`.

    What is reported is measured on questions that the curve was not fitted to: one half of the
    pictures with the curve of the other half. The curve itself is fitted to all of them.

    Raises:
        UsageError: There are too few questions, or too few answers of the kind that is measured.
    """
    answered = [p for p in predictions if p.log_probability is not None]
    check_count(len(answered))
    longest = longest_answer(answered)
    measured = [p for p in answered if is_measured(p.prediction, longest)]
    if len(measured) < MIN_QUESTIONS:
        raise UsageError(
            f"Only {len(measured):,} of {len(answered):,} answers have up to {longest} words, as"
            f" the known ones have, and deny nothing; {MIN_QUESTIONS} are needed to calibrate"
            " with.",
            "Use --answer-style short, or more questions.",
        )
    odds = np.array([log_odds(p.log_probability or 0.0) for p in measured])
    right = np.array([p.vqa_accuracy for p in measured])
    half = halves([p.pictures for p in measured])
    held_out = np.empty(len(odds))
    for own, other in ((half, ~half), (~half, half)):
        held_out[own] = _curve(odds[own], *fit(odds[other], right[other]))
    slope, offset = fit(odds, right)
    found = bins(held_out, right)
    means = np.array([p.token_confidence or 0.0 for p in measured])
    calibration = Calibration(
        slope=round(slope, 4),
        offset=round(offset, 4),
        fingerprint=loaded.fingerprint,
        quantization=loaded.quantization,
        questions=len(measured),
        error=round(calibration_error(found), 4),
        longest_answer=longest,
    )
    return CalibrationReport(calibration, calibration_error(bins(means, right)), found)


def longest_answer(predictions: Sequence[Prediction]) -> int:
    """Return the number of words that nearly all known answers stay within."""
    lengths = [count_words(answer) for p in predictions for answer in p.answers]
    usual = int(np.quantile(lengths, _USUAL_SHARE, method="inverted_cdf"))
    return max(SHORT_ANSWER_WORDS, usual)


def check_count(questions: int) -> None:
    """Check that there are enough questions to calibrate with.

    Raises:
        UsageError: There are too few.
    """
    if questions < MIN_QUESTIONS:
        raise UsageError(
            f"Expected at least {MIN_QUESTIONS} questions to calibrate with, got {questions}.",
            "Give more data, or leave out --calibrate.",
        )


def halves(pictures: Sequence[tuple[str, ...]]) -> NDArray[np.bool_]:
    """Return which questions belong to the first half; those about one picture stay together."""
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) % 2 == 0 for key in pictures])


def fit(odds: Floats, right: Floats) -> tuple[float, float]:
    """Return slope and offset of the most likely logistic curve, by Newton's method."""
    inputs = np.column_stack([odds, np.ones(len(odds))])

    def loss(weights: Floats) -> float:
        score = inputs @ weights
        likelihood = right @ score - np.logaddexp(0, score).sum()
        return float(_RIDGE / 2 * weights @ weights - likelihood)

    weights = np.zeros(2)
    for _ in range(_STEPS):
        p = _curve(odds, *weights)
        gradient = inputs.T @ (right - p) - _RIDGE * weights
        curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights + step) > loss(weights) and np.abs(step).max() > _SMALLEST_STEP:
            step = step / 2  # a full step from afar may go too far
        weights = weights + step
    return float(weights[0]), float(weights[1])


def _curve(odds: Floats, slope: float, offset: float) -> Floats:
    return np.asarray((1 + np.tanh((slope * odds + offset) / 2)) / 2)  # cannot overflow


def bins(confidence: Floats, right: Floats) -> tuple[Bin, ...]:
    """Group answers into `BINS` equally wide ranges of confidence; empty ones are left out."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return tuple(
        Bin(
            k / BINS,
            (k + 1) / BINS,
            int(members.sum()),
            float(confidence[members].mean()),
            float(right[members].mean()),
        )
        for k in range(BINS)
        if (members := number == k).any()
    )


def calibration_error(found: Sequence[Bin]) -> float:
    """Return the expected calibration error (Naeini et al. 2015), 0 to 1.

    It is the mean difference between confidence and accuracy of the bins, weighted by answers.
    """
    total = sum(one.answers for one in found)
    return sum(one.answers * abs(one.confidence - one.accuracy) for one in found) / total
