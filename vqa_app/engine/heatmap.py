"""Draw an attention map over a picture, with Pillow and numpy only."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vqa_app.engine.protocol import AttentionMap

# From dark violet through red to pale yellow. Lightness increases evenly, so that the map is also
# legible in greyscale. `ui/static/sheet.js` uses the same colours.
_ANCHORS = np.array(
    [(20, 11, 54), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float32
)

SHORTEST_LONG_SIDE = 512
"""The longer side in pixels to which smaller pictures are enlarged, so that the map is legible."""


def whole_answer(attention: AttentionMap, picture: int) -> np.ndarray:
    """Return the mean of a picture's maps over the answer's tokens.

    Args:
        attention: The maps of all pictures.
        picture: Index of the picture.

    Returns:
        [rows, columns]; zeros if the answer is empty.
    """
    maps = attention.maps[picture]
    return maps.mean(axis=0) if len(maps) else np.zeros(maps.shape[1:], np.float32)


def draw_overlay(picture: Image.Image, weights: np.ndarray, opacity: float = 0.7) -> Image.Image:
    """Draw a map over a picture.

    Args:
        picture: An RGB image.
        weights: Non-negative weights [rows, columns] that cover the whole picture. Only their
            ratios matter.
        opacity: Opacity of the colour at the largest weight, 0 to 1. At weight 0 it is three
            tenths of that.

    Returns:
        An RGB image of the same size, or enlarged to `SHORTEST_LONG_SIDE`.
    """
    scale = max(1.0, SHORTEST_LONG_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    base = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    relative = np.asarray(weights, dtype=np.float32) / max(float(np.max(weights)), 1e-12)
    smooth = Image.fromarray(relative).resize(size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0.0, 1.0)  # [height, width]
    position = heat * (len(_ANCHORS) - 1)
    low = np.minimum(position.astype(np.int64), len(_ANCHORS) - 2)
    fraction = (position - low)[..., None]
    colour = _ANCHORS[low] * (1 - fraction) + _ANCHORS[low + 1] * fraction  # [height, width, 3]
    alpha = (opacity * (0.3 + 0.7 * heat))[..., None]
    return Image.fromarray(np.rint(base * (1 - alpha) + colour * alpha).astype(np.uint8))
