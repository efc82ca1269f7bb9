"""The shapes room: coloured shapes, scattered, in grids, rows and towers, or overlapping."""

import math
import random
from dataclasses import dataclass
from typing import Any

from PIL import Image

from finetune.pretrain.world.drawing.paint import (
    COLOURS,
    Canvas,
    background,
    background_rgb,
    colour_rgb,
    picture_size,
    to_rgb,
)
from finetune.pretrain.world.objects.questions import ask_about_objects
from finetune.pretrain.world.scene import FILLS, QA, Box, Item, Scene, Size, Split, to_fractions
from finetune.pretrain.world.wording.false_premises import false_premise
from finetune.pretrain.world.wording.references import Vocabulary

KINDS = (
    "circle",
    "rectangle",
    "triangle",
    "star",
    "heart",
    "cross",
    "hexagon",
    "ring",
    "crescent",
    "arrow",
    "diamond",
    "semicircle",
)

# Never drawn in training: a test of whether the model composes a known colour and a known kind.
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "star"),
        ("blue", "heart"),
        ("green", "cross"),
        ("yellow", "hexagon"),
        ("purple", "crescent"),
        ("orange", "diamond"),
        ("pink", "arrow"),
        ("white", "ring"),
        ("brown", "semicircle"),
        ("black", "star"),
        ("gray", "heart"),
        ("teal", "diamond"),
    }
)

Points = list[tuple[float, float]]


def outline(kind: str, rng: random.Random) -> Points:
    """Return the polygon of a shape around (0, 0) with radius 1, with random proportions.

    Raises:
        KeyError: There is no such kind.
    """

    def arc(start: float, end: float, radius: float = 1.0, n: int = 36, dx: float = 0) -> Points:
        steps = [start + (end - start) * k / n for k in range(n + 1)]
        return [(dx + radius * math.cos(a), radius * math.sin(a)) for a in steps]

    if kind == "circle":
        return arc(0, math.tau)
    if kind == "rectangle":
        tall = rng.uniform(0.45, 1) if rng.random() < 0.6 else rng.uniform(0.9, 1)
        return [(-1, -tall), (1, -tall), (1, tall), (-1, tall)]
    if kind == "triangle":
        if rng.random() < 0.5:
            return [(-0.9, 0.75), (0.9, 0.75), (rng.uniform(-0.25, 0.25), -rng.uniform(0.7, 1))]
        return [
            (-1, 0.7),
            (rng.uniform(0.7, 1), rng.uniform(0.4, 0.8)),
            (rng.uniform(-0.9, 0.9), -rng.uniform(0.6, 1)),
        ]
    if kind == "star":
        inner, points = rng.uniform(0.36, 0.5), rng.choice((5, 5, 5, 6))
        angles = [math.pi * k / points - math.pi / 2 for k in range(2 * points)]
        radii = [inner if k % 2 else 1 for k in range(2 * points)]
        return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    if kind == "heart":
        turns = [math.tau * k / 40 for k in range(40)]
        return [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 16,
            )
            for t in turns
        ]
    if kind == "cross":
        w = rng.uniform(0.26, 0.4)
        quarter = [(w, -1), (w, -w), (1, -w)]
        turned = []
        for _ in range(4):
            turned += quarter
            quarter = [(-y, x) for x, y in quarter]
        return turned
    if kind == "hexagon":
        return [(math.cos(math.tau * k / 6), math.sin(math.tau * k / 6)) for k in range(6)]
    if kind == "ring":
        return arc(0, math.tau) + arc(math.tau, 0, rng.uniform(0.5, 0.66))
    if kind == "crescent":
        return arc(0.3 * math.pi, 1.7 * math.pi) + arc(
            1.555 * math.pi, 0.445 * math.pi, 0.82, dx=0.73
        )
    if kind == "arrow":
        w, neck = rng.uniform(0.18, 0.3), rng.uniform(-0.1, 0.3)
        return [(-1, -w), (neck, -w), (neck, -0.72), (1, 0), (neck, 0.72), (neck, w), (-1, w)]
    if kind == "diamond":
        wide = rng.uniform(0.5, 0.7)
        return [(0, -1), (wide, 0), (0, 1), (-wide, 0)]
    if kind == "semicircle":
        return [(x, y + 0.45) for x, y in arc(math.pi, math.tau)]
    raise KeyError(kind)


def rotation(kind: str, rng: random.Random) -> float:
    """Return a random rotation in radians under which the shape keeps its name."""
    if kind in ("triangle", "star", "hexagon", "arrow", "crescent", "semicircle"):
        return rng.uniform(0, math.tau)
    if kind == "diamond":
        return rng.uniform(-0.12, 0.12)
    if kind == "rectangle":
        upright = rng.choice((0, math.pi / 2))
        return upright + (rng.gauss(0, 0.16) if rng.random() < 0.5 else 0)
    return rng.gauss(0, 0.15)


