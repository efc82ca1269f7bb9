"""The writing room: words, numbers, signs, labels and plates in many fonts."""

import math
import random
import string
from dataclasses import dataclass
from typing import Any

from PIL import Image

from finetune.pretrain.world.drawing.lettering import (
    Line,
    draw_line,
    legible_background,
    lightness,
    line_width,
    metrics,
    pick_font,
    set_line,
)
from finetune.pretrain.world.drawing.paint import (
    COLOURS,
    RGB,
    Canvas,
    background,
    background_rgb,
    colour_rgb,
    far_enough,
    mixed,
    picture_size,
)
from finetune.pretrain.world.rooms.writing.questions import ask
from finetune.pretrain.world.rooms.writing.words import HELD_OUT_WORDS, WORDS
from finetune.pretrain.world.scene import QA, Box, Item, Scene, Size, Split, to_fractions

# Append only: positions are classes of the encoder. Small letters count as their capitals.
KINDS = (*string.ascii_uppercase, *string.digits, "sign")
LAYOUTS = ("word", "sign", "two", "number", "plate")
PITCH = 0.132
"""The least distance between letters, as a share of the width, so that each has a patch."""
UNAMBIGUOUS_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
UNAMBIGUOUS_DIGITS = "23456789"


@dataclass(frozen=True)
class Text:
    """One drawn line; `word` is its text in capitals."""

    line: Line
    word: str
    colour: str
    rgb: RGB


def random_text(layout: str, rng: random.Random, split: Split) -> str:
    """Return a random text for a layout; held-out words occur in the test split only."""
    if layout == "number":
        return (
            "".join(rng.choice(string.digits) for _ in range(rng.randint(1, 5))).lstrip("0") or "0"
        )
    if layout == "plate":
        count = rng.randint(3, 6)
        cut = rng.randint(1, count - 1)
        return "".join(rng.choices(UNAMBIGUOUS_LETTERS, k=cut)) + "".join(
            rng.choices(UNAMBIGUOUS_DIGITS, k=count - cut)
        )
    if rng.random() < (
        0.15 if layout == "sign" else 0.35
    ):  # no word, so that letters have to be read one by one
        return "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 6)))
    while True:
        word = rng.choice(WORDS)
        if split == "test" or word not in HELD_OUT_WORDS:
            break
    return rng.choices((word.upper(), word, word.capitalize()), (84, 6, 10))[0]


def fitted(
    text: str,
    name: str,
    area: Box,
    size: Size,
    rng: random.Random,
) -> Line:
    """Place a text in the font `name` at a random size and position within the pixel `area`."""
    width, height = area[2] - area[0], area[3] - area[1]
    pitch = PITCH * size[0] * rng.uniform(1, 1.15)
    cap = -metrics(name, "H")[1][1]
    largest = min(height * 0.9 / (cap + 0.22), size[1] * 0.6 / cap)
    em = largest
    while em > 4 and line_width(text, name, em, pitch) > width:
        em *= 0.94
    least = (0.165 if text.islower() else 0.13) * size[1] / cap
    if pitch * (len(text) - 1) + 0.08 * size[0] > width:
        pitch = (width - 0.08 * size[0]) / max(1, len(text) - 1)
    em = max(min(least, largest), em * rng.uniform(0.74, 1.0))
    while em > 4 and line_width(text, name, em, pitch) > width:
        em *= 0.97
    wide = line_width(text, name, em, pitch)
    slope = rng.choice((0.0, 0.0, rng.uniform(-0.12, 0.12)))
    slope *= min(1.0, max(0.0, (height - em * 1.1) / (abs(slope) * wide + 1e-6)))
    rise = em * cap
    drop = slope * wide
    x = area[0] + (rng.random() if rng.random() < 0.6 else 0.5) * max(0.0, width - wide)
    low = area[1] + rise + max(0.0, -drop)
    high = area[3] - 0.22 * em - max(0.0, drop)
    return set_line(text, name, em, x, rng.uniform(min(low, high), max(low, high)), pitch, slope)


def items_of(text: Text, size: Size) -> list[Item]:
    """Return an item for each letter of a text."""
    return [
        Item(glyph.letter.upper(), to_fractions(glyph.box, size), text.colour, order=k)
        for k, glyph in enumerate(text.line.glyphs)
    ]


