"""The photographs room: one small photograph of a labelled object."""

import random
from dataclasses import dataclass

from PIL import Image, ImageOps

from finetune.pretrain.world.rooms.photos.questions import ask
from finetune.pretrain.world.rooms.photos.store import PHOTO_SIZE, PhotoStore, photo_classes
from finetune.pretrain.world.scene import QA, Item, Scene, Split

LEAST_SHARE = 0.55
"""The smallest share of an edge that a crop keeps."""


@dataclass(frozen=True)
class Photos:
    """The `Room` of photographs; an item's kind is the first name of its class."""

    store: PhotoStore
    name = "photos"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The classes' first names, in the order of the table; a few occur twice."""
        return tuple(c.name for c in photo_classes())

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Choose a photograph, cropped around its object for training and whole otherwise."""
        rows = self.store.rows[split]
        row = int(rows[rng.randrange(len(rows))])
        left, top, right, bottom = (int(v) / 255 for v in self.store.boxes[row])
        crop = (0.0, 0.0, 1.0, 1.0)
        if split == "train":
            crop = (
                rng.uniform(0, min(left, 1 - LEAST_SHARE)),
                rng.uniform(0, min(top, 1 - LEAST_SHARE)),
                rng.uniform(max(right, LEAST_SHARE), 1),
                rng.uniform(max(bottom, LEAST_SHARE), 1),
            )
        edges = [round(edge * PHOTO_SIZE) for edge in crop]
        width, height = max(8, edges[2] - edges[0]), max(8, edges[3] - edges[1])
        flipped = split == "train" and rng.random() < 0.5
        x0, x1 = (min(1.0, max(0.0, (x * PHOTO_SIZE - edges[0]) / width)) for x in (left, right))
        y0, y1 = (min(1.0, max(0.0, (y * PHOTO_SIZE - edges[1]) / height)) for y in (top, bottom))
        box = (1 - x1, y0, 1 - x0, y1) if flipped else (x0, y0, x1, y1)
        item = Item(photo_classes()[int(self.store.labels[row])].name, box)
        extra = {"row": row, "edges": edges, "flipped": flipped}
        scale = rng.choice((1, 2, 3)) if split == "train" else 1
        size = (width * scale, height * scale)
        return Scene(self.name, "photo", *size, (item,), rng.getrandbits(32), extra)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw a scene in RGB."""
        picture = Image.fromarray(self.store.images[scene.extra["row"]])
        picture = picture.crop(tuple(scene.extra["edges"]))
        picture = ImageOps.mirror(picture) if scene.extra["flipped"] else picture
        return picture.resize((scene.width, scene.height), Image.Resampling.BICUBIC)

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        return ask(scene, rng, split)
