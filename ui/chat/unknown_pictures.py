"""Recognises answers of the built-in model about kinds of pictures that it does not know."""

from __future__ import annotations

from functools import cache

from ui.chat.examples import knowledge
from vqa_app.engine.protocol import Answer
from vqa_app.serving.engine_pool import ModelChoice

LOW_CONFIDENCE = 0.5
"""Confidence below which the built-in model is taken not to know the picture."""


def is_unknown_picture(choice: ModelChoice, answer: Answer) -> bool:
    """Return whether an answer says, or suggests, that the model does not know the picture.

    The built-in model was trained to answer any question about a picture from outside its world
    with one sentence, or one word. Some of them it answers at random instead, with low confidence.
    Models that were trained on it do the same; others have no such sentence.
    """
    if answer.finish_reason == "cancelled" or knowledge(choice) == "general":
        return False
    return _words(answer.text) in _refusals() or answer.confidence < LOW_CONFIDENCE


@cache
def _refusals() -> frozenset[str]:
    """Return what the built-in model was trained to say about an unknown picture."""
    from finetune.pretrain.world.rooms.outside.room import SENTENCE, SHORT

    return frozenset(map(_words, (SENTENCE, SHORT)))


def _words(text: str) -> str:
    return text.strip().rstrip(".").casefold()
