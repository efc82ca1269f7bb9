"""What one gets without looking at the pictures: the floor that an accuracy must be compared with.

Two baselines need no model: always giving the most frequent answer, and giving the most frequent
answer to the type of question. They come from the rows that a model was trained on, if those are
known, and otherwise from the questions themselves, which flatters them. The third is the model
itself, shown grey pictures.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from finetune.evaluation.metrics import by_type, normalize_answer, vqa_accuracy
from finetune.evaluation.questions import Question
from finetune.progress import pluralize
from finetune.runs.layout import FREQUENT_ANSWERS_FILE

AnswerSource: TypeAlias = Literal["the training rows", "these questions themselves"]

MIN_TYPE_QUESTIONS = 3
"""Questions of a type from which its most frequent answer is kept."""
MAX_TYPES = 1000
"""Types whose most frequent answers are kept, the largest ones."""
MAX_SHOWN = 40
"""Characters of an answer in a message."""


@dataclass(frozen=True)
class FrequentAnswers:
    """The most frequent answers of some rows."""

    overall: str
    types: dict[str, str]
    """By type of question."""
    source: AnswerSource

    @classmethod
    def of(cls, questions: Iterable[Question], source: AnswerSource) -> FrequentAnswers | None:
        """Count the answers of questions; None if there are none.

        Of several answers to a question, the most frequent one counts. Answers that are equal after
        normalising are one answer.
        """
        spellings: dict[str, str] = {}
        counts: Counter[str] = Counter()
        counts_by_type: dict[str, Counter[str]] = defaultdict(Counter)
        for question in questions:
            answers = [answer.strip() for answer in question.answers if answer.strip()]
            if not answers:
                continue
            plain = Counter(map(normalize_answer, answers)).most_common(1)[0][0]
            spellings.setdefault(plain, next(a for a in answers if normalize_answer(a) == plain))
            counts[plain] += 1
            counts_by_type[question.type][plain] += 1
        if not counts:
            return None
        largest = sorted(counts_by_type.items(), key=lambda item: (-item[1].total(), item[0]))
        return cls(
            spellings[counts.most_common(1)[0][0]],
            {
                kind: spellings[found.most_common(1)[0][0]]
                for kind, found in largest[:MAX_TYPES]
                if found.total() >= MIN_TYPE_QUESTIONS
            },
            source,
        )

    def answer_to(self, kind: str) -> str:
        """Return the most frequent answer to a type of question."""
        return self.types.get(kind, self.overall)

    def save(self, run: Path) -> None:
        """Write them into a run's directory."""
        text = json.dumps(asdict(self), indent=1)
        (run / FREQUENT_ANSWERS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, run: Path) -> FrequentAnswers | None:
        """Read what `save` wrote; None if the directory has no such file, or it is damaged."""
        try:
            return _FREQUENT.validate_json((run / FREQUENT_ANSWERS_FILE).read_bytes())
        except (OSError, ValidationError):
            return None


_FREQUENT = TypeAdapter(FrequentAnswers)


@dataclass(frozen=True)
class Baselines:
    """VQA accuracies, 0 to 1, of answers that need no look at the pictures."""

    answer: str
    """The most frequent answer of all."""
    always: float
    """Accuracy of always giving that answer."""
    per_type: float
    """Accuracy of giving the most frequent answer to the type of question."""
    types: dict[str, float]
    """That accuracy by type of question, with small types combined as in the results."""
    source: AnswerSource
    """Where the answers were counted."""

    @classmethod
    def of(cls, questions: Sequence[Question], frequent: FrequentAnswers) -> Baselines:
        """Score frequent answers on questions."""
        always = [vqa_accuracy(frequent.overall, q.answers) for q in questions]
        typical = [vqa_accuracy(frequent.answer_to(q.type), q.answers) for q in questions]
        kinds = by_type([q.type for q in questions], typical)
        return cls(
            frequent.overall,
            sum(always) / len(questions),
            sum(typical) / len(questions),
            {kind: accuracy for kind, (_, accuracy) in kinds.items()},
            frequent.source,
        )

    def __str__(self) -> str:
        return (
            f"Without looking at the pictures: {percent(self.always)} for always answering"
            f" {self.shown_answer}, {percent(self.per_type)} for the most frequent answer to each"
            f" type of question (counted in {self.source})."
        )

    @property
    def shown_answer(self) -> str:
        """The most frequent answer in quotes, shortened."""
        text = " ".join(self.answer.split())
        return f'"{text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."}"'


@dataclass(frozen=True)
class BlindResult:
    """The same model on the same questions with grey pictures."""

    questions: int
    accuracy: float
    """VQA accuracy with grey pictures, 0 to 1."""
    with_pictures: float
    """VQA accuracy on the same questions with their pictures, 0 to 1."""
    seconds: float
    """What measuring it cost."""

    def __str__(self) -> str:
        return (
            f"The same model with grey pictures: {percent(self.accuracy)} on"
            f" {pluralize(self.questions, 'question')}; with the pictures"
            f" {percent(self.with_pictures)} on these. Measured in {self.seconds:.1f} s."
        )


def percent(share: float) -> str:
    """Return a share from 0 to 1 as "63.0 %"."""
    return f"{100 * share:.1f} %"


def to_json(baselines: Baselines | None, blind: BlindResult | None) -> dict[str, Any]:
    """Return both as JSON values, null for what was not measured."""
    return {
        "baselines": baselines and asdict(baselines),
        "blind": blind and asdict(blind),
    }
