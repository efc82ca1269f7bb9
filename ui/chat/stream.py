"""Polling an engine's events, and what is stored of an answer."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from typing import Any

from ui.storage.database import State
from vqa_app.engine.protocol import Answer, Delta, Engine, Event, GenerationOptions
from vqa_app.prompts.conversation import Conversation

POLL_SECONDS = 0.2
"""Longest time without an update, after which the server can check whether the page has gone."""


def turn_state(answer: Answer) -> State:
    """Return the state of a turn with this answer."""
    return "stopped" if answer.finish_reason == "cancelled" else "answered"


def answer_facts(answer: Answer) -> dict[str, Any]:
    """Return the figures of an answer that are stored with its turn: those that are known."""
    confidence = answer.confidence
    facts: dict[str, Any] = {
        "finish": answer.finish_reason,
        "confidence": confidence if confidence is None else round(confidence, 4),
        "calibrated": answer.calibrated,
        "prompt_tokens": answer.prompt_tokens,
        "image_tokens": answer.image_tokens,
        "cached_tokens": answer.cached_tokens,
        "new_tokens": answer.new_tokens,
        "seconds": round(answer.seconds_to_first_token, 3),
        "speed": round(answer.tokens_per_second, 1),
        "dropped": answer.dropped_messages,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    return {k: v for k, v in known.items() if not isinstance(v, float) or math.isfinite(v)}


def poll_events(
    engine: Engine,
    conversation: Conversation,
    options: GenerationOptions,
    cancel: threading.Event,
) -> Iterator[list[Event]]:
    """Yield an engine's new events, or an empty list after `POLL_SECONDS` without any.

    The engine runs in a thread of its own, so that the caller can stop between two tokens: when the
    page has gone, or the server shuts down. Closing the iterator sets `cancel`.
    """
    events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            for event in engine.stream(conversation, options, cancel):
                events.put(event)
            events.put(None)
        except BaseException as error:
            events.put(error)

    threading.Thread(target=run, name="answer", daemon=True).start()
    try:
        while True:
            batch: list[Event] = []
            try:
                item = events.get(timeout=POLL_SECONDS)
                while not (item is None or isinstance(item, BaseException)):
                    batch.append(item)
                    item = events.get_nowait()
            except queue.Empty:
                yield batch
                continue
            if batch:
                yield batch
            if item is None:
                return
            raise item
    finally:
        cancel.set()


def stream_text(
    engine: Engine,
    conversation: Conversation,
    options: GenerationOptions,
    cancel: threading.Event,
) -> Iterator[tuple[str, Answer | None] | None]:
    """Yield the text so far, at the end with the complete answer.

    Yields None after `POLL_SECONDS` without news.
    """
    text, answer = "", None
    for events in poll_events(engine, conversation, options, cancel):
        for event in events:
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Answer):
                text, answer = event.text, event
        yield (text, answer) if events else None


def greedy_answer(
    engine: Engine, conversation: Conversation, max_tokens: int, cancel: threading.Event
) -> str:
    """Return the complete greedy answer."""
    options = GenerationOptions(max_new_tokens=max_tokens, temperature=0.0)
    for event in engine.stream(conversation, options, cancel):
        if isinstance(event, Answer):
            return event.text.strip()
    return ""
