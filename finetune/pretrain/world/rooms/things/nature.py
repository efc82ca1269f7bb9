"""Plants, the sky, mountains and figures."""

import math

from finetune.pretrain.world.drawing.paint import mixed
from finetune.pretrain.world.drawing.sketch import (
    BLUSH,
    CREAM,
    GOLD,
    INK,
    LEAF,
    WHITE,
    WOOD,
    DrawingRegistry,
    Sketch,
)

DRAWINGS = DrawingRegistry()


@DRAWINGS.register("plant", "green green teal orange red", lean=2)
def tree(s: Sketch) -> None:
    """Draw a fir or a broad-leaved tree, sometimes with fruit."""
    wide = s.uniform(0.06, 0.09)
    s.poly(
        (0.5 - wide, 1), (0.5 - wide * 0.7, 0.5), (0.5 + wide * 0.7, 0.5), (0.5 + wide, 1), c=WOOD
    )
    if s.maybe(0.35):  # a fir
        for k in range(3):
            y, reach = 0.05 + 0.2 * k, 0.18 + 0.08 * k
            s.poly(
                (0.5, y - 0.05),
                (0.5 + reach, y + 0.3),
                (0.5 - reach, y + 0.3),
                c=s.dark if k % 2 else None,
            )
        return
    if s.maybe():
        s.oval(0.5, 0.34, 0.34, 0.33)
        s.oval(0.42, 0.26, 0.13, 0.12, c=s.light)
        return
    for x, y, r in (
        (0.3, 0.45, 0.2),
        (0.7, 0.45, 0.2),
        (0.36, 0.25, 0.2),
        (0.64, 0.25, 0.2),
        (0.5, 0.36, 0.24),
    ):
        s.oval(x, y, r)
    if s.maybe(0.3):
        spot = s.accent()
        for x, y in ((0.36, 0.3), (0.6, 0.22), (0.66, 0.46), (0.44, 0.5)):
            s.oval(x, y, 0.035, c=spot)


@DRAWINGS.register("plant", "red yellow pink purple white blue orange")
def flower(s: Sketch) -> None:
    """Draw a tulip or a flower with round petals."""
    s.line((0.5, 0.4), (0.5 + s.uniform(-0.05, 0.05), 0.7), (0.5, 1), c=LEAF, w=0.045)
    s.smooth((0.5, 0.85), (0.62, 0.68), (0.78, 0.66), (0.66, 0.8), c=LEAF)
    if s.maybe():
        s.smooth((0.5, 0.9), (0.4, 0.74), (0.24, 0.72), (0.34, 0.86), c=LEAF)
    if s.maybe(0.3):  # a tulip
        s.smooth(
            (0.5, 0.55),
            (0.28, 0.45),
            (0.28, 0.1),
            (0.4, 0.25),
            (0.5, 0.08),
            (0.6, 0.25),
            (0.72, 0.1),
            (0.72, 0.45),
        )
        return
    count = s.rng.choice((5, 6, 8))
    for k in range(count):
        turn = 2 * math.pi * k / count
        s.oval(0.5 + 0.19 * math.cos(turn), 0.3 + 0.19 * math.sin(turn), 0.105)
    heart = GOLD if sum(abs(a - b) for a, b in zip(s.main, GOLD, strict=True)) > 120 else WOOD
    s.oval(0.5, 0.3, 0.12, c=heart)


@DRAWINGS.register("plant", "green teal", lean=3)
def cactus(s: Sketch) -> None:
    """Draw a cactus in a pot."""
    s.box(0.4, 0.08, 0.6, 0.8, r=0.1)
    s.line((0.45, 0.55), (0.2, 0.55), (0.2, 0.3), w=0.11)
    s.line((0.55, 0.45), (0.8, 0.45), (0.8, 0.2), w=0.11)
    for x, y in ((0.46, 0.2), (0.54, 0.3), (0.46, 0.4), (0.54, 0.55), (0.2, 0.38), (0.8, 0.3)):
        s.line((x - 0.02, y), (x + 0.02, y - 0.03), c=s.light, w=0.014)
    pot = s.accent()
    s.poly((0.28, 0.76), (0.72, 0.76), (0.64, 1.0), (0.36, 1.0), c=pot)
    s.box(0.25, 0.72, 0.75, 0.8, c=mixed(pot, INK, 0.2))


@DRAWINGS.register("plant", "green orange red yellow brown", lean=120)
def leaf(s: Sketch) -> None:
    """Draw a single leaf with veins."""
    s.smooth((0.5, 0.02), (0.74, 0.25), (0.76, 0.52), (0.5, 0.84), (0.24, 0.52), (0.26, 0.25))
    s.line((0.5, 0.1), (0.5, 1.0), c=s.dark, w=0.03)
    for y in (0.3, 0.46, 0.62):
        s.line((0.34, y - 0.1), (0.5, y), (0.66, y - 0.1), c=s.dark, w=0.02)


@DRAWINGS.register("plant", "red brown white orange purple")
def mushroom(s: Sketch) -> None:
    """Draw a mushroom, mostly with spots."""
    s.smooth(
        (0.4, 0.45), (0.6, 0.45), (0.62, 0.75), (0.66, 0.95), (0.34, 0.95), (0.38, 0.75), c=CREAM
    )
    s.oval(0.5, 0.52, 0.45, 0.44, start=180, end=360)
    s.oval(0.5, 0.51, 0.45, 0.07, c=s.dark)
    if s.maybe(0.8):
        spot = WHITE if sum(s.main) < 600 else (190, 60, 60)
        for x, y, r in (
            (0.5, 0.22, 0.07),
            (0.28, 0.36, 0.06),
            (0.72, 0.36, 0.06),
            (0.5, 0.41, 0.045),
        ):
            s.oval(x, y, r, c=spot)


