"""The digits room: handwriting, seven-segment displays, dice, dominoes and small sums."""

import random
from dataclasses import dataclass
from typing import Any

from PIL import Image

from finetune.pretrain.world.drawing.lettering import legible_background
from finetune.pretrain.world.drawing.paint import (
    COLOURS,
    RGB,
    Canvas,
    background,
    background_rgb,
    colour_rgb,
    mixed,
    picture_size,
)
from finetune.pretrain.world.rooms.digits.glyphs import (
    die,
    handwritten,
    pips,
    seven_segments,
    write,
)
from finetune.pretrain.world.rooms.digits.questions import ask
from finetune.pretrain.world.scene import QA, Box, Item, Scene, Size, Split, to_fractions

# Append only: positions are classes of the encoder. The number on a face is part of its kind,
# because the encoder has to recognise it.
KINDS = (
    *"0123456789",
    "+",
    "-",
    *(f"die {n}" for n in range(1, 7)),
    *(f"half {n}" for n in range(7)),
)
LAYOUTS = ("drawn", "display", "dice", "domino", "sum", "clock")

# Never drawn in training.
HELD_OUT_DICE = frozenset(
    {
        ("red", 6),
        ("blue", 5),
        ("green", 3),
        ("yellow", 4),
        ("white", 2),
        ("black", 1),
        ("orange", 5),
        ("purple", 6),
    }
)


def held_out_number(number: int) -> bool:
    """Return whether training never shows the number: every seventh one of two or more digits."""
    return number > 9 and number % 7 == 3


@dataclass(frozen=True)
class Ink:
    """The colours of writing: the pen's colour name, its shade, and the background."""

    name: str
    pen: RGB
    ground: RGB


def pick_ink(rng: random.Random) -> Ink:
    """Pick a colour and a background on which it is legible."""
    name = rng.choice(list(COLOURS))
    pen = colour_rgb(name, rng)
    return Ink(name, pen, legible_background(pen, rng))


def number_text(digits: int, rng: random.Random, split: Split) -> str:
    """Return a random number with so many digits and no leading zero."""
    while True:
        low = 10 ** (digits - 1) if digits > 1 else 0
        number = rng.randint(low, 10**digits - 1)
        if split == "test" or not held_out_number(number):
            return str(number)


def frames(count: int, size: Size, rng: random.Random, tall: float = 1.6) -> list[Box]:
    """Return pixel boxes for `count` glyphs in a row, each wide enough for a patch of its own.

    Args:
        count: How many boxes.
        size: The picture's width and height.
        rng: The source of randomness.
        tall: About how many times higher than wide a glyph is.
    """
    width, height = size
    pitch = width / count * rng.uniform(0.72, 0.98) if count > 1 else width * 0.6
    pitch = max(width * 0.135, min(pitch, height * 0.62))
    wide = pitch * rng.uniform(0.55, 0.74)
    high = min(wide * tall * rng.uniform(0.9, 1.2), height * 0.86)
    x0 = rng.uniform(0.02 * width, max(0.02 * width, width * 0.98 - pitch * count))
    x0 += (pitch - wide) / 2
    y0 = rng.uniform(0.05 * height, max(0.05 * height, 0.95 * height - high))
    return [(x0 + k * pitch, y0, x0 + k * pitch + wide, y0 + high) for k in range(count)]


def glyph_items(
    text: str, boxes: list[Box], colour: str, size: Size, slant: float = 0.0
) -> tuple[Item, ...]:
    """Return the items of glyphs that were placed in pixel boxes."""
    items = []
    for k, (glyph, (x0, y0, x1, y1)) in enumerate(zip(text, boxes, strict=True)):
        box = to_fractions((x0, y0, x1 + slant * (x1 - x0), y1), size)
        items.append(Item(glyph, box, colour, order=k, extra={"frame": (x0, y0, x1, y1)}))
    return tuple(items)


Extra = dict[str, Any]
"""What drawing a scene needs besides its items."""


def pip_rgb(name: str, rgb: RGB) -> RGB:
    """Return the colour of the pips on a face of the given colour."""
    return (250, 250, 250) if sum(rgb) < 330 or name == "red" else (25, 25, 25)


