"""Comparison of the models before and after a training.

Both are asked taught questions, questions next to them, and questions about the original world.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ui.chat.examples import Knowledge, knowledge
from ui.chat.service import ChatService
from ui.chat.stream import greedy_answer
from ui.storage.owned_pictures import add_owned_picture
from ui.teaching.neighbours import find_neighbours
from ui.teaching.rehearsal import held_out_questions
from vqa_app.engine.protocol import Engine
from vqa_app.errors import ImageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation, Message

if TYPE_CHECKING:
    from finetune.evaluation.questions import Question

MAX_TAUGHT, WORLD_QUESTIONS = 24, 24
"""Numbers of questions about the taught rows, and about the original world."""
MAX_NEIGHBOURS = 6
"""Taught questions about different pictures next to which two others are asked."""
MAX_ANSWER_TOKENS = 48
_Item: TypeAlias = "tuple[Conversation, str, tuple[str, ...]]"
"""Conversation, its last question, and the reference answers; none if nobody knows them."""


class ComparisonSkipped(Exception):
    """Raised when a comparison is stopped."""


@dataclass(frozen=True)
class TaughtQuestions:
    """A sample of the questions that a run trains on, evenly spaced over the data."""

    questions: tuple[Question, ...]
    texts: frozenset[str]
    """The texts of all questions in the data."""
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
    texts = frozenset(_without_style(question.text) for question in found)
    return TaughtQuestions(tuple(evenly_spaced(found, MAX_TAUGHT)), texts, len(found))


def compare(
    service: ChatService,
    taught: TaughtQuestions,
    owner: str,
    before: str,
    after: str,
    cancel: threading.Event,
) -> dict[str, Any]:
    """Ask both models taught questions, questions next to them, and held-out original ones.

    Args:
        service: Loads the models and stores the pictures.
        taught: The taught questions.
        owner: Who may see the pictures.
        before: Key of the model before the training.
        after: Key of the trained model.
        cancel: Stops the comparison when set.

    Returns:
        `{"taught": part, "neighbours": part, "world": part}`. A part has `rows` of question, both
        answers and digests. Where right answers are known, a row has one of them and the score of
        each answer, and the part has the accuracies `before` and `after` (VQA accuracy, 0 to 1),
        and `of`, the number of questions from which the rows were sampled. A row of `neighbours`
        may have `follows`, the taught question and answer after which its question is asked.

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
        knows = knowledge(service.pool.find(before))
        return _compare(service, taught, owner, engines, knows, cancel)


def _compare(
    service: ChatService,
    taught: TaughtQuestions,
    owner: str,
    engines: list[Engine],
    knows: Knowledge,
    cancel: threading.Event,
) -> dict[str, Any]:
    taught_items: list[_Item] = []
    neighbours: dict[tuple[str, ...], list[tuple[_Item, dict[str, Any]]]] = {}
    for question in taught.questions:
        try:
            pictures = {source.key: source.open() for source in question.row.pictures}
        except ImageError:  # a bad row, which was also left out of the training
            continue
        for picture in pictures.values():
            _register_picture(service, owner, picture)
        conversation = question.conversation(pictures)
        taught_items.append((conversation, question.text, question.answers))
        shown = tuple(picture.digest for picture in conversation.pictures)
        if shown and shown not in neighbours and len(neighbours) < MAX_NEIGHBOURS:
            neighbours[shown] = _neighbours(service, taught, owner, question, pictures, knows)
    world: list[_Item] = []
    for held_out in held_out_questions(WORLD_QUESTIONS):
        example = service.add_example(owner, held_out.image, held_out.question)
        picture = service.picture_store.get(example["picture"]["digest"])
        conversation = Conversation.ask(held_out.question, [picture])
        world.append((conversation, held_out.question, (held_out.answer,)))
    taught_part = _evaluate(engines, taught_items, cancel) | {"of": taught.of}
    beside = [found for several in neighbours.values() for found in several]
    answered = _ask(engines, [item for item, _ in beside], cancel)
    rows = [row | more for row, (_, more) in zip(answered, beside, strict=True)]
    return {
        "taught": taught_part,
        "neighbours": {"rows": rows},
        "world": _evaluate(engines, world, cancel) | {"of": len(world)},
    }


def _neighbours(
    service: ChatService,
    taught: TaughtQuestions,
    owner: str,
    question: Question,
    pictures: dict[str, Picture],
    knows: Knowledge,
) -> list[tuple[_Item, dict[str, Any]]]:
    """Return questions next to a taught one, and what their rows have besides the answers."""
    conversation, text = question.conversation(pictures), _without_style(question.text)
    digests = tuple(picture.digest for picture in conversation.pictures)
    found = find_neighbours(
        text,
        question.answers[0],
        digests,
        turns=service.store.turns_about(owner, digests[0]),
        knows=knows,
        taught=taught.texts,
    )
    style = SHORT_STYLE if text != question.text else ""
    items: list[tuple[_Item, dict[str, Any]]] = []
    if found.other:
        alone = Conversation.ask(found.other + style, conversation.pictures)
        items.append(((alone, found.other, ()), {}))
    if found.followup:
        followed = question.answered_conversation(pictures).then(
            Message.user(found.followup + style)
        )
        follows = {"question": text, "answer": question.answers[0]}
        items.append(((followed, found.followup, ()), {"follows": follows}))
    return items


def _register_picture(service: ChatService, owner: str, picture: Picture) -> None:
    """Give the owner access to a picture of the data."""
    if service.store.picture(owner, picture.digest) is None:
        add_owned_picture(
            service.store, service.picture_store, owner, picture, picture.name, changes=()
        )
    else:
        service.picture_store.write(picture)


def _without_style(question: str) -> str:
    return question.strip().removesuffix(SHORT_STYLE.strip()).strip()


def _ask(
    engines: list[Engine], items: list[_Item], cancel: threading.Event
) -> list[dict[str, Any]]:
    """Return a row for each item, with the answers of both models."""
    rows: list[dict[str, Any]] = []
    for conversation, question, _ in items:
        answered = [
            greedy_answer(engine, conversation, MAX_ANSWER_TOKENS, cancel) for engine in engines
        ]
        if cancel.is_set():
            raise ComparisonSkipped
        rows.append(
            {
                "question": _without_style(question),
                "pictures": [picture.digest for picture in conversation.pictures],
                "before": answered[0],
                "after": answered[1],
            }
        )
    return rows


def _evaluate(engines: list[Engine], items: list[_Item], cancel: threading.Event) -> dict[str, Any]:
    from finetune.evaluation.metrics import vqa_accuracy

    rows = _ask(engines, items, cancel)
    for row, (_, _, answers) in zip(rows, items, strict=True):
        row["right"] = answers[0]
        row["scores"] = [vqa_accuracy(row[when], answers) for when in ("before", "after")]
    return {
        "rows": rows,
        "before": _mean([row["scores"][0] for row in rows]),
        "after": _mean([row["scores"][1] for row in rows]),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
