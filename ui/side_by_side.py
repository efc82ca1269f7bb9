"""Two models, one question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ui.handlers import Desk, Request, Update, question_of
from ui.markdown import to_html
from ui.render import SHORT_STYLE
from ui.stream import BEAT, growing
from vqa_app.conversation import Conversation
from vqa_app.errors import UsageError


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
    sides: list[dict[str, Any]] = [
        {"label": desk.hub.find(key).label, "state": "waiting", "html": ""} for key in keys
    ]
    for key, side in zip(keys, sides, strict=True):
        desk.hub.start(key, owner)
        while (engine := desk.hub.wait(key, 0)) is None:
            side.update(state="loading", message=desk.hub.standing(key).message)
            yield {"compared": sides}
            desk.hub.wait(key, BEAT)
        side["state"] = "answering"
        yield {"compared": sides}
        options = settings.options(engine.info.defaults)
        with desk.hub.lease(engine), desk.cancellable() as cancel:
            for grown in growing(engine, asked, options, cancel):
                if grown is None:
                    yield None
                    continue
                text, answer = grown
                side["html"] = to_html(text)
                if answer:
                    side["confidence"] = round(answer.confidence, 4)
                yield {"compared": sides}
        side["state"] = "answered"
    yield {"compared": sides, "compared_done": True}
