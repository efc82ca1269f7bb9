"""Example pictures with questions, generated from the world that the built-in model knows."""

from __future__ import annotations

import random
import secrets
from functools import cache

from PIL import Image

from vqa_app.errors import UsageError

CARDS = (
    (29, "shapes", "What is above the rectangle?"),
    (26, "things", "Where is the mushroom?"),
    (26, "charts", "What is the value of the black slice?"),
    (24, "digits", "What number is shown?"),
)
"""Number and room of a scene, and a question that the picture suggests."""
WELL_ANSWERED = frozenset(
    ("colour", "shape", "size", "fill", "position", "relation", "existence", "negation", "absent")
)
"""Skills with at least 95 % correct answers of the built-in model on at most `MAX_SHAPES` shapes,
according to its MODEL_CARD.md."""
MAX_SHAPES = 4
_TRIES = 100


@cache
def cards() -> tuple[tuple[Image.Image, str], ...]:
    """Return pictures and questions for the empty screen."""
    from finetune.pretrain.world import sample_scene

    return tuple((sample_scene(seed, room)[0], question) for seed, room, question in CARDS)


def new_scene() -> tuple[Image.Image, str]:
    """Return a new picture, and a question of a kind that the built-in model answers well."""
    from finetune.pretrain.world import make_scene, sample_scene

    for _ in range(_TRIES):
        seed = secrets.randbelow(1 << 40)
        if len(make_scene(seed, "shapes", "test").items) > MAX_SHAPES:
            continue
        image, questions = sample_scene(seed, "shapes")
        good = [qa.question for qa in questions if qa.skill in WELL_ANSWERED and qa.short]
        if good:
            return image, random.Random(seed).choice(good)
    raise UsageError("No suitable scene was found.", "Try again.")
