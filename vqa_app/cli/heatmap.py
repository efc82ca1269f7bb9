"""A picture with what the model looked at laid over it in colour. Pillow and numpy only."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vqa_app.engine.protocol import AttentionMap

# Dark violet over red to pale yellow: lightness rises evenly, so that it also reads in grey.
# `ui/static/sheet.js` draws in the same colours.
_ANCHORS = np.array(
    [(20, 11, 54), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float32
)

SHORTEST_LONG_SIDE = 512
"""Smaller pictures are enlarged to this many pixels, so that the map can be seen."""


def whole_answer(attention: AttentionMap, picture: int) -> np.ndarray:
    """The mean of a picture's maps over the answer's tokens: [rows, columns]. Zeros where nothing
    was said.
    """
    maps = attention.maps[picture]
    return maps.mean(axis=0) if len(maps) else np.zeros(maps.shape[1:], np.float32)


def draw_overlay(picture: Image.Image, weights: np.ndarray, opacity: float = 0.7) -> Image.Image:
    """Lays a map over a picture.

    Args:
        picture: RGB.
        weights: [rows, columns], non-negative, covering the whole picture; only their ratios count.
        opacity: of the colour where the weight is largest, 0 to 1; where it is 0, the picture
            shows through as it is, a little darker.

    Returns:
        RGB of the picture's size, or enlarged to `SHORTEST_LONG_SIDE`.
    """
    scale = max(1.0, SHORTEST_LONG_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    base = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    relative = np.asarray(weights, dtype=np.float32) / max(float(np.max(weights)), 1e-12)
    smooth = Image.fromarray(relative).resize(size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0.0, 1.0)  # [height, width]
    place = heat * (len(_ANCHORS) - 1)
    low = np.minimum(place.astype(np.int64), len(_ANCHORS) - 2)
    part = (place - low)[..., None]
    colour = _ANCHORS[low] * (1 - part) + _ANCHORS[low + 1] * part  # [height, width, 3]
    alpha = (opacity * (0.3 + 0.7 * heat))[..., None]
    return Image.fromarray(np.rint(base * (1 - alpha) + colour * alpha).astype(np.uint8))
