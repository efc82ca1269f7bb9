"""Simple backdrops for things: a meadow, a room, the sea, the night, ..."""

import math
import random
from collections.abc import Callable

from finetune.pretrain.world.drawing.paint import RGB, Canvas, background, mixed, to_rgb
from finetune.pretrain.world.scene import Size

Palette = tuple[RGB, ...]
"""The colours of a backdrop; what each is for depends on the backdrop."""


def vary(rgb: RGB, rng: random.Random, spread: int = 14) -> RGB:
    """Return the colour with each channel changed by at most `spread`."""
    return to_rgb(c + rng.randint(-spread, spread) for c in rgb)


def sky(canvas: Canvas, size: Size, top: RGB, bottom: RGB, horizon: float) -> None:
    """Paint bands from the colour `top` to `bottom`, down to `horizon` (0..1 of the height)."""
    for k in range(6):
        y = size[1] * horizon * k / 6
        canvas.rectangle((0, y, size[0], size[1] * horizon + 1), mixed(top, bottom, k / 5))


def land(
    canvas: Canvas, size: Size, rgb: RGB, level: float, rough: float, rng: random.Random
) -> None:
    """Paint the ground below `level` with an edge that rolls by `rough` (0..1 of the height)."""
    phase, speed = rng.uniform(0, 6), rng.uniform(3, 9)
    edge = [
        (size[0] * k / 12, size[1] * (level + rough * math.sin(phase + speed * k / 12)))
        for k in range(13)
    ]
    canvas.polygon([*edge, (size[0], size[1]), (0, size[1])], rgb)


def meadow(canvas: Canvas, size: Size, c: Palette, rng: random.Random) -> None:
    """Paint a meadow under the sky."""
    level = rng.uniform(0.5, 0.75)
    sky(canvas, size, c[0], mixed(c[0], (255, 255, 255), 0.6), level + 0.05)
    land(canvas, size, mixed(c[1], c[0], 0.3), level - 0.03, 0.04, rng)
    land(canvas, size, c[1], level + 0.04, 0.025, rng)


def room(canvas: Canvas, size: Size, c: Palette, rng: random.Random) -> None:
    """Paint a wall, sometimes striped, and a floor."""
    level = rng.uniform(0.6, 0.8)
    wide, high = size
    canvas.rectangle((0, 0, wide, high), c[0])
    if rng.random() < 0.5:
        step = rng.uniform(0.06, 0.16) * wide
        for k in range(int(wide / step) + 1):
            canvas.rectangle((k * step, 0, k * step + step / 2, high), mixed(c[0], c[1], 0.12))
    canvas.rectangle((0, level * high, wide, high), c[1])
    canvas.rectangle((0, level * high - 0.03 * high, wide, level * high), mixed(c[0], c[1], 0.5))


def sea(canvas: Canvas, size: Size, c: Palette, rng: random.Random) -> None:
    """Paint the sea under the sky, with waves."""
    level = rng.uniform(0.4, 0.65)
    wide, high = size
    sky(canvas, size, c[0], mixed(c[0], (255, 255, 255), 0.6), level)
    canvas.rectangle((0, level * high, wide, high), c[1])
    for _ in range(rng.randint(5, 14)):
        x, y = rng.uniform(-0.1, 1) * wide, rng.uniform(level + 0.03, 1) * high
        canvas.line(
            [(x, y), (x + rng.uniform(0.05, 0.2) * wide, y)],
            mixed(c[1], (255, 255, 255), 0.35),
            max(1.0, high * 0.01),
        )


