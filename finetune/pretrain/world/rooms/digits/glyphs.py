"""How digits, dice, dominoes and displays are drawn."""

import math
import random

from finetune.pretrain.world.drawing.paint import RGB, Canvas, mixed
from finetune.pretrain.world.drawing.sketch import Point, catmull_rom
from finetune.pretrain.world.scene import Box

# Ways to write each glyph: strokes of control points in a unit square, y down. A curve runs
# through the points; a repeated point makes a corner.
STROKES: dict[str, tuple[tuple[tuple[Point, ...], ...], ...]] = {
    "0": (
        (((0.5, 0.0), (0.1, 0.3), (0.1, 0.7), (0.5, 1.0), (0.9, 0.7), (0.9, 0.3), (0.5, 0.0)),),
        (
            (
                (0.55, 0.02),
                (0.2, 0.25),
                (0.12, 0.7),
                (0.45, 1.0),
                (0.82, 0.75),
                (0.88, 0.28),
                (0.5, 0.0),
            ),
        ),
    ),
    "1": (
        (((0.5, 0.0), (0.5, 1.0)),),
        (((0.25, 0.28), (0.55, 0.0), (0.55, 0.0), (0.55, 1.0)),),
        (((0.28, 0.25), (0.52, 0.0), (0.52, 0.0), (0.52, 1.0)), ((0.25, 1.0), (0.8, 1.0))),
    ),
    "2": (
        (
            (
                (0.12, 0.25),
                (0.35, 0.02),
                (0.75, 0.05),
                (0.85, 0.3),
                (0.6, 0.6),
                (0.1, 1.0),
                (0.1, 1.0),
                (0.92, 1.0),
            ),
        ),
        (
            (
                (0.15, 0.2),
                (0.5, 0.0),
                (0.85, 0.25),
                (0.55, 0.65),
                (0.15, 0.92),
                (0.3, 0.85),
                (0.55, 1.0),
                (0.92, 0.92),
            ),
        ),
    ),
    "3": (
        (
            (
                (0.15, 0.12),
                (0.5, 0.0),
                (0.82, 0.2),
                (0.45, 0.47),
                (0.45, 0.47),
                (0.88, 0.72),
                (0.5, 1.0),
                (0.1, 0.86),
            ),
        ),
        (
            (
                (0.12, 0.0),
                (0.85, 0.0),
                (0.85, 0.0),
                (0.42, 0.4),
                (0.42, 0.4),
                (0.88, 0.65),
                (0.55, 1.0),
                (0.1, 0.88),
            ),
        ),
    ),
    "4": (
        (((0.62, 0.0), (0.08, 0.68), (0.08, 0.68), (0.95, 0.68)), ((0.66, 0.35), (0.66, 1.0))),
        (((0.2, 0.0), (0.12, 0.55), (0.12, 0.55), (0.9, 0.55)), ((0.75, 0.0), (0.72, 1.0))),
        (((0.66, 1.0), (0.66, 0.0), (0.66, 0.0), (0.05, 0.7), (0.05, 0.7), (0.95, 0.7)),),
    ),
    "5": (
        (
            (
                (0.85, 0.0),
                (0.2, 0.0),
                (0.2, 0.0),
                (0.15, 0.45),
                (0.15, 0.45),
                (0.55, 0.36),
                (0.88, 0.65),
                (0.55, 1.0),
                (0.1, 0.9),
            ),
        ),
        (
            (
                (0.22, 0.02),
                (0.18, 0.45),
                (0.18, 0.45),
                (0.6, 0.38),
                (0.86, 0.68),
                (0.5, 1.0),
                (0.1, 0.88),
            ),
            ((0.22, 0.02), (0.86, 0.0)),
        ),
    ),
    "6": (
        (
            (
                (0.75, 0.02),
                (0.3, 0.25),
                (0.1, 0.65),
                (0.45, 1.0),
                (0.88, 0.75),
                (0.6, 0.48),
                (0.15, 0.66),
            ),
        ),
        (
            (
                (0.6, 0.0),
                (0.2, 0.45),
                (0.15, 0.8),
                (0.5, 1.0),
                (0.85, 0.78),
                (0.55, 0.55),
                (0.18, 0.74),
            ),
        ),
    ),
    "7": (
        (((0.1, 0.0), (0.9, 0.0), (0.9, 0.0), (0.35, 1.0)),),
        (((0.1, 0.02), (0.88, 0.0), (0.88, 0.0), (0.4, 1.0)), ((0.3, 0.5), (0.82, 0.48))),
    ),
    "8": (
        (
            (
                (0.5, 0.46),
                (0.15, 0.24),
                (0.5, 0.0),
                (0.85, 0.24),
                (0.5, 0.46),
                (0.08, 0.76),
                (0.5, 1.0),
                (0.92, 0.76),
                (0.5, 0.46),
            ),
        ),
        (
            (
                (0.8, 0.12),
                (0.4, 0.02),
                (0.2, 0.28),
                (0.75, 0.65),
                (0.6, 0.98),
                (0.15, 0.85),
                (0.3, 0.55),
                (0.82, 0.25),
                (0.78, 0.1),
            ),
        ),
    ),
    "9": (
        (
            (
                (0.85, 0.3),
                (0.5, 0.52),
                (0.12, 0.28),
                (0.45, 0.0),
                (0.85, 0.25),
                (0.85, 0.25),
                (0.72, 1.0),
            ),
        ),
        (
            (
                (0.86, 0.25),
                (0.5, 0.5),
                (0.14, 0.25),
                (0.5, 0.0),
                (0.87, 0.25),
                (0.84, 0.7),
                (0.5, 1.0),
                (0.2, 0.9),
            ),
        ),
    ),
    "+": ((((0.5, 0.2), (0.5, 0.8)), ((0.18, 0.5), (0.82, 0.5))),),
    "-": ((((0.15, 0.5), (0.85, 0.5)),),),
}

