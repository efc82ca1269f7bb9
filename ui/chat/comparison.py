"""Two models, one question."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeAlias

from ui.chat.markdown import growing_html
from ui.chat.requests import PageRequest, PageUpdate, parse_question
from ui.chat.service import ChatService
from ui.chat.stream import POLL_SECONDS, answer_facts, stream_text, turn_state
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation

Side: TypeAlias = dict[str, Any]
"""What the page shows of one model: its label, state and the answer so far."""


def compare_models(
    service: ChatService, owner: str, request: PageRequest
) -> Iterator[PageUpdate | None]:
    """Asks two models the same and streams both answers, one after the other.

    Yields:
        `compared`: for each model its label, state and the answer so far.
    """
    keys = [str(key) for key in request.get("models") or []]
    pictures = [service.picture_store.get(digest) for digest in service.pictures(owner, request)]
    if len(keys) != 2:
        raise UsageError("Two models are needed.", "Pick two.")
    question = parse_question(request.get("question"), len(pictures))
    settings = service.settings(owner)
    style = SHORT_STYLE if settings.style == "short" else ""
    asked = Conversation.ask(question + style, pictures).with_system(settings.system)
    sides: list[Side] = [
        {"label": service.pool.find(key).label, "state": "waiting", "html": ""} for key in keys
    ]
    with service.cancel_event(owner) as stop:
        for key, side in zip(keys, sides, strict=True):
            if not (yield from _loaded(service, owner, key, side, sides, stop)):
                break
            side["state"] = "answering"
            yield {"compared": sides}
            with service.pool.lease(key) as engine, service.cancel_event(owner) as cancel:
                options = settings.options(engine.info.defaults)
                for grown in stream_text(engine, asked, options, cancel):
                    if grown is None:
                        yield None
                        continue
                    text, answer = grown
                    side["html"] = growing_html(text)
                    if answer:
                        sure = answer_facts(answer).get("confidence")
                        side.update(state=turn_state(answer), confidence=sure)
                    yield {"compared": sides}
    for side in sides:
        if side["state"] != "answered":
            side["state"] = "stopped"
    yield {"compared": sides, "compared_done": True}


def _loaded(
    service: ChatService, owner: str, key: str, side: Side, sides: list[Side], stop: threading.Event
) -> Generator[PageUpdate | None, None, bool]:
    """True once the model of a side is loaded; False where the comparison is stopped before."""
    if stop.is_set():
        return False
    service.pool.start_loading(key, owner)
    while service.pool.wait(key, 0) is None:
        if stop.is_set():
            return False
        side.update(state="loading", message=service.pool.status(key).message)
        yield {"compared": sides}
        service.pool.wait(key, POLL_SECONDS)
    return True