class Writing:
    """The `Room` of writing."""

    name = "writing"
    kinds = KINDS

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Make a scene of a random layout; see `Room.make`."""
        layout = rng.choices(LAYOUTS, (40, 22, 14, 14, 10))[0]
        size = width, height = picture_size(rng)
        name = rng.choice(list(COLOURS))
        rgb = colour_rgb(name, rng)
        ground = legible_background(rgb, rng)
        margin = 0.03
        area = (margin * width, margin * height, (1 - margin) * width, (1 - margin) * height)
        extra: dict[str, Any] = {"style": rng.choices(("flat", "edge", "shadow"), (7, 1, 2))[0]}
        items: list[Item] = []
        if layout == "sign":
            inner, sign, ground = self._sign(size, rgb, rng, extra)
            items.append(sign)
            area = inner
        texts = []
        if layout == "two":
            other = rng.choice(list(COLOURS))
            for top, colour in ((0.04, name), (0.52, other)):
                shade = rgb if colour == name else colour_rgb(other, rng)
                if abs(lightness(shade) - lightness(ground)) < 60:
                    colour, shade = name, rgb
                part = (area[0], top * height, area[2], (top + 0.44) * height)
                word = random_text("word", rng, split)
                texts.append(
                    Text(
                        fitted(word, pick_font(rng, split), part, size, rng),
                        word.upper(),
                        colour,
                        shade,
                    )
                )
        else:
            word = random_text(layout, rng, split)
            texts.append(
                Text(fitted(word, pick_font(rng, split), area, size, rng), word.upper(), name, rgb)
            )
        for text in texts:
            items += items_of(text, size)
        extra |= {"texts": tuple(texts), "ground": ground}
        return Scene(self.name, layout, width, height, tuple(items), rng.getrandbits(32), extra)

    def _sign(
        self, size: Size, pen: RGB, rng: random.Random, extra: dict[str, Any]
    ) -> tuple[Box, Item, RGB]:
        """Add a coloured sign to `extra` on which writing in `pen` is legible.

        Returns:
            The pixel area for the text, the sign's item, and the background colour.
        """
        plates = [c for c in COLOURS if abs(lightness(colour_rgb(c, rng, 0)) - lightness(pen)) > 75]
        colour = rng.choice(plates or ["white" if lightness(pen) < 128 else "black"])
        for _ in range(20):
            rgb = colour_rgb(colour, rng)
            if abs(lightness(rgb) - lightness(pen)) > 70:
                break
        wide, high = size[0] * rng.uniform(0.94, 0.99), size[1] * rng.uniform(0.48, 0.85)
        left = rng.uniform(0.005 * size[0], 0.995 * size[0] - wide)
        top = rng.uniform(0.02 * size[1], 0.92 * size[1] - high)
        box = (left, top, left + wide, top + high)
        shape = rng.choice(("square", "round", "oval", "octagon", "board"))
        inset = 0.08 if shape in ("oval", "octagon") else 0.04
        inner = (
            left + inset * wide,
            top + 0.12 * high,
            left + (1 - inset) * wide,
            top + 0.88 * high,
        )
        extra |= {"sign": (box, shape, rgb, rng.random() < 0.6, rng.random() < 0.5)}
        item = Item("sign", to_fractions(box, size), colour)
        return inner, item, background_rgb(rng, [rgb])

    def draw(self, scene: Scene) -> Image.Image:
        """Draw the scene; see `Room.draw`."""
        ground = scene.extra["ground"]
        canvas = Canvas(background(scene.width, scene.height, ground, scene.seed))
        behind = ground
        if "sign" in scene.extra:
            behind = scene.extra["sign"][2]
            draw_sign(canvas, scene)
        elif scene.layout == "plate":
            x0, y0, x1, y1 = scene.extra["texts"][0].line.box
            pad = (y1 - y0) * 0.3
            around = (
                max(0.5, x0 - pad * 0.6),
                y0 - pad,
                min(scene.width - 1.5, x1 + pad * 0.6),
                y1 + pad,
            )
            canvas.rectangle(
                around, ground, scene.extra["texts"][0].rgb, max(1.0, pad * 0.2), pad * 0.4
            )
        style = scene.extra["style"]
        for text in scene.extra["texts"]:
            dark = lightness(text.rgb) < lightness(behind)
            far = (0, 0, 0) if dark else (255, 255, 255)
            shade = mixed(behind, far, 0.35)
            edge = (15, 15, 20) if not dark else None
            draw_line(
                canvas,
                text.line,
                text.rgb,
                edge if style == "edge" else None,
                shade if style == "shadow" and far_enough(shade, [text.rgb], 110) else None,
            )
        return canvas.finish()

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        return ask(scene, rng, split)


def draw_sign(canvas: Canvas, scene: Scene) -> None:
    """Draw the sign: an oval, an octagon or a rectangle, with its rim and post."""
    box, shape, rgb, rimmed, posted = scene.extra["sign"]
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    pen = scene.extra["texts"][0].rgb
    rim = max(1.0, high * 0.035) if rimmed else 0
    if posted and bottom < scene.height * 0.9:
        middle, post = (left + right) / 2, wide * 0.035
        canvas.rectangle(
            (middle - post, bottom - high * 0.2, middle + post, scene.height + 2), (120, 115, 110)
        )
    if shape == "oval":
        canvas.ellipse(
            (left, top - high * 0.06, right, bottom + high * 0.06),
            rgb,
            pen if rimmed else None,
            rim,
        )
    elif shape == "octagon":
        cut = min(wide, high) * 0.26
        points = [
            (left + cut, top),
            (right - cut, top),
            (right, top + cut),
            (right, bottom - cut),
            (right - cut, bottom),
            (left + cut, bottom),
            (left, bottom - cut),
            (left, top + cut),
        ]
        canvas.polygon(points, rgb)
        if rimmed:
            inner = [
                (
                    (left + right) / 2 + (x - (left + right) / 2) * 0.95,
                    (top + bottom) / 2 + (y - (top + bottom) / 2) * 0.9,
                )
                for x, y in points
            ]
            canvas.outlined(inner, pen, rim)
    else:
        radius = {"square": 0.0, "round": high * 0.18, "board": high * 0.05}[shape]
        canvas.rectangle(box, rgb, pen if rimmed else None, rim, radius)
        if shape == "board":
            for x in (left + wide * 0.03, right - wide * 0.03):
                r = max(0.8, math.sqrt(wide * high) * 0.012)
                canvas.ellipse((x - r, top + r, x + r, top + 3 * r), pen)


WRITING = Writing()
