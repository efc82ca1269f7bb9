"""Mixtures of rooms to draw scenes from."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from finetune.pretrain.world import ROOMS
from finetune.pretrain.world.rooms.charts.plots import PLOTS
from finetune.pretrain.world.rooms.icons.room import Icons
from finetune.pretrain.world.rooms.icons.store import IconStore
from finetune.pretrain.world.rooms.photos.room import Photos
from finetune.pretrain.world.rooms.photos.store import PhotoStore
from finetune.pretrain.world.rooms.shapes.wide import WideShapes
from finetune.pretrain.world.scene import QA, Room, Scene, Split
from finetune.pretrain.world.variation import varied


def open_rooms(photos: Path | None, icons: Path | None) -> tuple[dict[str, Room], list[str]]:
    """Open the rooms to train on, with the folders of packed data (see `pack_data`) if given.

    `shapes` is left out, because it calls a square a rectangle; `wide shapes` takes its place.

    Returns:
        The rooms by name, and what the model will not know for lack of data.
    """
    store = PhotoStore.open(photos) if photos else None
    rooms: dict[str, Room] = {name: room for name, room in ROOMS.items() if name != "shapes"}
    rooms["wide shapes"] = WideShapes(store)
    rooms["plots"] = PLOTS
    missing = []
    if icons:
        rooms["icons"] = Icons(IconStore.open(icons), store)
    else:
        missing.append("No --icons: the model will not know icons.")
    if store:
        rooms["photos"] = Photos(store)
    else:
        missing.append("No --photos: the model will not know photographs.")
    return rooms, missing


@dataclass(frozen=True)
class World:
    """A mixture of rooms with weights."""

    weights: Mapping[str, float]
    """How often each room is drawn, relative to others; rooms without a weight never are."""
    rooms: Mapping[str, Room] = field(default_factory=lambda: ROOMS)
    """The rooms by name. Rooms that need data, such as icons, are not in the default."""
    varied: bool = False
    """Whether questions have further wordings (see `variation`), which early checkpoints lack."""

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
        asked = self.rooms[scene.room].ask(scene, rng, split)
        return varied(asked, scene, rng, split) if self.varied else asked
