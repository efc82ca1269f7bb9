"""Sketches of things: parts in a unit square, recorded first and painted into a picture later.

Each kind of thing is a function that draws onto a `Sketch`. The sketch keeps the polygons and
strokes as parts, so that their bounding box is known before the thing is placed.
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
    """A filled polygon, or a stroke along the points where `width` > 0."""

    points: tuple[Point, ...]
    rgb: RGB
    width: float = 0.0


class Sketch:
    """The parts of one thing; x runs right and y down, both over about 0..1.

    `main` is the colour that the thing is named by; `dark`, `light` and `pale` are shades of it.
    `rng` varies each drawing. `facts` holds what can be read off the drawing, such as the hour of
    a clock. In the drawing methods, `c` is a colour (`main` if omitted), `w` the width of a
    stroke and `r` a radius.
    """

    def __init__(self, colour: str, rng: random.Random) -> None:
        self.rng = rng
        self.main = colour_rgb(colour, rng)
        self.dark = mixed(self.main, (0, 0, 0), 0.3)
        self.light = mixed(self.main, (255, 255, 255), 0.35)
        self.pale = mixed(self.main, (255, 255, 255), 0.7)
        self.parts: list[Part] = []
        self.facts: dict[str, int] = {}

    def uniform(self, low: float, high: float) -> float:
        """Return a random number between `low` and `high`."""
        return self.rng.uniform(low, high)

    def maybe(self, probability: float = 0.5) -> bool:
        """Return True with the given probability."""
        return self.rng.random() < probability

    def accent(self) -> RGB:
        """Return a colour that differs clearly from `main`, for details."""
        while True:
            rgb = colour_rgb(self.rng.choice(list(COLOURS)), self.rng)
            if sum(abs(a - b) for a, b in zip(rgb, self.main, strict=True)) > 150:
                return rgb

    def poly(self, *points: Point, c: RGB | None = None) -> None:
        """Add a filled polygon."""
        self.parts.append(Part(points, c or self.main))

    def line(self, *points: Point, c: RGB | None = None, w: float = 0.05) -> None:
        """Add a stroke through the points."""
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
        """Add a filled ellipse around (x, y), or the segment between two angles.

        Angles are in degrees, clockwise from the right.
        """
        self.poly(*arc(x, y, rx, ry or rx, start, end), c=c)

    def ring(
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
        """Add a stroke along an ellipse or along a part of it; arguments as for `oval`."""
        self.line(*arc(x, y, rx, ry or rx, start, end), c=c, w=w)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, c: RGB | None = None, r: float = 0.0
    ) -> None:
        """Add a filled rectangle with corners rounded by `r`."""
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
        """Add a filled closed curve through the points."""
        self.poly(*closed_curve(points), c=c)

    def eye(self, x: float, y: float, r: float = 0.03) -> None:
        """Add an animal's eye, sometimes with the white around it."""
        if self.maybe(0.4):
            self.oval(x, y, r * 1.6, c=WHITE)
        self.oval(x, y, r, c=INK)


def arc(
    x: float, y: float, rx: float, ry: float, start: float, end: float, steps: int = 0
) -> list[Point]:
    """Return points along an ellipse between two angles, in degrees clockwise from the right."""
    steps = steps or max(5, round(abs(end - start) / 15))
    turns = (math.radians(start + (end - start) * k / steps) for k in range(steps + 1))
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]


def catmull_rom(p0: Point, p1: Point, p2: Point, p3: Point, t: float) -> Point:
    """Return the point at `t` (0..1) of a Catmull-Rom spline's segment from `p1` to `p2`."""
    a, b = t * (t * (2 - t) - 1) / 2, (t * t * (3 * t - 5) + 2) / 2
    c, d = t * (t * (4 - 3 * t) + 1) / 2, t * t * (t - 1) / 2
    return (
        a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0],
        a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1],
    )


def closed_curve(points: Sequence[Point], steps: int = 5) -> list[Point]:
    """Return points along the closed Catmull-Rom spline through `points`."""
    count, found = len(points), []
    for k in range(count):
        p0, p1, p2, p3 = (points[(k + d) % count] for d in (-1, 0, 1, 2))
        found += [catmull_rom(p0, p1, p2, p3, step / steps) for step in range(steps)]
    return found


