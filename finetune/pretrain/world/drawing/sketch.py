"""How a thing is drawn: parts in a unit square, recorded first, then set into a picture.

A thing is a function of a `Sketch`. What it draws is kept as parts (polygons and strokes), so that
the box around them can be measured before anything has a place.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from finetune.pretrain.world.drawing.paint import COLOURS, RGB, Canvas, colour_rgb, mixed
from finetune.pretrain.world.scene import Box

Point = tuple[float, float]

INK: RGB = (38, 36, 42)
WHITE: RGB = (250, 250, 248)
CREAM: RGB = (245, 228, 190)
WOOD: RGB = (150, 98, 55)
METAL: RGB = (165, 170, 178)
GLASS: RGB = (190, 222, 240)
LEAF: RGB = (70, 150, 60)
GOLD: RGB = (235, 190, 60)
BLUSH: RGB = (240, 150, 150)


@dataclass(frozen=True)
class Part:
    """A filled polygon, or with `width` > 0 a stroke along the points."""

    points: tuple[Point, ...]
    rgb: RGB
    width: float = 0.0


class Sketch:
    """Records a thing's parts. x runs right, y runs down, both over about 0..1.

    `main` is the colour that the thing is called by; `dark`, `light` and `pale` are shades of it;
    `rng` makes each specimen a little different; `facts` are what can be read from it.
    """

    def __init__(self, colour: str, rng: random.Random) -> None:
        self.rng = rng
        self.main = colour_rgb(colour, rng)
        self.dark = mixed(self.main, (0, 0, 0), 0.3)
        self.light = mixed(self.main, (255, 255, 255), 0.35)
        self.pale = mixed(self.main, (255, 255, 255), 0.7)
        self.parts: list[Part] = []
        self.facts: dict[str, int] = {}

    def any(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def maybe(self, chance: float = 0.5) -> bool:
        return self.rng.random() < chance

    def accent(self) -> RGB:
        """Some other colour, for what does not name the thing."""
        while True:
            rgb = colour_rgb(self.rng.choice(list(COLOURS)), self.rng)
            if sum(abs(a - b) for a, b in zip(rgb, self.main, strict=True)) > 150:
                return rgb

    def poly(self, *points: Point, c: RGB | None = None) -> None:
        self.parts.append(Part(points, c or self.main))

    def line(self, *points: Point, c: RGB | None = None, w: float = 0.05) -> None:
        self.parts.append(Part(points, c or self.main, w))

    def oval(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float | None = None,
        c: RGB | None = None,
        start: float = 0.0,
        end: float = 360.0,
    ) -> None:
        """An ellipse around (x, y), or its sector's arc closed by a chord (degrees, clockwise
        from the right).
        """
        self.poly(*arc(x, y, rx, ry or rx, start, end), c=c)

    def hoop(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float | None = None,
        c: RGB | None = None,
        w: float = 0.05,
        start: float = 0.0,
        end: float = 360.0,
    ) -> None:
        """The same as a stroke."""
        self.line(*arc(x, y, rx, ry or rx, start, end), c=c, w=w)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, c: RGB | None = None, r: float = 0.0
    ) -> None:
        """A rectangle with corners rounded by `r`."""
        if r <= 0:
            self.poly((x0, y0), (x1, y0), (x1, y1), (x0, y1), c=c)
            return
        corners = (
            (x1 - r, y1 - r, 0),
            (x0 + r, y1 - r, 90),
            (x0 + r, y0 + r, 180),
            (x1 - r, y0 + r, 270),
        )
        self.poly(*(p for x, y, a in corners for p in arc(x, y, r, r, a, a + 90, 4)), c=c)

    def smooth(self, *points: Point, c: RGB | None = None) -> None:
        """A closed curve through the points (Catmull-Rom)."""
        self.poly(*curve(points), c=c)

    def eye(self, x: float, y: float, r: float = 0.03) -> None:
        if self.maybe(0.4):
            self.oval(x, y, r * 1.6, c=WHITE)
        self.oval(x, y, r, c=INK)


def arc(
    x: float, y: float, rx: float, ry: float, start: float, end: float, steps: int = 0
) -> list[Point]:
    steps = steps or max(5, round(abs(end - start) / 15))
    turns = (math.radians(start + (end - start) * k / steps) for k in range(steps + 1))
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]


def curve(points: Sequence[Point], steps: int = 5) -> list[Point]:
    """Points on the closed Catmull-Rom spline through `points`."""
    count, found = len(points), []
    for k in range(count):
        p0, p1, p2, p3 = (points[(k + d) % count] for d in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            a, b = t * (t * (2 - t) - 1) / 2, (t * t * (3 * t - 5) + 2) / 2
            c, d = t * (t * (4 - 3 * t) + 1) / 2, t * t * (t - 1) / 2
            found.append(
                (
                    a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0],
                    a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1],
                )
            )
    return found


Draw = Callable[[Sketch], None]


@dataclass(frozen=True)
class Thing:
    """A kind of thing: its drawing, its colours, what sort it is, how far it may lean."""

    draw: Draw
    colours: tuple[str, ...]
    sort: str
    lean: float
    flips: bool


MADE_COLOURS = tuple(COLOURS)


class Shelf(dict[str, Thing]):
    """The things of a module, by name; `shelf.add(...)` decorates their drawings."""

    def add(
        self, sort: str, colours: str = "", lean: float = 6.0, flips: bool = True
    ) -> Callable[[Draw], Draw]:
        """`colours` in words ("red green"), every colour when empty; `lean` in degrees."""

        def keep(draw: Draw) -> Draw:
            name = draw.__name__.replace("_", " ")
            self[name] = Thing(draw, tuple(colours.split()) or MADE_COLOURS, sort, lean, flips)
            return draw

        return keep


def bounds(parts: Iterable[Part]) -> Box:
    """(left, top, right, bottom) of everything drawn, strokes with their width."""
    boxes = []
    for part in parts:
        xs, ys = zip(*part.points, strict=True)
        half = part.width / 2
        boxes.append((min(xs) - half, min(ys) - half, max(xs) + half, max(ys) + half))
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


@dataclass(frozen=True)
class Specimen:
    """One drawing of a thing: parts in a box of `wide` x `high` at (0, 0), the longer being 1."""

    parts: tuple[Part, ...]
    wide: float
    high: float
    main: RGB
    facts: dict[str, int]


def specimen(thing: Thing, colour: str, rng: random.Random) -> Specimen:
    """Draw a thing anew: leaned, perhaps turned round, in its own proportions."""
    sketch = Sketch(colour, rng)
    thing.draw(sketch)
    turn = math.radians(rng.gauss(0, thing.lean / 2))
    cos, sin, way = math.cos(turn), math.sin(turn), -1 if thing.flips and rng.random() < 0.5 else 1
    wide = rng.uniform(0.92, 1.08)

    def turned(point: Point) -> Point:
        x, y = (point[0] - 0.5) * way * wide, point[1] - 0.5
        return x * cos - y * sin, x * sin + y * cos

    parts = [Part(tuple(map(turned, p.points)), p.rgb, p.width) for p in sketch.parts]
    left, top, right, bottom = bounds(parts)
    long = max(right - left, bottom - top)
    parts = [
        Part(
            tuple(((x - left) / long, (y - top) / long) for x, y in p.points), p.rgb, p.width / long
        )
        for p in parts
    ]
    return Specimen(
        tuple(parts), (right - left) / long, (bottom - top) / long, sketch.main, sketch.facts
    )


def set_down(
    canvas: Canvas,
    parts: Iterable[Part],
    x: float,
    y: float,
    scale: float,
    contour: float = 0.0,
    ink: RGB = INK,
) -> None:
    """Draw parts at pixel (x, y); with `contour` > 0 each has an edge so wide (pixels)."""
    for part in parts:
        points = [(x + px * scale, y + py * scale) for px, py in part.points]
        if part.width:
            wide = part.width * scale
            if contour and wide > 2.5 * contour:
                canvas.line(points, ink, wide + contour)
            canvas.line(points, part.rgb, wide)
        else:
            canvas.polygon(points, part.rgb)
            if contour:
                canvas.outlined(points, ink, contour)