# The lit segments of each digit. The segments are named
#   a
# f   b
#   g
# e   c
#   d
LIT = {
    "0": "abcdef",
    "1": "bc",
    "2": "abged",
    "3": "abgcd",
    "4": "fgbc",
    "5": "afgcd",
    "6": "afgedc",
    "7": "abc",
    "8": "abcdefg",
    "9": "abcdfg",
}

PIPS: dict[int, tuple[Point, ...]] = {
    0: (),
    1: ((0.5, 0.5),),
    2: ((0.26, 0.26), (0.74, 0.74)),
    3: ((0.24, 0.24), (0.5, 0.5), (0.76, 0.76)),
    4: ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)),
    5: ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.75)),
    6: ((0.28, 0.22), (0.72, 0.22), (0.28, 0.5), (0.72, 0.5), (0.28, 0.78), (0.72, 0.78)),
}


def open_curve(points: list[Point], steps: int = 6) -> list[Point]:
    """Return points along the open Catmull-Rom spline; a repeated point makes a corner."""
    if len(points) < 3:
        return points
    padded = [points[0], *points, points[-1]]
    found = []
    for k in range(len(points) - 1):
        p0, p1, p2, p3 = padded[k : k + 4]
        if p1 == p2:
            continue
        p0, p3 = (p1 if p0 == p1 else p0), (p2 if p3 == p2 else p3)
        found += [catmull_rom(p0, p1, p2, p3, step / steps) for step in range(steps + 1)]
    return found


def handwritten(glyph: str, frame: Box, rng: random.Random) -> list[list[Point]]:
    """Return the strokes of a glyph as if handwritten within the pixel box `frame`.

    Raises:
        KeyError: The glyph is neither a digit nor "+" nor "-".
    """
    left, top, right, bottom = frame
    slant, lean = rng.gauss(0.06, 0.08), rng.gauss(0, 0.05)
    shake = 0.03
    strokes = []
    for stroke in rng.choice(STROKES[glyph]):
        moved: dict[Point, Point] = {}
        for x, y in stroke:  # the two points of a corner must move together
            moved.setdefault(
                (x, y),
                (
                    x + rng.gauss(0, shake) + slant * (0.5 - y),
                    y + rng.gauss(0, shake) + lean * (x - 0.5),
                ),
            )
        path = open_curve([moved[p] for p in stroke])
        strokes.append(
            [
                (
                    left + min(1.08, max(-0.08, x)) * (right - left),
                    top + min(1.04, max(-0.04, y)) * (bottom - top),
                )
                for x, y in path
            ]
        )
    return strokes


