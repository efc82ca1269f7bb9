"""Two models, one question."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeAlias

from ui.chat.desk import Desk
from ui.chat.markdown import growing_html
from ui.chat.requests import Request, Update, question_of
from ui.chat.stream import BEAT, facts_of, growing, state_of
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation

Side: TypeAlias = dict[str, Any]
"""What the page shows of one model: its label, state and the answer so far."""


def side_by_side(desk: Desk, owner: str, request: Request) -> Iterator[Update | None]:
    """Asks two models the same and streams both answers, one after the other.

    Yields:
        `compared`: for each model its label, state and the answer so far.
    """
    keys = [str(key) for key in request.get("models") or []]
    pictures = [desk.shelf.get(digest) for digest in desk.pictures(owner, request)]
    if len(keys) != 2:
        raise UsageError("Two models are needed.", "Pick two.")
    question = question_of(request.get("question"), len(pictures))
    settings = desk.settings(owner)
    style = SHORT_STYLE if settings.style == "short" else ""
    asked = Conversation.ask(question + style, pictures).with_system(settings.system)
    sides: list[Side] = [
        {"label": desk.hub.find(key).label, "state": "waiting", "html": ""} for key in keys
    ]
    with desk.cancellable(owner) as stop:
        for key, side in zip(keys, sides, strict=True):
            if not (yield from _loaded(desk, owner, key, side, sides, stop)):
                break
            side["state"] = "answering"
            yield {"compared": sides}
            with desk.hub.lease(key) as engine, desk.cancellable(owner) as cancel:
                options = settings.options(engine.info.defaults)
                for grown in growing(engine, asked, options, cancel):
                    if grown is None:
                        yield None
                        continue
                    text, answer = grown
                    side["html"] = growing_html(text)
                    if answer:
                        sure = facts_of(answer).get("confidence")
                        side.update(state=state_of(answer), confidence=sure)
                    yield {"compared": sides}
    for side in sides:
        if side["state"] != "answered":
            side["state"] = "stopped"
    yield {"compared": sides, "compared_done": True}


def _loaded(
    desk: Desk, owner: str, key: str, side: Side, sides: list[Side], stop: threading.Event
) -> Generator[Update | None, None, bool]:
    """True once the model of a side is loaded; False where the comparison is stopped before."""
    if stop.is_set():
        return False
    desk.hub.start(key, owner)
    while desk.hub.wait(key, 0) is None:
        if stop.is_set():
            return False
        side.update(state="loading", message=desk.hub.standing(key).message)
        yield {"compared": sides}
        desk.hub.wait(key, BEAT)
    return True
