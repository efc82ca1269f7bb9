"""Predictions of an evaluation, and the file that stores them while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vqa_app.errors import UsageError
from vqa_app.files import reason_in_words


@dataclass(frozen=True)
class Prediction:
    """One answered question, a line of the predictions file."""

    id: str
    source: str
    """File and row."""
    pictures: tuple[str, ...]
    """The pictures' names."""
    type: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    vqa_accuracy: float
    loss: float | None = None
    """Loss of the row's answer, in nats per token."""
    answer_tokens: int | None = None
    image_gain: float | None = None
    """Loss with blank pictures minus loss with the pictures, in nats per token."""
    log_probability: float | None = None
    """Of the prediction and its end token, in nats; measured for calibration only, and not for
    empty predictions."""
    token_confidence: float | None = None
    """Geometric mean of those tokens' probabilities."""
    prompt: str = ""
    """The exact prompt, with one placeholder per picture."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Prediction:
        """Make a prediction from a parsed line of the file.

        Raises:
            ValueError: A value is missing or has the wrong type.
        """
        return _PREDICTION.validate_python(data)


_PREDICTION = TypeAdapter(Prediction)


class PredictionsFile:
    """A JSONL file of predictions, and a summary file with the evaluation's identity and scores."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.summary = path.with_suffix(".summary.json")
        self.identity = identity

    def check(self) -> None:
        """Check early, before a model is loaded, that `resume` will not fail.

        `identity` may still be incomplete.

        Raises:
            UsageError: The file has predictions of another evaluation, or cannot be written.
        """
        with self._translate_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch()
                self.path.unlink()
                return
            self.path.open("ab").close()
        stored = self._stored_identity()
        if stored is None or any(stored.get(k) != value for k, value in self.identity.items()):
            raise self._other_evaluation()

    def resume(self) -> list[Prediction]:
        """Return the predictions of an interrupted evaluation; create the file if there is none.

        Raises:
            UsageError: The file has predictions of another evaluation, is damaged, or cannot be
                written.
        """
        if not self.path.exists():
            with self._translate_errors():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch()
            self.finish({})
            return []
        if self._stored_identity() != self.identity:
            raise self._other_evaluation()
        predictions = []
        complete_bytes = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):  # killed while writing
                    break
                try:
                    predictions.append(Prediction.from_json(json.loads(line)))
                except ValueError as error:
                    raise UsageError(
                        f"Line {number:,} of {self.path} is damaged.", "Delete the file."
                    ) from error
                complete_bytes += len(line)
        os.truncate(self.path, complete_bytes)
        return predictions

    def _stored_identity(self) -> dict[str, Any] | None:
        """Return the identity of the stored evaluation; None if the summary file lacks it."""
        try:
            return dict(json.loads(self.summary.read_text(encoding="utf-8"))["evaluation"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _other_evaluation(self) -> UsageError:
        return UsageError(
            f"{self.path} has predictions of another model or other data.",
            "Give another --out, or delete the file.",
        )

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"Cannot write to {self.path}: {reason_in_words(error)}.",
                "Free disk space, or give another --out.",
            ) from error

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Append predictions to the file.

        Raises:
            UsageError: It cannot be written.
        """
        with self._translate_errors(), self.path.open("a", encoding="utf-8") as file:
            for prediction in predictions:
                file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Write the scores to the summary file.

        Raises:
            UsageError: It cannot be written.
        """
        content = json.dumps({"evaluation": self.identity, "result": result}, indent=1)
        with self._translate_errors():
            self.summary.write_text(content + "\n", encoding="utf-8")
