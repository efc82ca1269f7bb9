"""What a model is given of a picture, turned back into pictures that a person can look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from vqa_app.pictures.picture import Picture

MOST = 16
"""Tiles shown of models that cut a picture up."""


def model_view(processor: Any, picture: Picture) -> list[Image.Image]:
    """The picture at the model's own resolution: one, or the tiles that some models cut it into.

    Empty where the processor's output is not pictures any more (Qwen-VL gives flat patches).
    """
    settings = processor.image_processor
    output = settings(images=[picture.image], return_tensors="np")
    pixels = np.asarray(output["pixel_values"], dtype=np.float32)
    if pixels.ndim < 4 or pixels.shape[-3] != 3:
        return []
    tiles = pixels.reshape(-1, *pixels.shape[-3:])[:MOST]  # [tiles, 3, rows, columns]
    if getattr(settings, "do_normalize", False):
        mean = np.asarray(settings.image_mean, dtype=np.float32)[:, None, None]
        tiles = tiles * np.asarray(settings.image_std, dtype=np.float32)[:, None, None] + mean
    if getattr(settings, "do_rescale", True):
        tiles = tiles * 255
    shown = np.rint(tiles.clip(0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)
    return [Image.fromarray(tile) for tile in shown]