@DRAWINGS.register("sky", "yellow orange", lean=30)
def sun(s: Sketch) -> None:
    """Draw the sun with rays."""
    count = s.rng.choice((8, 10, 12))
    for k in range(count):
        turn = 2 * math.pi * k / count
        tip = (0.5 + 0.49 * math.cos(turn), 0.5 + 0.49 * math.sin(turn))
        if s.parts and s.parts[0].width:
            s.line((0.5, 0.5), tip, w=0.045)
        else:
            side = [
                (0.5 + 0.3 * math.cos(turn + d), 0.5 + 0.3 * math.sin(turn + d))
                for d in (-0.2, 0.2)
            ]
            s.poly(*side, tip)
    s.oval(0.5, 0.5, 0.29, c=s.main if s.maybe() else s.light)


@DRAWINGS.register("sky", "yellow white gray orange blue", lean=20)
def moon(s: Sketch) -> None:
    """Draw a crescent moon with craters."""
    outer = [
        (0.5 + 0.5 * math.cos(t), 0.5 + 0.5 * math.sin(t))
        for t in (math.radians(60 + 12 * k) for k in range(21))
    ]
    inner = [
        (0.68 + 0.41 * math.cos(t), 0.5 + 0.41 * math.sin(t))
        for t in (math.radians(282 - 10.2 * k) for k in range(21))
    ]
    s.poly(*outer, *inner)
    for x, y, r in ((0.14, 0.45, 0.05), (0.25, 0.7, 0.04), (0.27, 0.26, 0.035)):
        s.oval(x, y, r, c=mixed(s.main, INK, 0.15))


@DRAWINGS.register("sky", "white gray blue pink", lean=2)
def cloud(s: Sketch) -> None:
    """Draw a cloud."""
    for x, y, r in ((0.2, 0.6, 0.17), (0.42, 0.46, 0.22), (0.66, 0.5, 0.19), (0.83, 0.62, 0.15)):
        s.oval(x, y, r, r * s.uniform(0.9, 1.0))
    s.box(0.18, 0.6, 0.85, 0.77, r=0.08)


@DRAWINGS.register("sky", "yellow orange purple white", lean=8)
def lightning_bolt(s: Sketch) -> None:
    """Draw a lightning bolt."""
    s.poly(
        (0.42, 0.0),
        (0.72, 0.0),
        (0.56, 0.36),
        (0.76, 0.36),
        (0.34, 1.0),
        (0.46, 0.54),
        (0.26, 0.54),
    )


@DRAWINGS.register("figure", "white blue gray", lean=3)
def snowman(s: Sketch) -> None:
    """Draw a snowman with a hat."""
    for side in (-1, 1):
        s.line((0.5 + side * 0.18, 0.5), (0.5 + side * 0.42, 0.38), c=WOOD, w=0.03)
    s.oval(0.5, 0.78, 0.24, 0.22)
    s.oval(0.5, 0.5, 0.18, 0.17)
    s.oval(0.5, 0.27, 0.13)
    for y in (0.46, 0.55, 0.7):
        s.oval(0.5, y, 0.022, c=INK)
    s.oval(0.45, 0.24, 0.02, c=INK)
    s.oval(0.55, 0.24, 0.02, c=INK)
    s.poly((0.5, 0.26), (0.68, 0.3), (0.5, 0.31), c=(240, 130, 30))
    hat = INK if s.maybe() else s.accent()
    s.box(0.33, 0.13, 0.67, 0.17, c=hat)
    s.box(0.39, 0.0, 0.61, 0.15, c=hat)
    if s.maybe():
        s.line((0.37, 0.38), (0.63, 0.38), c=s.accent(), w=0.06)


@DRAWINGS.register("place", "gray brown blue purple green", lean=1)
def mountain(s: Sketch) -> None:
    """Draw a mountain with a snowy peak."""
    peak = s.uniform(0.4, 0.55)
    s.poly((0.45, 0.95), (0.74, 0.35), (1.0, 0.95), c=s.dark)
    s.poly((0.0, 0.95), (peak, 0.08), (0.84, 0.95))
    cut = 0.28
    left, right = peak - peak * (cut - 0.08) / 0.87, peak + (0.84 - peak) * (cut - 0.08) / 0.87
    s.poly(
        (peak, 0.08),
        (right, cut),
        (peak + 0.04, cut - 0.05),
        (peak - 0.02, cut + 0.05),
        (left, cut),
        c=WHITE if sum(s.main) < 620 else (120, 120, 130),
    )


def face(s: Sketch, bend: float) -> None:
    """Draw a round face that smiles if `bend` > 0, else frowns."""
    s.oval(0.5, 0.5, 0.5)
    for side in (-1, 1):
        s.oval(0.5 + side * 0.17, 0.4, 0.055, s.uniform(0.055, 0.085), c=INK)
        if s.maybe(0.3):
            s.oval(0.5 + side * 0.3, 0.58, 0.07, 0.05, c=BLUSH)
    if bend > 0:
        s.ring(0.5, 0.55, 0.26, 0.24, c=INK, w=0.055, start=20, end=160)
    else:
        s.ring(0.5, 0.84, 0.23, 0.2, c=INK, w=0.055, start=205, end=335)


@DRAWINGS.register("figure", "yellow orange pink green blue white", lean=8)
def happy_face(s: Sketch) -> None:
    """Draw a smiling face."""
    face(s, 1)


@DRAWINGS.register("figure", "yellow orange pink green blue white", lean=8)
def sad_face(s: Sketch) -> None:
    """Draw a frowning face."""
    face(s, -1)