def make_glyphs(
    layout: str, size: Size, rng: random.Random, split: Split
) -> tuple[tuple[Item, ...], Extra]:
    """Make handwritten or displayed digits, a sum, or the time of a clock."""
    if layout == "sum":
        a, b, sign = rng.randint(0, 9), rng.randint(0, 9), rng.choice("+-")
        if sign == "-":
            a, b = max(a, b), min(a, b)
        text = f"{a}{sign}{b}"
    elif layout == "clock":
        text = f"{rng.randint(0, 23):02}{rng.choice((0, 15, 30, 45, rng.randint(0, 59))):02}"
    else:
        most = (1, 1, 2, 2, 3) if layout == "drawn" else (1, 2, 2, 3)
        text = number_text(rng.choice(most), rng, split)
    written = layout in ("drawn", "sum")
    colours = pick_ink(rng)
    slant = 0.0 if written else rng.choice((0.0, 0.0, 0.12))
    boxes = frames(len(text), size, rng, 1.45 if written else 1.7)
    items = glyph_items(text, boxes, colours.name, size, slant)
    panel = None if written or rng.random() < 0.4 else legible_background(colours.pen, rng)
    ghost = None if rng.random() < 0.5 else 0.12
    return items, {
        "text": text,
        "ink": colours,
        "slant": slant,
        "panel": panel,
        "ghost": ghost,
        "thick": rng.uniform(0.09, 0.2),
    }


def make_dice(
    layout: str, size: Size, rng: random.Random, split: Split
) -> tuple[tuple[Item, ...], Extra]:
    """Make one to four dice."""
    count = rng.choices((1, 2, 3, 4), (28, 40, 20, 12))[0]
    side = min(size)
    low, high = {1: (0.2, 0.4), 2: (0.16, 0.23), 3: (0.155, 0.2), 4: (0.145, 0.18)}[count]
    palette = [rng.choice(list(COLOURS)) for _ in range(rng.randint(1, 4))]
    items: list[Item] = []
    for _ in range(count):
        number, name = rng.randint(1, 6), rng.choice(palette)
        while split == "train" and (name, number) in HELD_OUT_DICE:
            number = rng.randint(1, 6)
        rgb = colour_rgb(name, rng)
        half, turn = rng.uniform(low, high) * side, rng.choice((0.0, rng.gauss(0, 0.25)))
        reach = half * (1 + 0.25 * abs(turn))
        for _ in range(40):
            x = rng.uniform(reach, size[0] - reach * 1.15)
            y = rng.uniform(reach, size[1] - reach * 1.15)
            if all(
                max(abs(x - o.extra["at"][0]), abs(y - o.extra["at"][1]))
                > reach + o.extra["reach"] + 0.04 * side
                for o in items
            ):
                box = to_fractions((x - reach, y - reach, x + reach, y + reach), size)
                dot = pip_rgb(name, rgb)
                items.append(
                    Item(
                        f"die {number}",
                        box,
                        name,
                        name="die",
                        extra={
                            "number": number,
                            "at": (x, y),
                            "half": half,
                            "turn": turn,
                            "reach": reach,
                            "rgb": rgb,
                            "dot": dot,
                        },
                    )
                )
                break
    ground = background_rgb(rng, [item.extra["rgb"] for item in items])
    return tuple(items), {"ground": ground, "solid": rng.random() < 0.4}


def make_domino(
    layout: str, size: Size, rng: random.Random, split: Split
) -> tuple[tuple[Item, ...], Extra]:
    """Make a domino."""
    numbers = rng.randint(0, 6), rng.randint(0, 6)
    name = rng.choice(("white", "black", "red", "blue", "brown", "green", "yellow"))
    rgb = colour_rgb(name, rng)
    across = rng.random() < 0.5
    reach = min(size) * rng.uniform(0.26, 0.42)
    reach = min(reach, (size[0] if across else size[1]) * 0.47)
    wide, high = (2 * reach, reach) if across else (reach, 2 * reach)
    x, y = rng.uniform(2, size[0] - wide - 2), rng.uniform(2, size[1] - high - 2)
    items = []
    for k, number in enumerate(numbers):
        left, top = (x + k * reach, y) if across else (x, y + k * reach)
        box = to_fractions((left, top, left + reach, top + reach), size)
        items.append(
            Item(
                f"half {number}",
                box,
                name,
                name="half",
                order=k,
                extra={"number": number, "frame": (left, top, reach)},
            )
        )
    dot = pip_rgb(name, rgb)
    return tuple(items), {
        "ground": background_rgb(rng, [rgb]),
        "across": across,
        "rgb": rgb,
        "dot": dot,
        "frame": (x, y, x + wide, y + high),
    }


