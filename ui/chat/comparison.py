"""Asks several models the same question."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

from ui.chat.markdown import partial_html
from ui.chat.requests import PageRequest, PageUpdate, error_update, parse_question, text_list
from ui.chat.service import ChatService
from ui.chat.stream import answer_facts, stream_text, turn_state
from ui.texts import find_texts, model_label
from vqa_app.errors import UsageError, VqaError
from vqa_app.prompts.conversation import SHORT_STYLE, Conversation

MAX_MODELS = 4
"""Number of models that one comparison asks; each of them may have to be loaded."""
Side: TypeAlias = dict[str, Any]
"""What the page shows of one model: label, state, and the answer so far."""


def compare_models(
    service: ChatService, owner: str, request: PageRequest
) -> Iterator[PageUpdate | None]:
    """Ask several models the same question and stream their answers, one after the other.

    Where one fails, its side says why. Models of the hub that are not on this machine are
    downloaded only with `download`, which says that a person has confirmed it.

    Yields:
        `compared`: A `Side` for each model. None after a moment without news.
    """
    keys = text_list(request, "models")
    digests = service.requested_pictures(owner, request)
    pictures = [service.picture_store.get(digest) for digest in digests]
    if not 2 <= len(keys) <= MAX_MODELS:
        raise UsageError(
            f"A comparison needs two to {MAX_MODELS} models, got {len(keys)}.", "Choose others."
        )
    question = parse_question(request.get("question"), len(pictures))
    settings = service.settings(owner)
    style = SHORT_STYLE if settings.style == "short" else ""
    models = service.models(owner)
    sides: list[Side] = [
        {"label": model_label(models.find(key).label), "state": "waiting", "html": ""}
        for key in keys
    ]

    def ask(key: str, side: Side, stop: threading.Event) -> Iterator[bool]:
        """Ask one model; yield whether its side has changed."""
        download = request.get("download") is True
        for status in models.load_with_status(key, stop, download=download):
            side.update(state="loading", message=find_texts(status.message))
            yield True
        if stop.is_set():
            return
        side["state"] = "answering"
        yield True
        with models.lease(key) as engine, service.cancel_event(owner) as cancel:
            options = settings.options(engine.info.defaults)
            shown = [settings.shown(picture, engine.info) for picture in pictures]
            system = settings.system_for(engine.info)
            asked = Conversation.ask(question + style, shown, system)
            for news in stream_text(engine, asked, options, cancel):
                if news is None:
                    yield False
                    continue
                text, answer = news
                side["html"] = partial_html(text)
                if answer:
                    facts = answer_facts(answer)
                    side.update(
                        state=turn_state(answer),
                        confidence=facts.get("confidence"),
                        calibrated=facts["calibrated"],
                    )
                yield True

    with service.cancel_event(owner) as stop:
        for key, side in zip(keys, sides, strict=True):
            try:
                for update in ask(key, side, stop):
                    yield {"compared": sides} if update else None
            except VqaError as error:  # the others are asked all the same
                side.update(state="failed", message=error_update(error)["text"])
                yield {"compared": sides}
            if stop.is_set():
                break
    for side in sides:
        if side["state"] not in ("answered", "failed"):
            side["state"] = "stopped"
    yield {"compared": sides, "compared_done": True}
