"""The same questions to two models: what was taught, and what had been known before."""

from __future__ import annotations

import threading
from typing import Any

from ui.handlers import Desk
from ui.stream import BEAT, ask_once
from ui.teach import Teaching
from ui.world_data import held_out
from vqa_app.conversation import SHORT_STYLE, Conversation
from vqa_app.engine import Engine
from vqa_app.images import Picture

TAUGHT, WORLD = 24, 24
LONGEST = 48


class Skipped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """Raised inside a comparison that somebody stopped."""


def compare(
    desk: Desk, teaching: Teaching, owner: str, before: str, after: str, cancel: threading.Event
) -> dict[str, Any]:
    """Asks both models about taught rows and about a held-out sample of the built-in world.

    Args:
        before, after: keys of the hub.

    Returns:
        `{"taught": part, "world": part}`; a part has the accuracies (VQA accuracy, 0 to 1) and rows
        of question, right answer, both answers and digests.

    Raises:
        Skipped: `cancel` was set.
        ModelError: one of them cannot be loaded.
    """
    engines = [_engine(desk, key, cancel) for key in (before, after)]
    with desk.hub.lease(engines[0]), desk.hub.lease(engines[1]):
        return _compared(desk, teaching, owner, engines, cancel)


def _compared(
    desk: Desk, teaching: Teaching, owner: str, engines: list[Engine], cancel: threading.Event
) -> dict[str, Any]:
    taught = [
        (
            [teaching.picture(owner, d) for d in row.pictures],
            row.question + (SHORT_STYLE if row.short else ""),
            row.answer,
        )
        for row in teaching.rows(owner)[:TAUGHT]
    ]
    world = []
    for known in held_out(WORLD):
        example = desk.example(owner, known.image, known.question)
        picture = desk.shelf.get(example["picture"]["digest"])
        world.append(([picture], known.question, known.answer))
    return {
        "taught": _part(engines, taught, cancel),
        "world": _part(engines, world, cancel),
    }


def _engine(desk: Desk, key: str, cancel: threading.Event) -> Engine:
    desk.hub.start(key)
    while (engine := desk.hub.wait(key, BEAT)) is None:
        if cancel.is_set():
            raise Skipped
    return engine


def _part(
    engines: list[Engine],
    questions: list[tuple[list[Picture], str, str]],
    cancel: threading.Event,
) -> dict[str, Any]:
    from finetune.metrics import vqa_accuracy

    rows: list[dict[str, Any]] = []
    for pictures, question, right in questions:
        asked = Conversation.ask(question, pictures)
        said = [ask_once(engine, asked, LONGEST, cancel) for engine in engines]
        if cancel.is_set():
            raise Skipped
        rows.append(
            {
                "question": question.removesuffix(SHORT_STYLE),
                "right": right,
                "pictures": [picture.digest for picture in pictures],
                "before": said[0],
                "after": said[1],
                "scores": [vqa_accuracy(answer, [right]) for answer in said],
            }
        )
    return {
        "rows": rows,
        "before": _mean([row["scores"][0] for row in rows]),
        "after": _mean([row["scores"][1] for row in rows]),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
