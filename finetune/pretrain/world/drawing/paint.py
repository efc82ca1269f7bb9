"""Colours, backgrounds, picture sizes and an anti-aliased canvas."""

import random
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

# Each colour name with its reference shades. A sample is one of them, or a mix of two, plus noise.
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


def to_rgb(channels: Iterable[float]) -> RGB:
    """Return three channel values, rounded and limited to 0..255."""
    red, green, blue = (min(255, max(0, round(value))) for value in channels)
    return red, green, blue


def colour_rgb(name: str, rng: random.Random, jitter: int = 12) -> RGB:
    """Return a random shade that people would call `name`.

    Raises:
        KeyError: `name` is not in `COLOURS`.
    """
    first, second = rng.choice(COLOURS[name]), rng.choice(COLOURS[name])
    mix = rng.random()
    return to_rgb(
        a * mix + b * (1 - mix) + rng.uniform(-jitter, jitter)
        for a, b in zip(first, second, strict=True)
    )


def far_enough(rgb: RGB, others: Iterable[RGB], least: float = 85.0) -> bool:
    """Return whether `rgb` is at least `least` away from all `others` (Euclidean, in RGB)."""
    return all(sum((a - b) ** 2 for a, b in zip(rgb, o, strict=True)) >= least**2 for o in others)


def background_rgb(rng: random.Random, items: Sequence[RGB]) -> RGB:
    """Return a background colour that contrasts with all `items`, most often a pale one."""
    for least in (85.0, 85.0, 60.0, 40.0, 0.0):
        for _ in range(12):
            roll = rng.random()
            if roll < 0.6:
                tone, spread = rng.randint(215, 255), 18
            elif roll < 0.78:
                tone, spread = rng.randint(0, 60), 25
            else:
                tone, spread = rng.randint(60, 215), 60
            rgb = to_rgb(tone + rng.randint(-spread, spread) for _ in range(3))
            if far_enough(rgb, items, least):
                return rgb
    raise AssertionError("a minimum distance of 0 accepts any colour")


def background(width: int, height: int, base: RGB, seed: int) -> Image.Image:
    """Paint a plain, gradient, textured or noisy background around the colour `base`.

    The same seed gives the same pixels.
    """
    rng = random.Random(seed)
    style = rng.choices(("plain", "gradient", "texture", "noise"), (5, 2, 2, 2))[0]
    if style == "plain":
        return Image.new("RGB", (width, height), base)
    if style == "gradient":
        shift = [rng.randint(-28, 28) for _ in range(3)]
        end = to_rgb(c + s for c, s in zip(base, shift, strict=True))
        ramp = rng.choice((Image.linear_gradient, Image.radial_gradient))("L")
        ramp = ramp.rotate(rng.choice((0, 90, 180, 270))).resize((width, height))
        size = (width, height)
        return Image.composite(Image.new("RGB", size, end), Image.new("RGB", size, base), ramp)
    if style == "texture":
        picture = Image.new("RGB", (width, height), base)
        pen = ImageDraw.Draw(picture)
        shade = to_rgb(c + rng.choice((-12, -8, 8, 12)) for c in base)
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
    """A picture drawn enlarged and reduced by `finish`, which anti-aliases it.

    All coordinates and widths are in pixels of the finished picture.
    """

    def __init__(self, ground: Image.Image) -> None:
        self.scale = 3 if max(ground.size) <= 224 else 2
        enlarged = (ground.width * self.scale, ground.height * self.scale)
        self.image = ground.resize(enlarged, Image.Resampling.NEAREST)
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points: Points, rgb: RGB) -> None:
        """Draw a filled polygon."""
        self.pen.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=rgb)

    def line(self, points: Points, rgb: RGB, width: float) -> None:
        """Draw a line through the points, with rounded joints."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.pen.line(scaled, fill=rgb, width=max(1, round(width * self.scale)), joint="curve")

    def ellipse(
        self,
        box: tuple[float, float, float, float],
        rgb: RGB | None,
        edge: RGB | None = None,
        width: float = 0,
    ) -> None:
        """Draw an ellipse that fills `box`, with an optional outline."""
        scaled = [v * self.scale for v in box]
        self.pen.ellipse(scaled, fill=rgb, outline=edge, width=round(width * self.scale))

    def rectangle(
        self,
        box: tuple[float, float, float, float],
        rgb: RGB | None,
        edge: RGB | None = None,
        width: float = 0,
        radius: float = 0,
    ) -> None:
        """Draw a rectangle, optionally with an outline and rounded corners."""
        scaled = [v * self.scale for v in box]
        self.pen.rounded_rectangle(
            scaled, radius * self.scale, fill=rgb, outline=edge, width=round(width * self.scale)
        )

    def outlined(self, points: Points, rgb: RGB, width: float) -> None:
        """Draw the closed outline of a polygon, `width` pixels thick."""
        points = list(points)
        self.line([*points, points[0], points[1]], rgb, width)

    def striped(self, points: Points, rgb: RGB, step: float, slant: int) -> None:
        """Draw an outlined polygon filled with stripes.

        Args:
            points: The corners.
            rgb: The colour of the stripes and of the outline.
            step: The distance between stripes, in pixels.
            slant: 0 for horizontal stripes, 1 for vertical, 2 for diagonal.
        """
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        left, top = int(min(x for x, _ in scaled)), int(min(y for _, y in scaled))
        width = int(max(x for x, _ in scaled)) - left + 2
        height = int(max(y for _, y in scaled)) - top + 2
        mask, bars = Image.new("L", (width, height)), Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in scaled], fill=255)
        pen, gap = ImageDraw.Draw(bars), max(2.0, step * self.scale)
        for k in range(int((width + height) / gap) + 1):
            at = k * gap
            ends = ((0, at, width, at), (at, 0, at, height), (at, 0, at - height, height))[slant]
            pen.line(ends, fill=255, width=max(1, round(gap * 0.5)))
        self.image.paste(rgb, (left, top), ImageChops.multiply(mask, bars))
        self.outlined(points, rgb, max(1.0, step * 0.3))

    def finish(self) -> Image.Image:
        """Return the picture at its final size."""
        return self.image.reduce(self.scale)


def picture_size(rng: random.Random) -> tuple[int, int]:
    """Return a random width and height in pixels, 64..512.

    Most are near the encoder's input size of 128 pixels, which is cheap to draw; some are much
    smaller or larger, and two in five are not square.
    """
    side = rng.randint(112, 176) if rng.random() < 0.85 else rng.choice((64, 80, 96, 256, 384, 512))
    if rng.random() < 0.6:
        return side, side
    aspect = rng.uniform(0.66, 1.5)
    return max(64, min(512, round(side * aspect**0.5))), max(
        64, min(512, round(side / aspect**0.5))
    )


def mixed(a: RGB, b: RGB, share: float) -> RGB:
    """Return `a` blended with the share `share` (0..1) of `b`."""
    return to_rgb(x + (y - x) * share for x, y in zip(a, b, strict=True))
