"""Recognises answers of the built-in model about kinds of pictures that it does not know."""

from __future__ import annotations

from functools import cache

from ui.chat.examples import knowledge
from vqa_app.engine.protocol import Answer
from vqa_app.serving.engine_pool import ModelChoice

LOW_CONFIDENCE = 0.3
"""Confidence below which the built-in model is taken not to know the picture.

Of 120 questions about photographs it refuses 107, and answers 4 others with less confidence than
this. Of its own pictures, that is the case for 3 % of questions about shapes, 12 % about things and
41 % about charts, of which it answers about half correctly."""


def is_unknown_picture(choice: ModelChoice, answer: Answer) -> bool:
    """Return whether an answer says, or suggests, that the model does not know the picture.

    The built-in model was trained to answer any question about a picture from outside its world
    with one sentence, or one word. Some of them it answers at random instead, with low confidence.
    Models that were trained on it do the same; others have no such sentence.
    """
    if answer.finish_reason == "cancelled" or knowledge(choice) == "general":
        return False
    unsure = answer.calibrated and (answer.confidence or 0.0) < LOW_CONFIDENCE
    return unsure or _words(answer.text) in _refusals()


@cache
def _refusals() -> frozenset[str]:
    """Return what the built-in model was trained to say about an unknown picture."""
    from finetune.pretrain.world.rooms.outside.room import SENTENCE, SHORT

    return frozenset(map(_words, (SENTENCE, SHORT)))


def _words(text: str) -> str:
    return text.strip().rstrip(".").casefold()