def street(canvas: Canvas, size: Size, c: Palette, rng: random.Random) -> None:
    """Paint a street before a row of buildings."""
    level = rng.uniform(0.6, 0.75)
    wide, high = size
    sky(canvas, size, c[0], mixed(c[0], (255, 255, 255), 0.5), level)
    x = -0.05 * wide
    while x < wide:
        block = rng.uniform(0.12, 0.26) * wide
        tone = mixed(c[0], c[1], rng.uniform(0.25, 0.45))
        canvas.rectangle((x, rng.uniform(0.15, 0.45) * high, x + block * 0.93, level * high), tone)
        x += block
    canvas.rectangle((0, level * high, wide, high), c[1])
    canvas.rectangle((0, level * high, wide, (level + 0.03) * high), mixed(c[1], c[0], 0.6))
    y = (level + 1) / 2 * high
    for k in range(6):
        canvas.rectangle(
            (wide * (0.02 + k / 6), y, wide * (0.1 + k / 6), y + 0.02 * high),
            mixed(c[1], (255, 255, 255), 0.7),
        )


def night(canvas: Canvas, size: Size, c: Palette, rng: random.Random) -> None:
    """Paint a night sky with stars."""
    sky(canvas, size, c[0], mixed(c[0], (60, 60, 110), 0.5), 1.0)
    for _ in range(rng.randint(10, 30)):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, 0.75 * size[1])
        r = max(0.4, 0.004 * min(size) * rng.uniform(0.6, 2))
        canvas.ellipse((x - r, y - r, x + r, y + r), (235, 235, 215))
    land(canvas, size, c[1], rng.uniform(0.75, 0.88), 0.03, rng)


def beach(canvas: Canvas, size: Size, c: Palette, rng: random.Random) -> None:
    """Paint a beach by the sea."""
    level = rng.uniform(0.35, 0.5)
    wide, high = size
    sky(canvas, size, c[0], mixed(c[0], (255, 255, 255), 0.7), level)
    canvas.rectangle((0, level * high, wide, high), c[2])
    land(canvas, size, c[1], level + rng.uniform(0.12, 0.25), 0.02, rng)


def hills(canvas: Canvas, size: Size, c: Palette, rng: random.Random) -> None:
    """Paint three ranges of hills."""
    level = rng.uniform(0.5, 0.7)
    sky(canvas, size, c[0], mixed(c[0], (255, 255, 255), 0.4), level + 0.1)
    for k in range(3):
        land(canvas, size, mixed(c[0], c[1], 0.4 + 0.3 * k), level - 0.1 + 0.12 * k, 0.07, rng)


Painter = Callable[[Canvas, Size, Palette, random.Random], None]

# Painter and reference colours of each backdrop; mostly pale, so that things stand out.
PAINTERS: dict[str, tuple[Painter, Palette]] = {
    "meadow": (meadow, ((165, 210, 245), (170, 220, 140))),
    "room": (room, ((235, 222, 200), (196, 160, 125))),
    "sea": (sea, ((190, 222, 245), (120, 180, 225))),
    "street": (street, ((200, 220, 238), (125, 125, 132))),
    "night": (night, ((22, 26, 58), (34, 44, 48))),
    "beach": (beach, ((175, 220, 248), (240, 222, 170), (130, 200, 220))),
    "snow": (hills, ((185, 205, 225), (246, 249, 253))),
    "desert": (hills, ((250, 225, 180), (228, 188, 125))),
}
BACKDROPS = ("plain", *PAINTERS)


def palette(backdrop: str, rng: random.Random) -> Palette:
    """Return random colours for a backdrop.

    Raises:
        KeyError: There is no such backdrop, or it is "plain", which has no colours of its own.
    """
    references = PAINTERS[backdrop][1]
    if backdrop == "room":  # walls and floors come in any pale colour
        wall = to_rgb(rng.randint(185, 250) for _ in range(3))
        return wall, vary(rng.choice(((196, 160, 125), (150, 110, 80), (200, 200, 205))), rng)
    return tuple(vary(rgb, rng) for rgb in references)


def paint(backdrop: str, colours: Palette, size: Size, seed: int) -> Canvas:
    """Paint a backdrop; "plain" is a `background` around the only colour."""
    if backdrop == "plain":
        return Canvas(background(*size, colours[0], seed))
    canvas = Canvas(background(*size, colours[0], 0))
    PAINTERS[backdrop][0](canvas, size, colours, random.Random(seed))
    return canvas
