"""An engine's events at a steady beat, and what is kept of them."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from typing import Any

from vqa_app.engine.protocol import Answer, Delta, Engine, Event, GenerationOptions
from vqa_app.prompts.conversation import Conversation

POLL_SECONDS = 0.2
"""Seconds after which a running answer lets the server look whether anybody still listens."""


def turn_state(answer: Answer) -> str:
    return "stopped" if answer.finish_reason == "cancelled" else "answered"


def answer_facts(answer: Answer) -> dict[str, Any]:
    """What is kept of an answer; figures that are none (NaN) are left out."""
    facts = {
        "finish": answer.finish_reason,
        "confidence": round(answer.confidence, 4),
        "prompt_tokens": answer.prompt_tokens,
        "image_tokens": answer.image_tokens,
        "cached_tokens": answer.cached_tokens,
        "new_tokens": answer.new_tokens,
        "seconds": round(answer.seconds_to_first_token, 3),
        "speed": round(answer.tokens_per_second, 1),
        "dropped": answer.dropped_messages,
    }
    return {k: v for k, v in facts.items() if isinstance(v, str) or math.isfinite(v)}


def beats(
    engine: Engine,
    conversation: Conversation,
    options: GenerationOptions,
    cancel: threading.Event,
) -> Iterator[list[Event]]:
    """An engine's events, gathered since the last time; empty after `BEAT` seconds without any.

    The engine runs in a thread of its own, so that who reads can give up at any beat: a page that
    went away, or a server that stops, is noticed although no token comes. `cancel` is set then.
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
                while True:
                    if item is None or isinstance(item, BaseException):
                        break
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
    """The answer's text so far, and the whole answer at the end; None at a beat without news."""
    text, answer = "", None
    for events in beats(engine, conversation, options, cancel):
        for event in events:
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Answer):
                text, answer = event.text, event
        yield (text, answer) if events else None


def greedy_answer(
    engine: Engine, conversation: Conversation, longest: int, cancel: threading.Event
) -> str:
    """The whole greedy answer."""
    options = GenerationOptions(max_new_tokens=longest, temperature=0.0)
    for event in engine.stream(conversation, options, cancel):
        if isinstance(event, Answer):
            return event.text.strip()
    return ""