@dataclass(frozen=True)
class Spec:
    """What an object is, before it is placed."""

    kind: str
    colour: str
    fill: str


def place(spec: Spec, x: float, y: float, radius: float, size: Size, rng: random.Random) -> Item:
    """Return the item at pixel (x, y), with the polygon that is drawn and the box around it."""
    turn = rotation(spec.kind, rng)
    cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
    points = [
        (x + px * cos - py * sin, y + px * sin + py * cos) for px, py in outline(spec.kind, rng)
    ]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    box = to_fractions((min(xs), min(ys), max(xs), max(ys)), size)
    extent = max(box[2] - box[0], box[3] - box[1])
    word = "small" if extent < 0.19 else "big" if extent > 0.27 else ""
    extra = {"points": points, "rgb": colour_rgb(spec.colour, rng)}
    return Item(spec.kind, box, spec.colour, word, spec.fill, extra=extra)


def choose(count: int, rng: random.Random, split: Split) -> list[Spec]:
    """Choose `count` objects with so much in common that counts and comparisons are not trivial."""

    def allowed(colour: str, kind: str) -> bool:
        return split == "test" or (colour, kind) not in HELD_OUT_PAIRS

    def fresh() -> Spec:
        while True:
            kind, colour = rng.choice(kinds), rng.choice(colours)
            if allowed(colour, kind):
                return Spec(kind, colour, "solid" if kind == "ring" else rng.choice(fills))
            kinds.append(rng.choice(KINDS))  # the choice may consist of held-out pairs only

    kinds = rng.sample(KINDS, rng.randint(1, min(len(KINDS), count + 1)))
    colours = rng.sample(list(COLOURS), rng.randint(1, min(len(COLOURS), count + 1)))
    fills = ("solid",) if rng.random() < 0.6 else FILLS
    if count < 3 or rng.random() > 0.15:
        return [fresh() for _ in range(count)]
    first = fresh()  # one object differs from the others in kind or colour only
    others = [Spec(k, first.colour, "solid") for k in KINDS if k != first.kind]
    if rng.random() < 0.5:
        others = [Spec(first.kind, c, "solid") for c in COLOURS if c != first.colour]
    first = Spec(first.kind, first.colour, "solid")
    odd = rng.choice([o for o in others if allowed(o.colour, o.kind)])
    specs = [first] * (count - 1) + [odd]
    rng.shuffle(specs)
    return specs


def scattered(
    specs: list[Spec],
    area: Box,
    size: Size,
    radii: tuple[float, float],
    rng: random.Random,
    touch: float = 1.08,
) -> list[Item]:
    """Place objects at free spots of a pixel area and leave out those for which there is none.

    Args:
        specs: The objects.
        area: Where to place them, in pixels.
        size: The size of the picture.
        radii: The range of radii, as shares of the area's shorter side.
        rng: The source of randomness.
        touch: The least distance between objects, as a multiple of the sum of their radii.
    """
    side = min(area[2] - area[0], area[3] - area[1])
    two_sizes = rng.random() < 0.5
    taken: list[tuple[float, float, float]] = []
    items = []
    for spec in specs:
        share = rng.choice(radii) * rng.uniform(0.9, 1.1) if two_sizes else rng.uniform(*radii)
        radius = share * side
        for _ in range(30):
            x = rng.uniform(area[0] + radius, area[2] - radius)
            y = rng.uniform(area[1] + radius, area[3] - radius)
            if all(math.hypot(x - tx, y - ty) > touch * (radius + tr) for tx, ty, tr in taken):
                taken.append((x, y, radius))
                items.append(place(spec, x, y, radius, size, rng))
                break
            radius = max(radii[0] * side, radius * 0.95)
    return items