def write(canvas: Canvas, strokes: list[list[Point]], rgb: RGB, width: float) -> None:
    """Draw strokes `width` pixels wide with round ends."""
    for path in strokes:
        canvas.line(path, rgb, width)
        for x, y in (path[0], path[-1]):
            canvas.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), rgb)


def seven_segments(
    canvas: Canvas, digit: str, frame: Box, rgb: RGB, ghost: RGB | None, slant: float
) -> None:
    """Draw a digit of a display; `ghost` is the colour of unlit segments, None hides them.

    `slant` is how far the top leans to the right, as a share of the digit's width.
    """
    left, top, right, bottom = frame
    wide, high = right - left, bottom - top
    bar = 0.16 * wide
    gap = bar * 0.12
    middle = (top + bottom) / 2
    lines = {
        "a": ((left, top), (right, top)),
        "g": ((left, middle), (right, middle)),
        "d": ((left, bottom), (right, bottom)),
        "f": ((left, top), (left, middle)),
        "b": ((right, top), (right, middle)),
        "e": ((left, middle), (left, bottom)),
        "c": ((right, middle), (right, bottom)),
    }
    for name, ((x0, y0), (x1, y1)) in lines.items():
        shade = rgb if name in LIT[digit] else ghost
        if shade is None:
            continue
        long = math.hypot(x1 - x0, y1 - y0)
        ux, uy = (x1 - x0) / long, (y1 - y0) / long
        a, b = (x0 + ux * gap, y0 + uy * gap), (x1 - ux * gap, y1 - uy * gap)
        half = bar / 2
        points = [
            a,
            (a[0] + (ux - uy) * half, a[1] + (uy + ux) * half),
            (b[0] + (-ux - uy) * half, b[1] + (-uy + ux) * half),
            b,
            (b[0] + (-ux + uy) * half, b[1] + (-uy - ux) * half),
            (a[0] + (ux + uy) * half, a[1] + (uy - ux) * half),
        ]
        canvas.polygon([(x + slant * (bottom - y) / high * wide, y) for x, y in points], shade)


def pips(
    canvas: Canvas, number: int, corners: tuple[Point, Point, Point], radius: float, rgb: RGB
) -> None:
    """Draw the dots of a face, given by its origin and the ends of its two edges."""
    (ox, oy), (ux, uy), (vx, vy) = corners
    for u, v in PIPS[number]:
        x = ox + (ux - ox) * u + (vx - ox) * v
        y = oy + (uy - oy) * u + (vy - oy) * v
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), rgb)


def die(
    canvas: Canvas,
    number: int,
    centre: Point,
    half: float,
    turn: float,
    rgb: RGB,
    dot: RGB,
    solid: bool,
) -> None:
    """Draw a die that faces the viewer.

    Args:
        canvas: Where to draw.
        number: The number of pips, 1..6.
        centre: The centre of the face, in pixels.
        half: Half the length of an edge, in pixels.
        turn: The rotation, in radians.
        rgb: The colour of the face.
        dot: The colour of the pips.
        solid: Whether two other sides are visible.
    """
    cos, sin = math.cos(turn) * half, math.sin(turn) * half

    def at(u: float, v: float) -> Point:
        return centre[0] + u * cos - v * sin, centre[1] + u * sin + v * cos

    if solid:
        deep = 0.22 * half
        for u, v, shade in ((1, 0, 0.35), (0, 1, 0.2)):
            ends = [at(u - v, v - u), at(1, 1)] if u else [at(-1, 1), at(1, 1)]
            moved = [(x + deep, y + deep) for x, y in reversed(ends)]
            canvas.polygon([*ends, *moved], mixed(rgb, (0, 0, 0), shade))
    corner = 0.28
    points = []
    for u, v, start in ((1, 1, 0), (-1, 1, 90), (-1, -1, 180), (1, -1, 270)):
        for k in range(5):
            a = math.radians(start + 22.5 * k)
            points.append(
                at(u * (1 - corner) + corner * math.cos(a), v * (1 - corner) + corner * math.sin(a))
            )
    canvas.polygon(points, rgb)
    canvas.outlined(points, mixed(rgb, dot, 0.35), max(0.6, half * 0.05))
    pips(canvas, number, (at(-1, -1), at(1, -1), at(-1, 1)), half * 0.19, dot)
