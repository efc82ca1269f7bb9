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
CARDS = 4


@cache
def cards() -> tuple[tuple[Image.Image, str], ...]:
    """Pictures and questions for the empty screen, one of each of the first rooms."""
    from finetune.builtin.world import ROOMS

    rooms = list(ROOMS)
    return tuple(_scene(11 + number, rooms[number % len(rooms)]) for number in range(CARDS))


def new_scene() -> tuple[Image.Image, str]:
    """A picture that nobody has seen, and a question about it."""
    return _scene(secrets.randbelow(1 << 40), None)


def _scene(seed: int, room: str | None) -> tuple[Image.Image, str]:
    from finetune.builtin.world import sample_scene

    image, questions = sample_scene(seed, room)
    short = [qa.question for qa in questions if qa.short and not qa.before]
    if not short:
        raise UsageError("This scene has no question.", "Draw another one.")
    return image, random.Random(seed).choice(short)
