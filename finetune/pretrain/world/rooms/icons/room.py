"""The icons room: one or several icons of everyday things on a random background."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from finetune.pretrain.world.drawing.paint import background, far_enough, to_rgb
from finetune.pretrain.world.rooms.icons.questions import ask
from finetune.pretrain.world.rooms.icons.store import IconStore, icon_concepts
from finetune.pretrain.world.rooms.photos.backgrounds import (
    choose_background_photo,
    photo_background,
)
from finetune.pretrain.world.rooms.photos.store import PhotoStore
from finetune.pretrain.world.scene import QA, Item, Scene, Split

SIZES = (128, 160, 224)
"""The longer sides of the pictures."""


@dataclass(frozen=True)
class Icons:
    """The `Room` of icons; an item's kind is the first name of its concept."""

    store: IconStore
    photos: PhotoStore | None = None
    """Photographs, some of which are used as backgrounds."""
    name = "icons"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The concepts' first names, in the order of the table."""
        return tuple(concept.name for concept in icon_concepts())

    def make(self, rng: random.Random, split: Split, count: int | None = None) -> Scene:
        """Make a scene of `count` icons; a random number by default, most often one."""
        count = count or rng.choices((1, 2, 3, 4, 6, 9), (60, 12, 10, 8, 6, 4))[0]
        width = height = rng.choice(SIZES)
        if rng.random() < 0.3:
            height = round(width / rng.uniform(1, 2.5))
        if rng.random() < 0.5:
            width, height = height, width
        across = min(count, max(1, round((count * width / height) ** 0.5)))
        down = -(-count // across)
        cell = min(width / across, height / down)
        available = self.store.concepts(split)
        numbers = [rng.choice(available) for _ in range(count)]
        if count > 2 and rng.random() < 0.4:  # repeat some, so that there is something to count
            numbers = [rng.choice(numbers[:2]) for _ in range(count)]
        items = []
        for k, number in enumerate(numbers):
            side = cell * (rng.uniform(0.45, 1.0) if count == 1 else rng.uniform(0.6, 0.95))
            left = width / across * (k % across)
            top = height / down * (k // across)
            x = left + rng.uniform(0, width / across - side)
            y = top + rng.uniform(0, height / down - side)
            box = (x / width, y / height, (x + side) / width, (y + side) / height)
            concept = icon_concepts()[number]
            extra = {"row": rng.choice(self.store.rows[split][number])}
            items.append(Item(concept.name, box, extra=extra))
        seed = rng.getrandbits(32)
        scene_extra: dict[str, int | None] = {}
        if self.photos and rng.random() < 0.1:
            scene_extra = {"photo": choose_background_photo(self.photos, [], rng, split)}
        return Scene(self.name, f"{count}", width, height, tuple(items), seed, scene_extra)

    def make_single(self, number: int, rng: random.Random, split: Split) -> Scene:
        """Make a scene of one icon of concept `number`, which the split must contain."""
        side = rng.choice(SIZES)
        share = rng.uniform(0.6, 1.0)
        edge = (1 - share) / 2
        extra = {"row": rng.choice(self.store.rows[split][number])}
        box = (edge, edge, edge + share, edge + share)
        item = Item(icon_concepts()[number].name, box, extra=extra)
        return Scene(self.name, "1", side, side, (item,), rng.getrandbits(32))

    def draw(self, scene: Scene) -> Image.Image:
        """Draw a scene in RGB."""
        rng = random.Random(scene.seed)
        tone = rng.choices((255, rng.randint(200, 255), rng.randint(0, 255)), (3, 3, 3))[0]
        spread = rng.choice((0, 0, 10, 60))
        base = to_rgb(tone + rng.randint(-spread, spread) for _ in range(3))
        size, photo = (scene.width, scene.height), scene.extra.get("photo")
        if self.photos and photo is not None:
            picture = photo_background(self.photos, photo, size, scene.seed)
        else:
            picture = background(*size, base, scene.seed)
        silhouette = rng.random() < 0.05
        contour = rng.random() < 0.15
        for item in scene.items:
            icon = Image.fromarray(np.asarray(self.store.images[item.extra["row"]]), "RGBA")
            if silhouette or _blends_in(icon, base):
                icon = _filled(icon, _contrasting(base, rng))
            if contour:
                icon = _outlined(icon, rng.randint(1, 4))
            if rng.random() < 0.3:
                icon = ImageOps.mirror(icon)
            left, top, right, _ = item.box
            side = max(8, round((right - left) * scene.width))
            if rng.random() < 0.3:
                icon = icon.rotate(rng.gauss(0, 8), Image.Resampling.BICUBIC)
            icon = icon.resize((side, side), Image.Resampling.LANCZOS)
            corner = (round(left * scene.width), round(top * scene.height))
            picture.paste(icon, corner, icon)
        return ImageOps.grayscale(picture).convert("RGB") if rng.random() < 0.04 else picture

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        return ask(scene, rng, split)


def _blends_in(icon: Image.Image, base: tuple[int, int, int]) -> bool:
    """Return whether the icon has a single colour, too similar to that of the background."""
    pixels = np.asarray(icon)
    opaque = pixels[pixels[..., 3] > 128][:, :3].astype(float)
    if not len(opaque) or opaque.std(axis=0).max() > 25:
        return False
    return not far_enough(to_rgb(opaque.mean(axis=0)), [base], 90)


def _contrasting(base: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    """Return a colour that contrasts with the background."""
    while True:
        colour = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
        if far_enough(colour, [base], 120):
            return colour


def _filled(icon: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Return the icon's silhouette in one colour."""
    flat = Image.new("RGBA", icon.size, (*colour, 255))
    flat.putalpha(icon.getchannel("A"))
    return flat


def _outlined(icon: Image.Image, width: int) -> Image.Image:
    """Return the icon with a dark contour around it, as in many icon sets."""
    grown = icon.getchannel("A").filter(ImageFilter.MaxFilter(2 * width + 1))
    behind = Image.new("RGBA", icon.size, (15, 15, 15, 255))
    behind.putalpha(grown)
    behind.alpha_composite(icon)
    return behind
