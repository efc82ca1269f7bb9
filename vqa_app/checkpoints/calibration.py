"""From the probability that a model gives to its words to how often such an answer is right.

A model's own probability says how sure it is of its words, and most models are too sure. `vqa-app
eval --calibrate` fits the two numbers of a logistic curve (Platt, 1999) to questions with known
answers, and keeps them with the model, or among the user's data if the model's folder is not for
this program to write to.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from vqa_app.errors import UsageError, first_line
from vqa_app.files import atomic_file
from vqa_app.user_folders import user_data

CALIBRATION_FILE = "calibration.json"

_WORD = re.compile(r"[\u3040-\u9fff]|[^\s\u3040-\u9fff]+")
"""A word, or a character of Chinese or Japanese, which write no spaces between words."""

_DENIAL = re.compile(
    r"(?:(?:yes|no)\W+)?"
    r"(?:(?:there|it) (?:is|are|was|were) (?:no|not|nothing|none)\b"
    r"|i (?:do not|don't|cannot|can't|am not)\b"
    r"|(?:no|none|nothing|nobody|nowhere|unknown|zero|0)(?: |\W*$))",
    re.IGNORECASE,
)
"""The beginning of an English answer that says that something is not there, or not known."""

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
    longest_answer: int
    """Number of words of the longest answers that it holds for. Whether longer ones are right was
    not measured, since the known answers have no more words."""

    def covers(self, answer: str) -> bool:
        """Return whether it holds for an answer; see `is_measured`."""
        return is_measured(answer, self.longest_answer)

    def probability(self, log_probability: float) -> float:
        """Return how likely an answer is right, given its log probability in nats."""
        score = self.slope * log_odds(log_probability) + self.offset
        return (1 + math.tanh(score / 2)) / 2  # the logistic function, which cannot overflow

    def save(self, folder: Path | None) -> Path:
        """Write the calibration to a file, and return that.

        Args:
            folder: The model's own folder. If there is none, or it is read-only, the calibration is
                kept among the user's data, by the model's fingerprint.

        Raises:
            UsageError: It cannot be written.
        """
        text = json.dumps(asdict(self), indent=2) + "\n"
        problem: OSError | None = None
        for path in _places(folder, self.fingerprint, self.quantization):
            try:
                with atomic_file(path) as file:
                    file.write_text(text, encoding="utf-8")
            except OSError as error:
                problem = error
            else:
                return path
        assert problem is not None, "there is at least one place"
        raise UsageError(
            f"Could not write {path}: {problem.strerror or problem}.", "Free some disk space."
        ) from problem


_CALIBRATION = TypeAdapter(Calibration)


def log_odds(log_probability: float) -> float:
    """Return the log odds of a log probability, of which the extremes are clipped."""
    clipped = min(max(log_probability, _LEAST_LOG_PROBABILITY), _MOST_LOG_PROBABILITY)
    return clipped - math.log(-math.expm1(clipped))


def count_words(text: str) -> int:
    """Return the number of words of an answer; characters count in Chinese and Japanese."""
    return len(_WORD.findall(text))


def is_denial(answer: str) -> bool:
    """Return whether an English answer denies that something is there, or refuses to say."""
    return _DENIAL.match(answer.strip()) is not None


def is_measured(answer: str, longest: int) -> bool:
    """Return whether a calibration says how likely an answer is right.

    It does not for answers that are longer than the known ones, nor for denials: "There are no
    dogs." is also what a model says about dogs that it does not recognise, so how often that is
    right depends on the pictures more than on the model.

    Args:
        answer: The model's answer.
        longest: Number of words of the longest answers that were measured.
    """
    return count_words(answer) <= longest and not is_denial(answer)


def read_calibration(
    folder: Path | None, shipped: Path, fingerprint: str, quantization: str | None
) -> Calibration | None:
    """Return the calibration of a model; None if it has none or has changed since.

    Args:
        folder: The model's own folder; see `Calibration.save`.
        shipped: The folder with its files, which may have come with a calibration.
        fingerprint: Identifies its weights.
        quantization: How they are quantised.
    """
    try:
        places = [*_places(folder, fingerprint, quantization)]
    except UsageError:  # without a home, the user has no data
        places = []
    for path in (*places, shipped / CALIBRATION_FILE):
        found = _read(path)
        if found and (found.fingerprint, found.quantization) == (fingerprint, quantization):
            return found
    return None


def _places(folder: Path | None, fingerprint: str, quantization: str | None) -> Iterator[Path]:
    """Yield the files that may hold the calibration of a model, the preferred one first."""
    suffix = f"-{quantization}.json" if quantization else ".json"
    if folder is not None:
        yield folder / f"calibration{suffix}"
    yield user_data() / "calibrations" / f"{fingerprint}{suffix}"


def _read(path: Path) -> Calibration | None:
    try:
        return _CALIBRATION.validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = first_line(error)
        log.warning("%s cannot be read, so confidences are not calibrated: %s", path, reason)
        return None
