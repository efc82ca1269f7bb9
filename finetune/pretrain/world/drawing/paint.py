"""Colours, backgrounds and anti-aliased drawing, shared by all rooms."""

import random
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

# Anchors of each colour name; a sample is an anchor, or a mix of two, plus a little jitter.
COLOURS: dict[str, tuple[RGB, ...]] = {
    "black": ((0, 0, 0), (25, 25, 28)),
    "gray": ((128, 128, 128), (110, 112, 116), (155, 155, 155)),
    "red": ((255, 0, 0), (215, 20, 25), (235, 45, 45)),
    "green": ((0, 128, 0), (0, 190, 20), (60, 175, 70), (20, 230, 30)),
    "blue": ((0, 0, 255), (30, 70, 215), (25, 25, 170), (50, 110, 250)),
    "yellow": ((255, 255, 0), (250, 220, 30), (240, 240, 60)),
    "teal": ((0, 128, 128), (10, 155, 150), (30, 115, 120)),
    "brown": ((139, 69, 19), (165, 42, 42), (115, 65, 30), (150, 85, 35)),
    "orange": ((255, 140, 0), (250, 155, 40), (240, 120, 15)),
    "purple": ((128, 0, 128), (135, 45, 190), (105, 30, 150)),
    "pink": ((255, 150, 190), (255, 105, 180), (255, 185, 205)),
    "white": ((255, 255, 255), (246, 247, 248)),
}


def colour_rgb(name: str, rng: random.Random, jitter: int = 12) -> RGB:
    """A shade that people would call `name`. Raises KeyError for an unknown name."""
    first, second = rng.choice(COLOURS[name]), rng.choice(COLOURS[name])
    mix = rng.random()
    return tuple(
        min(255, max(0, round(a * mix + b * (1 - mix) + rng.uniform(-jitter, jitter))))
        for a, b in zip(first, second, strict=True)
    )


def far_enough(rgb: RGB, others: Iterable[RGB], least: float = 85.0) -> bool:
    """Whether `rgb` stands out from all `others` (Euclidean distance in RGB)."""
    return all(sum((a - b) ** 2 for a, b in zip(rgb, o, strict=True)) >= least**2 for o in others)


def ground_rgb(rng: random.Random, items: Sequence[RGB]) -> RGB:
    """A background colour that all `items` stand out from: mostly pale, as pictures are."""
    for least in (85.0, 85.0, 60.0, 40.0, 0.0):
        for _ in range(12):
            roll = rng.random()
            if roll < 0.6:
                tone, spread = rng.randint(215, 255), 18
            elif roll < 0.78:
                tone, spread = rng.randint(0, 60), 25
            else:
                tone, spread = rng.randint(60, 215), 60
            rgb = tuple(min(255, max(0, tone + rng.randint(-spread, spread))) for _ in range(3))
            if far_enough(rgb, items, least):
                return rgb
    raise AssertionError("the last round accepts anything")


def background(width: int, height: int, base: RGB, seed: int) -> Image.Image:
    """A plain, gradient, textured or noisy ground around `base`; the same for the same seed."""
    rng = random.Random(seed)
    style = rng.choices(("plain", "gradient", "texture", "noise"), (5, 2, 2, 2))[0]
    if style == "plain":
        return Image.new("RGB", (width, height), base)
    if style == "gradient":
        shift = [rng.randint(-28, 28) for _ in range(3)]
        tip = tuple(min(255, max(0, c + s)) for c, s in zip(base, shift, strict=True))
        ramp = rng.choice((Image.linear_gradient, Image.radial_gradient))("L")
        ramp = ramp.rotate(rng.choice((0, 90, 180, 270))).resize((width, height))
        grounds = (Image.new("RGB", (width, height), rgb) for rgb in (tip, base))
        return Image.composite(*grounds, ramp)
    if style == "texture":
        picture = Image.new("RGB", (width, height), base)
        pen = ImageDraw.Draw(picture)
        shade = tuple(min(255, max(0, c + rng.choice((-12, -8, 8, 12)))) for c in base)
        step, slope = rng.randint(5, 22), rng.choice((0, 0.5, 1, -1))
        if rng.random() < 0.5:
            for x in range(-height, width + height, step):
                pen.line((x, 0, x + slope * height, height), fill=shade)
        else:
            for x in range(0, width, step):
                for y in range(0, height, step):
                    pen.point((x, y), fill=shade)
        return picture
    noise = np.random.default_rng(seed)
    grain = noise.normal(0, rng.uniform(2, 11), (height, width, rng.choice((1, 3))))
    return Image.fromarray((np.asarray(base) + grain).clip(0, 255).astype(np.uint8))


