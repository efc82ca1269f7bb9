"""Pictures of an invented object that no model knows, for tests of fine-tuning."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw


def blorp(number: int) -> Image.Image:
    """Draw a disc with eight legs at a random position, in a random size and colour."""
    rng = random.Random(number)
    image = Image.new("RGB", (256, 256), (250, 250, 245))
    draw = ImageDraw.Draw(image)
    x, y, size = rng.randint(70, 180), rng.randint(70, 180), rng.randint(30, 60)
    colour = rng.choice(["#d02020", "#2050d0", "#20a040", "#e0a000"])
    for leg in range(8):
        angle = leg * math.pi / 4
        tip = (x + 1.5 * size * math.cos(angle), y + 1.5 * size * math.sin(angle))
        draw.line([(x, y), tip], fill=colour, width=9)
    draw.ellipse([x - size, y - size, x + size, y + size], fill=colour)
    return image