class Digits:
    """The `Room` of numbers."""

    name = "digits"
    kinds = KINDS

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Make a scene of a random layout; see `Room.make`."""
        layout = rng.choices(LAYOUTS, (30, 24, 24, 10, 8, 6))[0]
        size = picture_size(rng)
        make = {"dice": make_dice, "domino": make_domino}.get(layout, make_glyphs)
        items, extra = make(layout, size, rng, split)
        return Scene(self.name, layout, *size, items, rng.getrandbits(32), extra)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw the scene; see `Room.draw`."""
        rng = random.Random(scene.seed)
        ground = scene.extra["ground"] if "ground" in scene.extra else scene.extra["ink"].ground
        canvas = Canvas(background(scene.width, scene.height, ground, scene.seed))
        if scene.layout == "dice":
            for item in scene.items:
                e = item.extra
                die(
                    canvas,
                    e["number"],
                    e["at"],
                    e["half"],
                    e["turn"],
                    e["rgb"],
                    e["dot"],
                    scene.extra["solid"],
                )
        elif scene.layout == "domino":
            draw_domino(canvas, scene)
        elif scene.layout in ("drawn", "sum"):
            pen = scene.extra["ink"].pen
            for item in scene.items:
                frame = item.extra["frame"]
                width = scene.extra["thick"] * (frame[2] - frame[0]) * 1.2
                write(canvas, handwritten(item.kind, frame, rng), pen, max(1.6, width))
        else:
            draw_display(canvas, scene)
        return canvas.finish()

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        return ask(scene, rng, split)


def draw_domino(canvas: Canvas, scene: Scene) -> None:
    """Draw a domino of two halves."""
    x0, y0, x1, y1 = scene.extra["frame"]
    rgb, dot = scene.extra["rgb"], scene.extra["dot"]
    radius = min(x1 - x0, y1 - y0)
    edge = mixed(rgb, dot, 0.45)
    canvas.rectangle((x0, y0, x1, y1), rgb, edge, max(0.8, radius * 0.03), radius * 0.12)
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    inset = radius * 0.1
    if scene.extra["across"]:
        ends = [(middle[0], y0 + inset), (middle[0], y1 - inset)]
    else:
        ends = [(x0 + inset, middle[1]), (x1 - inset, middle[1])]
    canvas.line(ends, dot, max(1.0, radius * 0.04))
    for item in scene.items:
        left, top, reach = item.extra["frame"]
        face = ((left, top), (left + reach, top), (left, top + reach))
        pips(canvas, item.extra["number"], face, reach * 0.09, dot)


def draw_display(canvas: Canvas, scene: Scene) -> None:
    """Draw the digits of a seven-segment display or clock."""
    colours, panel = scene.extra["ink"], scene.extra["panel"]
    boxes = [item.extra["frame"] for item in scene.items]
    wide = boxes[0][2] - boxes[0][0]
    plate = colours.ground
    if panel:
        plate = panel
        around = (
            max(1.0, boxes[0][0] - wide * 0.25),
            max(1.0, boxes[0][1] - wide * 0.25),
            min(scene.width - 2.0, boxes[-1][2] + wide * 0.35),
            min(scene.height - 2.0, boxes[0][3] + wide * 0.25),
        )
        canvas.rectangle(around, panel, mixed(panel, (0, 0, 0), 0.3), 1.2, wide * 0.1)
    ghost = mixed(plate, colours.pen, scene.extra["ghost"]) if scene.extra["ghost"] else None
    slant = scene.extra["slant"]
    bar = 0.08 * wide
    for item in scene.items:
        x0, y0, x1, y1 = item.extra["frame"]
        seven_segments(
            canvas, item.kind, (x0 + bar, y0 + bar, x1 - bar, y1 - bar), colours.pen, ghost, slant
        )
    if scene.layout == "clock":
        x = (boxes[1][2] + boxes[2][0]) / 2 + slant * wide * 0.5
        for share in (0.33, 0.67):
            y = boxes[0][1] + (boxes[0][3] - boxes[0][1]) * share
            canvas.rectangle((x - bar, y - bar, x + bar, y + bar), colours.pen)


DIGITS = Digits()
