"""The empty screen's example cards, and new scenes, from the built-in model's own world."""

from __future__ import annotations

import random
import secrets
from functools import cache

from PIL import Image

from vqa_app.errors import UsageError

ABOUT_BUILTIN = (
    "The built-in model is small and knows a small world: drawn shapes and things, how many, which"
    " colour, where, short writing, simple charts and digits. It does not know photographs; for"
    " those, pick a bigger model above, or start with --model and a hub id."
)
ABOUT_OTHER = "These pictures come from a generator; your own are more interesting."
CARDS = (
    (29, "shapes", "What is above the rectangle?"),
    (26, "things", "Where is the mushroom?"),
    (26, "charts", "What is the value of the black slice?"),
    (24, "digits", "What number is shown?"),
)
"""Number and room of a scene, and what to ask: chosen so that a look at the picture invites it."""


WELL_ANSWERED = frozenset(
    ("colour", "shape", "size", "fill", "position", "relation", "existence", "negation", "absent")
)
"""Skills of which the built-in model answers at least 95 % rightly, among at most `MOST_SHAPES`
shapes, by its MODEL_CARD.md."""
MOST_SHAPES = 4
_TRIES = 100


@cache
def cards() -> tuple[tuple[Image.Image, str], ...]:
    """Pictures and questions for the empty screen."""
    from finetune.pretrain.world import sample_scene

    return tuple((sample_scene(seed, room)[0], question) for seed, room, question in CARDS)


def new_scene() -> tuple[Image.Image, str]:
    """A picture that nobody has seen, and a question about it of a kind that is answered well."""
    from finetune.pretrain.world import make_scene, sample_scene

    for _ in range(_TRIES):
        seed = secrets.randbelow(1 << 40)
        if len(make_scene(seed, "shapes", "test").items) > MOST_SHAPES:
            continue
        image, questions = sample_scene(seed, "shapes")
        good = [qa.question for qa in questions if qa.skill in WELL_ANSWERED and qa.short]
        if good:
            return image, random.Random(seed).choice(good)
    raise UsageError("No scene with a good question was found.", "Draw another one.")
