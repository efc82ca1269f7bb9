"""Generated pictures with questions and answers, for pre-training the built-in model.

`ROOMS` lists the kinds of pictures; a new room is a module with a `Room` and one line here.
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

KNOWN_ROOMS: tuple[Room, ...] = (SHAPES, THINGS_ROOM, DIGITS, WRITING, CHARTS)
"""The rooms whose questions have answers; those about pictures of `Outside` are refused."""
ROOMS: dict[str, Room] = {room.name: room for room in (*KNOWN_ROOMS, Outside(KNOWN_ROOMS))}

__all__ = ["QA", "ROOMS", "Item", "Room", "Scene", "Split", "make_scene", "sample_scene"]


def make_scene(seed: int, room: str | None = None, split: Split = "train") -> Scene:
    """Make scene number `seed` of a room, or of a random room.

    Scenes of one seed but of different splits are unrelated.

    Raises:
        KeyError: There is no such room.
    """
    rng = random.Random(f"{split}-{room}-{seed}")
    return ROOMS[room or rng.choice(sorted(ROOMS))].make(rng, split)


def sample_scene(seed: int, room: str | None = None) -> tuple[Image.Image, list[QA]]:
    """Return a picture from the test split and questions about it, for examples and demos."""
    scene = make_scene(seed, room, "test")
    source = ROOMS[scene.room]
    return source.draw(scene), source.ask(scene, random.Random(f"ask-{seed}"), "test")
