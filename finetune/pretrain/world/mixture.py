"""Mixtures of rooms to draw scenes from."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from finetune.pretrain.world import ROOMS
from finetune.pretrain.world.scene import QA, Room, Scene, Split


@dataclass(frozen=True)
class World:
    """A mixture of rooms with weights."""

    weights: Mapping[str, float]
    """How often each room is drawn, relative to others; rooms without a weight never are."""
    rooms: Mapping[str, Room] = field(default_factory=lambda: ROOMS)
    """The rooms by name. Rooms that need data, such as icons, are not in the default."""

    def make_scene(self, number: int, split: Split = "train") -> Scene:
        """Make scene number `number` of a split; scenes of different splits are unrelated."""
        chooser = random.Random(f"room-{number}")
        name = chooser.choices(list(self.weights), list(self.weights.values()))[0]
        return self.rooms[name].make(random.Random(f"{split}-{name}-{number}"), split)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw a scene; see `Room.draw`."""
        return self.rooms[scene.room].draw(scene)

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about a scene; see `Room.ask`."""
        return self.rooms[scene.room].ask(scene, rng, split)
