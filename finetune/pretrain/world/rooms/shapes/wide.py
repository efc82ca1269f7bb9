"""The wide shapes room: more kinds of shapes, thin outlines, and pictures of up to 4:1.

It is for encoders that pad pictures to a square and so preserve proportions: unlike in the shapes
room, a square is not called a rectangle, nor a circle an ellipse.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

from PIL import Image

from finetune.pretrain.world.drawing.agg import AggCanvas
from finetune.pretrain.world.drawing.paint import (
    COLOURS,
    Canvas,
    background,
    background_rgb,
    colour_rgb,
)
from finetune.pretrain.world.objects.questions import ask_about_objects
from finetune.pretrain.world.rooms.photos.backgrounds import (
    choose_background_photo,
    photo_background,
)
from finetune.pretrain.world.rooms.photos.store import PhotoStore
from finetune.pretrain.world.rooms.shapes import room as plain
from finetune.pretrain.world.rooms.shapes.room import HELD_OUT_PAIRS, KINDS, Points, Spec
from finetune.pretrain.world.scene import QA, Box, Item, Scene, Split
from finetune.pretrain.world.wording.references import Vocabulary

MORE_KINDS = (
    "square",
    "ellipse",
    "rounded square",
    "rounded rectangle",
    "pentagon",
    "octagon",
    "trapezoid",
    "parallelogram",
)
WIDE_KINDS = (*KINDS, *MORE_KINDS)
MORE_HELD_OUT_PAIRS = frozenset(
    {("red", "ellipse"), ("blue", "pentagon"), ("green", "trapezoid"), ("orange", "square")}
)
_SPECIAL_CASES = {
    "rectangle": {"square", "rounded rectangle", "rounded square"},
    "rounded rectangle": {"rounded square"},
    "square": {"rounded square"},
    "ellipse": {"circle"},
    "parallelogram": {"rectangle", "square", "diamond"},
}
LONGEST = (160, 224, 320)
"""The longer sides of pictures, in pixels; `degradation` rescales some to other sizes."""

Cell = tuple[float, float, float]
"""The place of an object: centre x, centre y and radius, in pixels."""


def _rounded(half_width: float, half_height: float, corner: float) -> Points:
    """Return a rectangle around (0, 0) whose corners are quarter circles."""
    centres = ((1, 1, 0), (-1, 1, 1), (-1, -1, 2), (1, -1, 3))
    return [
        (
            sx * (half_width - corner) + corner * math.cos(math.pi / 2 * (turn + k / 8)),
            sy * (half_height - corner) + corner * math.sin(math.pi / 2 * (turn + k / 8)),
        )
        for sx, sy, turn in centres
        for k in range(9)
    ]


def _regular(corners: int) -> Points:
    steps = [math.tau * k / corners - math.pi / 2 for k in range(corners)]
    return [(math.cos(a), math.sin(a)) for a in steps]


def outline(kind: str, rng: random.Random) -> Points:
    """Return the polygon of a shape around (0, 0), with a radius of about 1."""
    if kind == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if kind == "rectangle":
        tall = rng.uniform(0.3, 0.8)
        return [(-1, -tall), (1, -tall), (1, tall), (-1, tall)]
    if kind == "ellipse":
        tall = rng.uniform(0.35, 0.78)
        steps = [math.tau * k / 48 for k in range(48)]
        return [(math.cos(a), tall * math.sin(a)) for a in steps]
    if kind == "rounded square":
        return _rounded(0.9, 0.9, rng.uniform(0.2, 0.45))
    if kind == "rounded rectangle":
        tall = rng.uniform(0.35, 0.75)
        return _rounded(1, tall, tall * rng.uniform(0.25, 0.9))
    if kind == "pentagon":
        return _regular(5)
    if kind == "octagon":
        return _regular(8)
    if kind == "trapezoid":
        top, tall = rng.uniform(0.4, 0.65), rng.uniform(0.5, 0.8)
        return [(-top, -tall), (top, -tall), (1, tall), (-1, tall)]
    if kind == "parallelogram":
        slant, tall = rng.uniform(0.3, 0.5), rng.uniform(0.4, 0.65)
        return [(-1 + slant, -tall), (1, -tall), (1 - slant, tall), (-1, tall)]
    return plain.outline(kind, rng)


def rotation(kind: str, rng: random.Random) -> float:
    """Return a random rotation in radians after which people still call the shape by its name."""
    slight = rng.gauss(0, 0.12) if rng.random() < 0.4 else 0.0
    if kind in ("square", "rounded square", "octagon", "trapezoid", "parallelogram"):
        return slight
    if kind in ("rectangle", "rounded rectangle"):
        return rng.choice((0, math.pi / 2)) + slight
    if kind == "ellipse":
        return rng.choice((0, math.pi / 2, rng.uniform(0, math.pi)))
    if kind == "pentagon":
        return rng.uniform(0, math.tau) if rng.random() < 0.3 else slight
    return plain.rotation(kind, rng)


def place_shape(spec: Spec, cell: Cell, size: tuple[int, int], rng: random.Random) -> Item:
    """Return the item of a shape in its cell, with its polygon and its measured box."""
    x, y, radius = cell
    turn = rotation(spec.kind, rng)
    cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
    points = [
        (x + px * cos - py * sin, y + px * sin + py * cos) for px, py in outline(spec.kind, rng)
    ]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    box: Box = (min(xs) / size[0], min(ys) / size[1], max(xs) / size[0], max(ys) / size[1])
    extent = max(max(xs) - min(xs), max(ys) - min(ys)) / max(size)
    word = "small" if extent < 0.19 else "big" if extent > 0.27 else ""
    extra = {"points": points, "rgb": colour_rgb(spec.colour, rng)}
    return Item(spec.kind, box, spec.colour, word, spec.fill, extra=extra)


def choose_specs(count: int, rng: random.Random, split: Split) -> list[Spec]:
    """Choose `count` objects of a few kinds and colours, so that some have things in common."""
    kinds = rng.sample(WIDE_KINDS, rng.randint(1, count + 1))
    colours = rng.sample(list(COLOURS), min(len(COLOURS), rng.randint(1, count + 1)))
    fills = rng.choices((("solid",), ("outlined",), plain.FILLS), (6, 1, 3))[0]
    found: list[Spec] = []
    while len(found) < count:
        kind, colour = rng.choice(kinds), rng.choice(colours)
        if split == "train" and (colour, kind) in HELD_OUT_PAIRS | MORE_HELD_OUT_PAIRS:
            kinds.append(rng.choice(WIDE_KINDS))  # the choice may consist of held-out pairs only
            continue
        found.append(Spec(kind, colour, "solid" if kind == "ring" else rng.choice(fills)))
    return found


def picture_size(rng: random.Random) -> tuple[int, int]:
    """Return a random size: half are square, the others between 1:4 and 4:1."""
    longest = rng.choice(LONGEST)
    if rng.random() < 0.5:
        return longest, longest
    shorter = round(longest / 4 ** rng.random())
    return (longest, shorter) if rng.random() < 0.5 else (shorter, longest)


def grid_cells(count: int, size: tuple[int, int], rng: random.Random) -> list[Cell]:
    """Return the cells of a grid, row by row, with or without gaps."""
    columns = rng.choice([k for k in range(1, count + 1) if count % k == 0])
    rows = count // columns
    wide, high = size[0] / columns, size[1] / rows
    radius = min(wide, high) * rng.choice((0.5, 0.46, rng.uniform(0.28, 0.42)))
    return [(wide * (k % columns + 0.5), high * (k // columns + 0.5), radius) for k in range(count)]


def free_cells(
    count: int, size: tuple[int, int], rng: random.Random, apart: float = 1.05
) -> list[Cell]:
    """Return up to `count` random cells.

    The distance of two cells is at least `apart` times the sum of their radii, so that cells may
    overlap if `apart` is below 1.
    """
    side = min(size)
    roomy = (max(size) / side) ** 0.5
    most = {1: 0.46, 2: 0.3, 3: 0.24, 4: 0.2}.get(count, 0.15) * min(roomy, 1.6)
    taken: list[Cell] = []
    for _ in range(count):
        radius = min(0.48, rng.uniform(0.05, most)) * side
        for _ in range(30):
            x = rng.uniform(radius, size[0] - radius)
            y = rng.uniform(radius, size[1] - radius)
            if all(math.hypot(x - a, y - b) > apart * (radius + r) for a, b, r in taken):
                taken.append((x, y, radius))
                break
            radius = max(0.05 * side, radius * 0.93)
    return taken


@dataclass(frozen=True)
class WideShapes:
    """The `Room` of wide shapes; some photographs are used as backgrounds, if there are any."""

    photos: PhotoStore | None = None
    name = "wide shapes"
    kinds = WIDE_KINDS

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Make a random scene."""
        size = width, height = picture_size(rng)
        layout = rng.choices(("scattered", "grid", "overlap"), (7, 2, 1))[0]
        count = rng.choices(range(1, 11), (22, 18, 14, 11, 9, 8, 6, 5, 4, 3))[0]
        if layout == "grid":
            cells = grid_cells(rng.choice((2, 3, 4, 4, 6, 6, 9, 9, 12, 16)), size, rng)
        elif layout == "overlap":
            cells = free_cells(min(count, 4), size, rng, apart=0.75)
        else:
            cells = free_cells(count, size, rng)
        specs = choose_specs(len(cells), rng, split)
        items = [
            place_shape(spec, cell, size, rng) for spec, cell in zip(specs, cells, strict=True)
        ]
        colours = [item.extra["rgb"] for item in items]
        extra: dict[str, Any] = {"ground": background_rgb(rng, colours)}
        if self.photos and rng.random() < 0.15:
            extra["photo"] = choose_background_photo(self.photos, colours, rng, split)
        return Scene(self.name, layout, width, height, tuple(items), rng.getrandbits(32), extra)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw a scene in RGB."""
        rng = random.Random(scene.seed)
        size, photo = (scene.width, scene.height), scene.extra.get("photo")
        if self.photos and photo is not None:
            picture = photo_background(self.photos, photo, size, scene.seed)
        else:
            picture = background(*size, scene.extra["ground"], scene.seed)
        # A third of the pictures without stripes is drawn by matplotlib's renderer.
        by_agg = rng.random() < 0.33 and all(item.fill != "striped" for item in scene.items)
        canvas: Canvas | AggCanvas = AggCanvas(picture) if by_agg else Canvas(picture)
        longest = max(scene.width, scene.height)
        thin = rng.random() < 0.4
        contour = rng.random() < 0.12
        for item in scene.items:
            points, rgb = item.extra["points"], item.extra["rgb"]
            xs = [x for x, _ in points]
            ys = [y for _, y in points]
            reach = max(max(xs) - min(xs), max(ys) - min(ys))
            if item.fill == "outlined":
                width = longest * rng.uniform(0.005, 0.015) if thin else reach * 0.09
                canvas.outlined(points, rgb, max(0.8, width))
            elif item.fill == "striped" and isinstance(canvas, Canvas):
                step = max(3.0, reach * rng.uniform(0.15, 0.22))
                canvas.striped(points, rgb, step, rng.randrange(3))
            else:
                canvas.polygon(points, rgb)
                if contour and item.kind != "ring":
                    canvas.outlined(points, (20, 20, 20), max(0.5, reach * 0.012))
        return canvas.finish()

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        shown = {item.kind for item in scene.items}
        # Whether a square is also a rectangle is a matter of opinion, so it is never asked.
        unclear = {kind for kind in WIDE_KINDS if shown & _SPECIAL_CASES.get(kind, set())}
        kinds = tuple(kind for kind in WIDE_KINDS if kind not in unclear - shown)
        return ask_about_objects(scene, rng, split, Vocabulary("shape", kinds, tuple(COLOURS)))


WIDE_SHAPES = WideShapes()


def single(colour: str, kind: str, seed: int) -> Scene:
    """Make a scene of one solid shape in a square picture, for validation and tests."""
    rng = random.Random(f"single-{seed}")
    size = (rng.choice(LONGEST),) * 2
    cell = (size[0] / 2, size[1] / 2, size[0] * rng.uniform(0.15, 0.45))
    item = place_shape(Spec(kind, colour, "solid"), cell, size, rng)
    extra = {"ground": background_rgb(rng, [item.extra["rgb"]])}
    return Scene("wide shapes", "single", *size, (item,), rng.getrandbits(32), extra)


def phrase(fill: str, colour: str, kind: str) -> str:
    """Return a phrase such as "a red square" or "an outlined blue ellipse"."""
    text = f"{colour} {kind}" if fill == "solid" else f"{fill} {colour} {kind}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def caption(scene: Scene) -> str:
    """Return up to four objects in reading order: "a red square, an outlined blue ellipse"."""
    items = sorted(scene.items, key=lambda item: (round(item.centre[1] * 3), item.centre[0]))
    return ", ".join(phrase(item.fill, item.colour, item.kind) for item in items[:4])
