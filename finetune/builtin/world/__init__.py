"""A world of generated pictures that knows everything about itself.

`ROOMS` is the table of its rooms; a new room is a module with a `Room` and one line here.
"""

import random

from PIL import Image

from finetune.builtin.world.charts import CHARTS
from finetune.builtin.world.digits import DIGITS
from finetune.builtin.world.outside import Outside
from finetune.builtin.world.scene import QA, Item, Room, Scene, Split
from finetune.builtin.world.shapes import SHAPES
from finetune.builtin.world.things import THINGS_ROOM
from finetune.builtin.world.writing import WRITING

INSIDE: tuple[Room, ...] = (SHAPES, THINGS_ROOM, DIGITS, WRITING, CHARTS)
ROOMS: dict[str, Room] = {room.name: room for room in (*INSIDE, Outside(INSIDE))}

__all__ = ["QA", "ROOMS", "Item", "Room", "Scene", "Split", "make_scene", "sample_scene"]


def make_scene(seed: int, room: str | None = None, split: Split = "train") -> Scene:
    """The scene number `seed` of `room` (of any room: a fair draw). Raises KeyError: no such room.

    Train and test scenes of one seed are unrelated.
    """
    rng = random.Random(f"{split}-{room}-{seed}")
    return ROOMS[room or rng.choice(sorted(ROOMS))].make(rng, split)


def sample_scene(seed: int, room: str | None = None) -> tuple[Image.Image, list[QA]]:
    """A picture that no training saw and questions about it: for example cards and demos."""
    scene = make_scene(seed, room, "test")
    home = ROOMS[scene.room]
    return home.draw(scene), home.ask(scene, random.Random(f"ask-{seed}"), "test")
