"""Answers of an evaluation, and the file that keeps them while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_app.errors import UsageError


@dataclass(frozen=True)
class Prediction:
    """One answered question, as it stands in the predictions file."""

    id: str
    source: str
    """File and row."""
    pictures: tuple[str, ...]
    """Their names."""
    type: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    vqa_accuracy: float
    loss: float | None = None
    """Of the row's own answer, nats per token."""
    answer_tokens: int | None = None
    image_gain: float | None = None
    """How much likelier that answer is with the pictures than with blank ones, nats per token."""
    prompt: str = ""
    """Exactly what the model read, a placeholder for each picture."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Prediction:
        lists = {key: tuple(data[key]) for key in ("pictures", "answers")}
        return cls(**{**data, **lists})


class PredictionsFile:
    """Predictions on the disk, one a line, and beside them what they are predictions of."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.summary = path.with_suffix(".summary.json")
        self.identity = identity

    def check(self) -> None:
        """Refuses early what `resume` would refuse, as far as `identity` is known by now.

        Raises:
            UsageError: the file holds another evaluation's, or cannot be written.
        """
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch()
                self.path.unlink()
                return
            self.path.open("ab").close()
        before = self._before()
        if before is None or any(before.get(k) != value for k, value in self.identity.items()):
            raise self._anothers()

    def resume(self) -> list[Prediction]:
        """What an interrupted evaluation left; starts a new file where there was none.

        Raises:
            UsageError: the file holds another evaluation's, is damaged, or cannot be written.
        """
        if not self.path.exists():
            with self._writing():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch()
            self.finish({})
            return []
        if self._before() != self.identity:
            raise self._anothers()
        predictions = []
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):  # killed while writing
                    break
                try:
                    predictions.append(Prediction.from_json(json.loads(line)))
                except (ValueError, TypeError, KeyError) as error:
                    raise UsageError(
                        f"Line {number:,} of {self.path} is damaged.", "Delete the file."
                    ) from error
                whole += len(line)
        os.truncate(self.path, whole)
        return predictions

    def _before(self) -> dict[str, Any] | None:
        """What the file holds predictions of; None where nothing says."""
        try:
            return dict(json.loads(self.summary.read_text(encoding="utf-8"))["evaluation"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _anothers(self) -> UsageError:
        return UsageError(
            f"{self.path} holds predictions of another model or other data.",
            "Give another --out, or delete the file.",
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"Cannot write to {self.path}: {error.strerror or error}.",
                "Make room, or give another --out.",
            ) from error

    def append(self, predictions: Sequence[Prediction]) -> None:
        with self._writing(), self.path.open("a", encoding="utf-8") as file:
            for prediction in predictions:
                file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Puts the scores beside the predictions."""
        content = json.dumps({"evaluation": self.identity, "result": result}, indent=1)
        with self._writing():
            self.summary.write_text(content + "\n", encoding="utf-8")
