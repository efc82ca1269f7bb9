"""A canvas on matplotlib's renderer, whose edges and joints differ from Pillow's."""

from typing import Any

import numpy as np
from PIL import Image

from finetune.pretrain.world.drawing.paint import RGB, Points


class AggCanvas:
    """A picture drawn by Anti-Grain Geometry, with the methods of `paint.Canvas` for polygons."""

    def __init__(self, ground: Image.Image) -> None:
        """Draw on a background of the picture's size."""
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.transforms import Affine2D

        self.ground = ground
        self._renderer = RendererAgg(ground.width, ground.height, 72)  # at 72 dpi, points = pixels
        self._upright = Affine2D().scale(1, -1).translate(0, ground.height)

    def polygon(self, points: Points, rgb: RGB) -> None:
        """Fill a polygon."""
        self._draw(points, rgb, 0)

    def outlined(self, points: Points, rgb: RGB, width: float) -> None:
        """Draw the closed outline of a polygon, `width` pixels thick."""
        self._draw(points, rgb, width)

    def _draw(self, points: Points, rgb: RGB, width: float) -> None:
        from matplotlib.path import Path

        colour = tuple(channel / 255 for channel in rgb)
        pen: Any = self._renderer.new_gc()
        pen.set_linewidth(width)
        pen.set_foreground((*colour, 1.0), isRGBA=True)
        pen.set_joinstyle("round")
        path = Path([*points, points[0]], closed=True)
        self._renderer.draw_path(pen, path, self._upright, None if width else (*colour, 1.0))

    def finish(self) -> Image.Image:
        """Return the picture."""
        drawn = Image.fromarray(np.asarray(self._renderer.buffer_rgba()))
        return Image.alpha_composite(self.ground.convert("RGBA"), drawn).convert("RGB")