class Canvas:
    """A picture drawn at `scale` times its size and reduced at the end: anti-aliasing.

    All coordinates are pixels of the final picture.
    """

    def __init__(self, ground: Image.Image) -> None:
        self.scale = 3 if max(ground.size) <= 224 else 2
        big = (ground.width * self.scale, ground.height * self.scale)
        self.image = ground.resize(big, Image.Resampling.NEAREST)
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points: Points, rgb: RGB) -> None:
        self.pen.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=rgb)

    def line(self, points: Points, rgb: RGB, width: float) -> None:
        big = [(x * self.scale, y * self.scale) for x, y in points]
        self.pen.line(big, fill=rgb, width=max(1, round(width * self.scale)), joint="curve")

    def ellipse(
        self,
        box: tuple[float, float, float, float],
        rgb: RGB | None,
        edge: RGB | None = None,
        width: float = 0,
    ) -> None:
        big = [v * self.scale for v in box]
        self.pen.ellipse(big, fill=rgb, outline=edge, width=round(width * self.scale))

    def rectangle(
        self,
        box: tuple[float, float, float, float],
        rgb: RGB | None,
        edge: RGB | None = None,
        width: float = 0,
        radius: float = 0,
    ) -> None:
        big = [v * self.scale for v in box]
        self.pen.rounded_rectangle(
            big, radius * self.scale, fill=rgb, outline=edge, width=round(width * self.scale)
        )

    def outlined(self, points: Points, rgb: RGB, width: float) -> None:
        """The closed outline of a polygon, `width` pixels thick."""
        points = list(points)
        self.line([*points, points[0], points[1]], rgb, width)

    def striped(self, points: Points, rgb: RGB, step: float, slant: int) -> None:
        """A polygon filled with stripes (`slant`: 0 flat, 1 upright, 2 diagonal) and edged."""
        big = [(x * self.scale, y * self.scale) for x, y in points]
        left, top = int(min(x for x, _ in big)), int(min(y for _, y in big))
        width = int(max(x for x, _ in big)) - left + 2
        height = int(max(y for _, y in big)) - top + 2
        mask, bars = Image.new("L", (width, height)), Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in big], fill=255)
        pen, gap = ImageDraw.Draw(bars), max(2.0, step * self.scale)
        for k in range(int((width + height) / gap) + 1):
            at = k * gap
            ends = ((0, at, width, at), (at, 0, at, height), (at, 0, at - height, height))[slant]
            pen.line(ends, fill=255, width=max(1, round(gap * 0.5)))
        self.image.paste(rgb, (left, top), ImageChops.multiply(mask, bars))
        self.outlined(points, rgb, max(1.0, step * 0.3))

    def finish(self) -> Image.Image:
        """The picture at its own size."""
        return self.image.reduce(self.scale)


def plural(word: str) -> str:
    """The plural of a kind's name, as used in questions."""
    special = {
        "fish": "fish",
        "sheep": "sheep",
        "leaf": "leaves",
        "knife": "knives",
        "mouse": "mice",
        "die": "dice",
        "domino": "dominoes",
        "scissors": "scissors",
        "glasses": "glasses",
        "cactus": "cacti",
    }
    if word in special:
        return special[word]
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def picture_size(rng: random.Random) -> tuple[int, int]:
    """Mostly near the model's own 128 pixels (cheap), now and then 64..512, and odd aspects."""
    side = rng.randint(112, 176) if rng.random() < 0.85 else rng.choice((64, 80, 96, 256, 384, 512))
    if rng.random() < 0.6:
        return side, side
    aspect = rng.uniform(0.66, 1.5)
    return max(64, min(512, round(side * aspect**0.5))), max(
        64, min(512, round(side / aspect**0.5))
    )


def mixed(a: RGB, b: RGB, share: float) -> RGB:
    """`a` with `share` of `b` in it."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