DrawThing = Callable[[Sketch], None]


@dataclass(frozen=True)
class Thing:
    """A kind of thing: how it is drawn and which variations are allowed.

    `category` is "animal", "fruit", "tool", ...; `lean` is about how far it may tilt, in degrees;
    `flips` says whether it may be mirrored.
    """

    draw: DrawThing
    colours: tuple[str, ...]
    category: str
    lean: float
    flips: bool


class DrawingRegistry(dict[str, Thing]):
    """Things by name; `register` decorates the functions that draw them."""

    def register(
        self, category: str, colours: str = "", lean: float = 6.0, flips: bool = True
    ) -> Callable[[DrawThing], DrawThing]:
        """Return a decorator that adds a thing under its function's name.

        Args:
            category: What sort of thing it is.
            colours: The names of its colours, separated by spaces; all colours if empty.
            lean: About how far it may tilt, in degrees.
            flips: Whether it may be mirrored.
        """

        def add(draw: DrawThing) -> DrawThing:
            name = draw.__name__.replace("_", " ")
            self[name] = Thing(
                draw, tuple(colours.split()) or tuple(COLOURS), category, lean, flips
            )
            return draw

        return add


def bounds(parts: Iterable[Part]) -> Box:
    """Return the box (left, top, right, bottom) around all parts, including stroke widths."""
    boxes = []
    for part in parts:
        xs, ys = zip(*part.points, strict=True)
        half = part.width / 2
        boxes.append((min(xs) - half, min(ys) - half, max(xs) + half, max(ys) + half))
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


@dataclass(frozen=True)
class ThingDrawing:
    """One drawing of a thing: parts in a box of `width` x `height` at (0, 0), the longer being 1.

    `main` and `facts` are those of the `Sketch`.
    """

    parts: tuple[Part, ...]
    width: float
    height: float
    main: RGB
    facts: dict[str, int]


def draw_thing(thing: Thing, colour: str, rng: random.Random) -> ThingDrawing:
    """Draw a thing with random tilt, mirroring and proportions."""
    sketch = Sketch(colour, rng)
    thing.draw(sketch)
    turn = math.radians(rng.gauss(0, thing.lean / 2))
    cos, sin = math.cos(turn), math.sin(turn)
    mirror = -1 if thing.flips and rng.random() < 0.5 else 1
    stretch = rng.uniform(0.92, 1.08)

    def turned(point: Point) -> Point:
        x, y = (point[0] - 0.5) * mirror * stretch, point[1] - 0.5
        return x * cos - y * sin, x * sin + y * cos

    parts = [Part(tuple(map(turned, p.points)), p.rgb, p.width) for p in sketch.parts]
    left, top, right, bottom = bounds(parts)
    longer = max(right - left, bottom - top)
    parts = [
        Part(
            tuple(((x - left) / longer, (y - top) / longer) for x, y in p.points),
            p.rgb,
            p.width / longer,
        )
        for p in parts
    ]
    width, height = (right - left) / longer, (bottom - top) / longer
    return ThingDrawing(tuple(parts), width, height, sketch.main, sketch.facts)


def paint_parts(
    canvas: Canvas,
    parts: Iterable[Part],
    x: float,
    y: float,
    scale: float,
    contour: float = 0.0,
    ink: RGB = INK,
) -> None:
    """Paint parts onto a canvas.

    Args:
        canvas: Where to paint.
        parts: What to paint.
        x: The pixel column of the parts' origin.
        y: The pixel row of the parts' origin.
        scale: Pixels per unit of the parts.
        contour: The width of an outline around each part, in pixels; 0 for none.
        ink: The outline's colour.
    """
    for part in parts:
        points = [(x + px * scale, y + py * scale) for px, py in part.points]
        if part.width:
            width = part.width * scale
            if contour and width > 2.5 * contour:
                canvas.line(points, ink, width + contour)
            canvas.line(points, part.rgb, width)
        else:
            canvas.polygon(points, part.rgb)
            if contour:
                canvas.outlined(points, ink, contour)
