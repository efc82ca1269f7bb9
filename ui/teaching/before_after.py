"""Comparison of the models before and after a training, on taught and original questions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ui.chat.service import ChatService
from ui.chat.stream import greedy_answer
from ui.storage.owned_pictures import add_owned_picture
from ui.teaching.rehearsal import held_out_questions
from vqa_app.engine.protocol import Engine
from vqa_app.errors import ImageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation

if TYPE_CHECKING:
    from finetune.evaluation.questions import Question

MAX_TAUGHT, WORLD_QUESTIONS = 24, 24
"""Numbers of questions about the taught rows, and about the original world."""
MAX_ANSWER_TOKENS = 48
_Item: TypeAlias = "tuple[Conversation, str, tuple[str, ...]]"
"""Conversation, its last question, and the reference answers."""


class ComparisonSkipped(Exception):
    """Raised when a comparison is stopped."""


@dataclass(frozen=True)
class TaughtQuestions:
    """A sample of the questions that a run trains on, evenly spaced over the data."""

    questions: tuple[Question, ...]
    of: int
    """Number of questions in the data."""


def sample_taught_questions(paths: Sequence[str]) -> TaughtQuestions:
    """Return at most `MAX_TAUGHT` questions of data files.

    Each is asked as it is trained: after the earlier turns of its dialogue, or alone.
    """
    from finetune.data.read import read_rows
    from finetune.data.samples import SHORT_ANSWER_WORDS
    from finetune.evaluation.questions import evenly_spaced, make_questions

    found: list[Question] = []
    for row in read_rows(paths).rows:
        answers = [turn.text for turn in row.turns if turn.role == "assistant"]
        short = all(len(answer.split()) <= SHORT_ANSWER_WORDS for answer in answers)
        found += make_questions([row], history=not (short and row.pictures))
    return TaughtQuestions(tuple(evenly_spaced(found, MAX_TAUGHT)), len(found))


def compare(
    service: ChatService,
    taught: TaughtQuestions,
    owner: str,
    before: str,
    after: str,
    cancel: threading.Event,
) -> dict[str, Any]:
    """Ask both models the taught questions and held-out questions about the original world.

    Args:
        service: Loads the models and stores the pictures.
        taught: The taught questions.
        owner: Who may see the pictures.
        before: Key of the model before the training.
        after: Key of the trained model.
        cancel: Stops the comparison when set.

    Returns:
        `{"taught": part, "world": part}`. A part has the accuracies `before` and `after` (VQA
        accuracy, 0 to 1), `rows` of question, right answer, both answers and digests, and `of`, the
        number of questions from which the rows were sampled.

    Raises:
        ComparisonSkipped: `cancel` was set.
        ModelError: a model cannot be loaded.
    """
    with ExitStack() as leases:
        engines = []
        for key in (before, after):
            for _ in service.pool.load_with_status(key, cancel=cancel):
                pass
            if cancel.is_set():
                raise ComparisonSkipped
            engines.append(leases.enter_context(service.pool.lease(key)))
        return _compare(service, taught, owner, engines, cancel)


def _compare(
    service: ChatService,
    taught: TaughtQuestions,
    owner: str,
    engines: list[Engine],
    cancel: threading.Event,
) -> dict[str, Any]:
    taught_items: list[_Item] = []
    for question in taught.questions:
        try:
            pictures = {source.key: source.open() for source in question.row.pictures}
        except ImageError:  # a bad row, which was also left out of the training
            continue
        for picture in pictures.values():
            _register_picture(service, owner, picture)
        taught_items.append((question.conversation(pictures), question.text, question.answers))
    world: list[_Item] = []
    for held_out in held_out_questions(WORLD_QUESTIONS):
        example = service.add_example(owner, held_out.image, held_out.question)
        picture = service.picture_store.get(example["picture"]["digest"])
        conversation = Conversation.ask(held_out.question, [picture])
        world.append((conversation, held_out.question, (held_out.answer,)))
    return {
        "taught": _evaluate(engines, taught_items, cancel) | {"of": taught.of},
        "world": _evaluate(engines, world, cancel) | {"of": len(world)},
    }


def _register_picture(service: ChatService, owner: str, picture: Picture) -> None:
    """Give the owner access to a picture of the data."""
    if service.store.picture(owner, picture.digest) is None:
        add_owned_picture(
            service.store, service.picture_store, owner, picture, picture.name, changes=()
        )
    else:
        service.picture_store.write(picture)


def _evaluate(engines: list[Engine], items: list[_Item], cancel: threading.Event) -> dict[str, Any]:
    from finetune.evaluation.metrics import vqa_accuracy

    rows: list[dict[str, Any]] = []
    for conversation, question, answers in items:
        answered = [
            greedy_answer(engine, conversation, MAX_ANSWER_TOKENS, cancel) for engine in engines
        ]
        if cancel.is_set():
            raise ComparisonSkipped
        rows.append(
            {
                "question": question.strip().removesuffix(SHORT_STYLE.strip()).strip(),
                "right": answers[0],
                "pictures": [picture.digest for picture in conversation.pictures],
                "before": answered[0],
                "after": answered[1],
                "scores": [vqa_accuracy(answer, answers) for answer in answered],
            }
        )
    return {
        "rows": rows,
        "before": _mean([row["scores"][0] for row in rows]),
        "after": _mean([row["scores"][1] for row in rows]),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
