"""Photographs as backgrounds of drawings."""

import random

import numpy as np
from PIL import Image, ImageFilter

from finetune.pretrain.world.drawing.paint import RGB, far_enough, to_rgb
from finetune.pretrain.world.rooms.photos.store import PhotoStore
from finetune.pretrain.world.scene import Split


def choose_background_photo(
    store: PhotoStore, colours: list[RGB], rng: random.Random, split: Split
) -> int | None:
    """Return the row of a photograph that contrasts with all `colours`; None if none is found."""
    rows = store.rows[split]
    for _ in range(6):
        row = int(rows[rng.randrange(len(rows))])
        mean = to_rgb(np.asarray(store.images[row]).mean(axis=(0, 1)))
        if far_enough(mean, colours, 110):
            return row
    return None


def photo_background(store: PhotoStore, row: int, size: tuple[int, int], seed: int) -> Image.Image:
    """Return a photograph cropped to a size, randomly blurred and reduced in contrast."""
    rng = random.Random(seed)
    picture = Image.fromarray(np.asarray(store.images[row]))
    mean = to_rgb(np.asarray(picture).mean(axis=(0, 1)))
    longest = max(size)
    left, top = rng.randint(0, longest - size[0]), rng.randint(0, longest - size[1])
    picture = picture.resize((longest, longest), Image.Resampling.BICUBIC)
    picture = picture.crop((left, top, left + size[0], top + size[1]))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3)))
    return Image.blend(picture, Image.new("RGB", size, mean), rng.uniform(0.1, 0.7))
