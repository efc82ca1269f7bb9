"""A world of generated pictures that knows everything about itself.

`ROOMS` is the table of its rooms; a new room is a module with a `Room` and one line here.
"""

import random

from PIL import Image

from finetune.pretrain.world.rooms.charts.room import CHARTS
from finetune.pretrain.world.rooms.digits.room import DIGITS
from finetune.pretrain.world.rooms.outside.room import Outside
from finetune.pretrain.world.rooms.shapes.room import SHAPES
from finetune.pretrain.world.rooms.things.room import THINGS_ROOM
from finetune.pretrain.world.rooms.writing.room import WRITING
from finetune.pretrain.world.scene import QA, Item, Room, Scene, Split

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
