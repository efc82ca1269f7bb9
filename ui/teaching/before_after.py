"""The same questions to two models: what was taught, and what had been known before."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ui.chat.service import ChatService
from ui.chat.stream import greedy_answer
from ui.teaching.rehearsal import held_out
from vqa_app.engine.protocol import Engine
from vqa_app.errors import ImageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation

if TYPE_CHECKING:
    from finetune.evaluation.questions import Question

TAUGHT, WORLD = 24, 24
LONGEST = 48
_Asked: TypeAlias = "tuple[Conversation, str, tuple[str, ...]]"
"""What is asked, its question, and the answers that count as right."""


class Skipped(Exception):
    """Raised inside a comparison that somebody stopped."""


@dataclass(frozen=True)
class Taught:
    """Questions of the data that a run trains on, taken evenly from all of it."""

    questions: tuple[Question, ...]
    of: int
    """How many there are in all."""


def taught_in(paths: Sequence[str]) -> Taught:
    """Of data files, at most `TAUGHT` questions; each is asked as it is trained, behind the earlier
    turns of a dialogue or alone.
    """
    from finetune.data.read import read_rows
    from finetune.data.samples import SHORT_ANSWER_WORDS
    from finetune.evaluation.questions import evenly_spaced, make_questions

    found: list[Question] = []
    for row in read_rows(paths).rows:
        answers = [turn.text for turn in row.turns if turn.role == "assistant"]
        short = all(len(answer.split()) <= SHORT_ANSWER_WORDS for answer in answers)
        found += make_questions([row], history=not (short and row.pictures))
    return Taught(tuple(evenly_spaced(found, TAUGHT)), len(found))


def compare(
    service: ChatService,
    taught: Taught,
    owner: str,
    before: str,
    after: str,
    cancel: threading.Event,
) -> dict[str, Any]:
    """Asks both models what was taught, and about a held-out sample of the built-in world.

    Args:
        before, after: keys of the hub.

    Returns:
        `{"taught": part, "world": part}`; a part has the accuracies (VQA accuracy, 0 to 1), rows of
        question, right answer, both answers and digests, and `of` how many questions they are.

    Raises:
        Skipped: `cancel` was set.
        ModelError: one of them cannot be loaded.
    """
    with ExitStack() as leases:
        engines = []
        for key in (before, after):
            for _ in service.pool.load_with_status(key, cancel=cancel):
                pass
            if cancel.is_set():
                raise Skipped
            engines.append(leases.enter_context(service.pool.lease(key)))
        return _compared(service, taught, owner, engines, cancel)


def _compared(
    service: ChatService, taught: Taught, owner: str, engines: list[Engine], cancel: threading.Event
) -> dict[str, Any]:
    asked: list[_Asked] = []
    for question in taught.questions:
        try:
            pictures = {source.key: source.open() for source in question.row.pictures}
        except ImageError:  # a bad row, which was left out of the training, too
            continue
        for picture in pictures.values():
            _bring(service, owner, picture)
        asked.append((question.conversation(pictures), question.text, question.answers))
    world: list[_Asked] = []
    for known in held_out(WORLD):
        example = service.add_example(owner, known.image, known.question)
        picture = service.picture_store.get(example["picture"]["digest"])
        conversation = Conversation.ask(known.question, [picture])
        world.append((conversation, known.question, (known.answer,)))
    return {
        "taught": _part(engines, asked, cancel) | {"of": taught.of},
        "world": _part(engines, world, cancel) | {"of": len(world)},
    }


def _bring(service: ChatService, owner: str, picture: Picture) -> None:
    """Lets the owner see a picture of the data."""
    service.picture_store.add(picture.image, picture.name)
    if service.store.picture(owner, picture.digest) is None:
        service.store.remember_picture(owner, picture.digest, picture.name, {"changes": []})


def _part(
    engines: list[Engine], questions: list[_Asked], cancel: threading.Event
) -> dict[str, Any]:
    from finetune.evaluation.metrics import vqa_accuracy

    rows: list[dict[str, Any]] = []
    for asked, question, answers in questions:
        said = [greedy_answer(engine, asked, LONGEST, cancel) for engine in engines]
        if cancel.is_set():
            raise Skipped
        rows.append(
            {
                "question": question.strip().removesuffix(SHORT_STYLE.strip()).strip(),
                "right": answers[0],
                "pictures": [picture.digest for picture in asked.pictures],
                "before": said[0],
                "after": said[1],
                "scores": [vqa_accuracy(answer, answers) for answer in said],
            }
        )
    return {
        "rows": rows,
        "before": _mean([row["scores"][0] for row in rows]),
        "after": _mean([row["scores"][1] for row in rows]),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
