"""Pictures as the model receives them, for display."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from vqa_app.pictures.picture import Picture
from vqa_app.prompts.image_inputs import process_images

MAX_TILES = 16
"""Number of tiles shown for models that split a picture."""


def model_view(processor: Any, picture: Picture) -> list[Image.Image]:
    """Return the picture at the model's resolution: one image, or the tiles it is split into.

    Empty if the processor's output is no longer an image (Qwen-VL uses flat patches).
    """
    image_processor = processor.image_processor
    output = process_images(processor, (picture,)).inputs
    pixels = np.asarray(output["pixel_values"], dtype=np.float32)
    if pixels.ndim < 4 or pixels.shape[-3] != 3:
        return []
    tiles = pixels.reshape(-1, *pixels.shape[-3:])[:MAX_TILES]  # [tiles, 3, rows, columns]
    if getattr(image_processor, "do_normalize", False):
        mean = np.asarray(image_processor.image_mean, dtype=np.float32)[:, None, None]
        tiles = tiles * np.asarray(image_processor.image_std, dtype=np.float32)[:, None, None]
        tiles = tiles + mean
    if getattr(image_processor, "do_rescale", True):
        tiles = tiles * 255
    rgb = np.rint(tiles.clip(0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)
    return [Image.fromarray(tile) for tile in rgb]
