"""From the probability that a model gives to its words to how often such an answer is right.

A model's own probability says how sure it is of its words, and most models are too sure. `vqa-app
eval --calibrate` fits the two numbers of a logistic curve (Platt, 1999) to questions with known
answers, and keeps them beside the weights.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

CALIBRATION_FILE = "calibration.json"

_LEAST_LOG_PROBABILITY, _MOST_LOG_PROBABILITY = math.log(1e-6), math.log(1 - 1e-6)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """A logistic curve over the log odds of a whole answer, its end token included."""

    slope: float
    offset: float
    fingerprint: str
    """Of the weights that it was measured with; it holds for no others."""
    quantization: str | None
    questions: int
    """Number of questions that it was fitted to."""
    error: float
    """Expected calibration error on questions that it was not fitted to."""

    def probability(self, log_probability: float) -> float:
        """Return how likely an answer is right, given its log probability in nats."""
        score = self.slope * log_odds(log_probability) + self.offset
        return (1 + math.tanh(score / 2)) / 2  # the logistic function, which cannot overflow

    def save(self, directory: Path) -> Path:
        """Write the file into a model's directory and return its path."""
        path = directory / CALIBRATION_FILE
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path


_CALIBRATION = TypeAdapter(Calibration)


def log_odds(log_probability: float) -> float:
    """Return the log odds of a log probability, of which the extremes are clipped."""
    clipped = min(max(log_probability, _LEAST_LOG_PROBABILITY), _MOST_LOG_PROBABILITY)
    return clipped - math.log(-math.expm1(clipped))


def read_calibration(
    directory: Path, fingerprint: str, quantization: str | None
) -> Calibration | None:
    """Return the calibration of a model; None if it has none or has changed since."""
    path = directory / CALIBRATION_FILE
    if not path.is_file():
        return None
    try:
        found = _CALIBRATION.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, so confidences are not calibrated: %s", path, error)
        return None
    same = (found.fingerprint, found.quantization) == (fingerprint, quantization)
    return found if same else None