def lattice(
    specs: list[Spec], rows: int, columns: int, size: Size, rng: random.Random
) -> list[Item]:
    """Place objects in the cells of a grid, row by row."""
    cell = min(size[0] / columns, size[1] / rows)
    tight = rng.random() < 0.3  # objects of a tower or a row may be close together
    wide, high = (cell, cell) if tight else (size[0] / columns, size[1] / rows)
    left, top = (size[0] - wide * columns) / 2, (size[1] - high * rows) / 2
    radius = cell * rng.uniform(0.3, 0.44)
    items = []
    for k, spec in enumerate(specs):
        x = left + wide * (k % columns + 0.5) + rng.uniform(-0.04, 0.04) * wide
        y = top + high * (k // columns + 0.5) + rng.uniform(-0.04, 0.04) * high
        items.append(place(spec, x, y, radius * rng.uniform(0.9, 1.08), size, rng))
    return items


def overlapping(specs: list[Spec], size: Size, rng: random.Random) -> list[Item]:
    """Place a chain of big objects, each covering a part of the previous one."""
    side = min(size)
    x, y = size[0] * rng.uniform(0.3, 0.45), size[1] * rng.uniform(0.3, 0.7)
    items = []
    for spec in specs:
        radius = side * rng.uniform(0.13, 0.2)
        x = min(max(x, radius), size[0] - radius)
        y = min(max(y, radius), size[1] - radius)
        items.append(place(spec, x, y, radius, size, rng))
        turn = rng.uniform(-0.9, 0.9)
        step = radius * rng.uniform(1.15, 1.6)
        x, y = x + step * math.cos(turn), y + step * math.sin(turn)
    return items


class Shapes:
    """The `Room` of shapes."""

    name = "shapes"
    kinds = KINDS
    layouts = ("single", "scattered", "grid", "row", "tower", "overlap", "panels", "crowd")

    def make(self, rng: random.Random, split: Split, layout: str | None = None) -> Scene:
        """Make a scene; `layout` is one of `layouts`, or random if None. See `Room.make`."""
        layout = layout or rng.choices(self.layouts, (12, 44, 8, 7, 7, 7, 6, 9))[0]
        size = width, height = picture_size(rng)
        extra: dict[str, Any] = {}
        whole = (0, 0, width, height)
        if layout == "single":
            items = scattered(choose(1, rng, split), whole, size, (0.14, 0.46), rng)
        elif layout == "scattered":
            count = rng.choices((2, 3, 4, 5, 6, 7, 8), (24, 20, 16, 12, 10, 9, 9))[0]
            radii = (0.07, 0.2 if count < 4 else 0.16)
            items = scattered(choose(count, rng, split), whole, size, radii, rng)
        elif layout == "grid":
            rows, columns = rng.choice(((2, 2), (2, 3), (3, 2), (3, 3)))
            items = lattice(choose(rows * columns, rng, split), rows, columns, size, rng)
        elif layout == "row":
            count = rng.randint(2, 5)
            items = lattice(choose(count, rng, split), 1, count, size, rng)
        elif layout == "tower":
            count = rng.randint(2, 5)
            items = lattice(choose(count, rng, split), count, 1, size, rng)
        elif layout == "overlap":
            items = overlapping(choose(rng.randint(2, 3), rng, split), size, rng)
        elif layout == "panels":
            extra["panels"] = 2
            specs = choose(rng.randint(2, 6), rng, split)
            cut = len(specs) // 2
            half, gap = width / 2, width * 0.02
            halves = (
                (specs[:cut], (0, 0, half - gap, height)),
                (specs[cut:], (half + gap, 0, width, height)),
            )
            items = [
                item
                for part, area in halves
                for item in scattered(part, area, size, (0.15, 0.24), rng)
            ]
        elif layout == "crowd":
            specs = choose(rng.randint(4, 10), rng, split)
            few = specs if rng.random() < 0.3 else [rng.choice(specs[:2]) for _ in specs]
            items = scattered(few, whole, size, (0.07, 0.11), rng)
        else:
            raise KeyError(layout)
        extra["ground"] = background_rgb(rng, [item.extra["rgb"] for item in items])
        return Scene(self.name, layout, width, height, tuple(items), rng.getrandbits(32), extra)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw the scene; see `Room.draw`."""
        rng = random.Random(scene.seed)
        ground = background(scene.width, scene.height, scene.extra["ground"], scene.seed)
        canvas = Canvas(ground)
        if "panels" in scene.extra:
            line = to_rgb(255 - c if abs(c - 128) > 40 else 0 for c in scene.extra["ground"])
            middle = scene.width / 2
            canvas.line([(middle, 0), (middle, scene.height)], line, max(1.0, scene.width * 0.01))
        edge = rng.random() < 0.12  # a thin black outline, as in clip art
        for item in scene.items:
            points, rgb = item.extra["points"], item.extra["rgb"]
            reach = max(item.box[2] - item.box[0], item.box[3] - item.box[1])
            reach *= min(scene.width, scene.height)
            if item.fill == "outlined":
                canvas.outlined(points, rgb, max(1.2, reach * rng.uniform(0.07, 0.11)))
            elif item.fill == "striped":
                canvas.striped(
                    points, rgb, max(3.0, reach * rng.uniform(0.15, 0.22)), rng.randrange(3)
                )
            else:
                canvas.polygon(points, rgb)
                if edge and item.kind != "ring":
                    canvas.outlined(points, (20, 20, 20), max(0.5, reach * 0.012))
        return canvas.finish()

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        words = Vocabulary("shape", KINDS, tuple(COLOURS))
        asked = ask_about_objects(scene, rng, split, words)
        if rng.random() < 0.35:
            asked.append(false_premise("shapes", rng, split))
        return asked


SHAPES = Shapes()
