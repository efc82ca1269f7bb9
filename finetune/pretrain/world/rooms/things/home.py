"""Food, dishes, cutlery and furniture."""

import math

from finetune.pretrain.world.drawing.paint import mixed
from finetune.pretrain.world.drawing.sketch import (
    CREAM,
    GOLD,
    INK,
    LEAF,
    METAL,
    WHITE,
    WOOD,
    DrawingRegistry,
    Sketch,
)

DRAWINGS = DrawingRegistry()


@DRAWINGS.register("fruit", "red green yellow", lean=20)
def apple(s: Sketch) -> None:
    """Draw an apple with a stalk and a leaf."""
    s.smooth(
        (0.5, 0.28),
        (0.72, 0.18),
        (0.94, 0.42),
        (0.82, 0.82),
        (0.6, 0.96),
        (0.5, 0.93),
        (0.4, 0.96),
        (0.18, 0.82),
        (0.06, 0.42),
        (0.28, 0.18),
    )
    s.line((0.5, 0.3), (0.54, 0.08), c=WOOD, w=0.05)
    s.smooth((0.54, 0.2), (0.68, 0.04), (0.84, 0.06), (0.72, 0.2), c=LEAF)
    s.oval(0.26, 0.44, 0.06, 0.1, c=s.light)


@DRAWINGS.register("fruit", "yellow green", lean=40)
def banana(s: Sketch) -> None:
    """Draw a banana."""
    outer = [
        (0.5 + 0.5 * math.cos(t), 0.2 + 0.62 * math.sin(t))
        for t in (math.radians(10 + 14 * k) for k in range(12))
    ]
    inner = [
        (0.5 + 0.42 * math.cos(t), 0.2 + 0.34 * math.sin(t))
        for t in (math.radians(164 - 14 * k) for k in range(12))
    ]
    s.poly(*outer, *inner)
    s.line(outer[0], (outer[0][0] - 0.02, outer[0][1] - 0.08), c=WOOD, w=0.06)
    s.oval(*outer[-1], 0.035, c=INK)


@DRAWINGS.register("fruit", "green yellow", lean=20)
def pear(s: Sketch) -> None:
    """Draw a pear with a stalk and a leaf."""
    s.smooth(
        (0.5, 0.12),
        (0.62, 0.2),
        (0.66, 0.42),
        (0.84, 0.66),
        (0.72, 0.93),
        (0.5, 0.98),
        (0.28, 0.93),
        (0.16, 0.66),
        (0.34, 0.42),
        (0.38, 0.2),
    )
    s.line((0.5, 0.15), (0.55, 0.0), c=WOOD, w=0.045)
    s.smooth((0.54, 0.1), (0.68, 0.0), (0.78, 0.08), (0.66, 0.14), c=LEAF)


@DRAWINGS.register("fruit", "red purple", lean=12)
def cherry(s: Sketch) -> None:
    """Draw two cherries on stalks."""
    s.line((0.28, 0.7), (0.4, 0.35), (0.62, 0.06), c=(90, 120, 40), w=0.035)
    s.line((0.74, 0.64), (0.7, 0.35), (0.62, 0.06), c=(90, 120, 40), w=0.035)
    s.smooth((0.62, 0.08), (0.78, 0.02), (0.96, 0.14), (0.78, 0.2), c=LEAF)
    for x, y in ((0.27, 0.76), (0.74, 0.7)):
        s.oval(x, y, 0.21)
        s.oval(x - 0.07, y - 0.07, 0.045, c=s.light)


@DRAWINGS.register("fruit", "yellow orange brown", lean=10)
def pineapple(s: Sketch) -> None:
    """Draw a pineapple."""
    for turn in (-60, -30, 0, 30, 60):
        way = math.radians(turn - 90)
        s.poly(
            (0.42, 0.36),
            (0.58, 0.36),
            (0.5 + 0.3 * math.cos(way), 0.32 + 0.32 * math.sin(way)),
            c=LEAF,
        )
    s.oval(0.5, 0.66, 0.27, 0.34)
    for k in range(-2, 3):
        x = 0.5 + 0.1 * k
        tall = 0.3 * (1 - abs(k) / 4)
        s.line((x - 0.08, 0.66 + tall * 0.8), (x + 0.08, 0.66 - tall * 0.8), c=s.dark, w=0.02)
        s.line((x + 0.08, 0.66 + tall * 0.8), (x - 0.08, 0.66 - tall * 0.8), c=s.dark, w=0.02)


@DRAWINGS.register("fruit", "red pink", lean=15)
def strawberry(s: Sketch) -> None:
    """Draw a strawberry."""
    s.smooth(
        (0.5, 0.2),
        (0.8, 0.16),
        (0.9, 0.4),
        (0.7, 0.76),
        (0.5, 0.98),
        (0.3, 0.76),
        (0.1, 0.4),
        (0.2, 0.16),
    )
    for x, y in ((0.3, 0.4), (0.5, 0.42), (0.7, 0.4), (0.4, 0.58), (0.6, 0.58), (0.5, 0.75)):
        s.oval(x, y, 0.022, 0.032, c=(250, 225, 130))
    for turn in (-70, -35, 0, 35, 70):
        way = math.radians(turn - 90)
        s.poly(
            (0.42, 0.2),
            (0.58, 0.2),
            (0.5 + 0.3 * math.cos(way), 0.16 + 0.16 * math.sin(way)),
            c=LEAF,
        )


@DRAWINGS.register("food", "orange purple yellow", lean=40)
def carrot(s: Sketch) -> None:
    """Draw a carrot with leaves."""
    for x in (0.36, 0.5, 0.64):
        s.smooth(
            (0.47, 0.3), (x - 0.06, 0.08), (x + 0.02, 0.0), (x + 0.06, 0.1), (0.53, 0.3), c=LEAF
        )
    s.smooth((0.5, 0.24), (0.68, 0.3), (0.64, 0.6), (0.5, 1.0), (0.36, 0.6), (0.32, 0.3))
    for x, y in ((0.4, 0.42), (0.56, 0.55), (0.44, 0.7)):
        s.line((x, y), (x + 0.1, y + 0.01), c=s.dark, w=0.02)


@DRAWINGS.register("food", "pink brown white green yellow", lean=8)
def ice_cream(s: Sketch) -> None:
    """Draw an ice cream cone with one or three scoops."""
    cone = (215, 160, 90)
    s.poly((0.24, 0.46), (0.76, 0.46), (0.5, 1.0), c=cone)
    for k in (0.34, 0.5, 0.66):
        s.line((k, 0.48), (0.5 + (k - 0.5) * 0.35, 0.82), c=mixed(cone, INK, 0.25), w=0.018)
    if s.maybe():
        s.oval(0.36, 0.34, 0.2)
        s.oval(0.64, 0.34, 0.2, c=s.light)
        s.oval(0.5, 0.2, 0.19)
    else:
        s.oval(0.5, 0.3, 0.29, 0.26)
        s.oval(0.4, 0.2, 0.07, 0.05, c=s.light)
    s.box(0.21, 0.43, 0.79, 0.5, r=0.03)


@DRAWINGS.register("food", "pink brown white yellow purple", lean=2)
def cake(s: Sketch) -> None:
    """Draw a cake with three candles."""
    s.oval(0.5, 0.9, 0.48, 0.08, c=METAL)
    s.box(0.12, 0.5, 0.88, 0.9, c=CREAM if sum(s.main) < 650 else WOOD)
    s.box(0.12, 0.66, 0.88, 0.72, c=s.dark)
    s.box(0.1, 0.42, 0.9, 0.56, r=0.05)
    for x in (0.18, 0.34, 0.5, 0.66, 0.82):
        s.oval(x, 0.57, 0.06, 0.07 + 0.05 * s.rng.random())
    for x in (0.3, 0.5, 0.7):
        s.box(x - 0.025, 0.22, x + 0.025, 0.43, c=s.accent())
        s.oval(x, 0.17, 0.03, 0.06, c=(250, 180, 40))


@DRAWINGS.register("food", "pink brown white orange blue", lean=40)
def donut(s: Sketch) -> None:
    """Draw a donut with icing and sprinkles."""
    s.oval(0.5, 0.5, 0.5, c=(205, 150, 85))
    s.oval(0.5, 0.5, 0.43)
    for _ in range(12):
        turn, far = s.uniform(0, 6.3), s.uniform(0.24, 0.36)
        x, y = 0.5 + far * math.cos(turn), 0.5 + far * math.sin(turn)
        s.line(
            (x - 0.02, y - 0.015),
            (x + 0.02, y + 0.02),
            c=s.rng.choice((WHITE, GOLD, (70, 150, 220), (90, 190, 90))),
            w=0.025,
        )
    s.oval(0.5, 0.5, 0.16, c=(205, 150, 85))
    s.oval(0.5, 0.5, 0.13, c=WHITE)


@DRAWINGS.register("food", "yellow orange red", lean=20)
def pizza(s: Sketch) -> None:
    """Draw a slice of pizza; its colour is that of the cheese."""
    s.poly((0.06, 0.16), (0.94, 0.16), (0.5, 1.0))
    s.box(0.0, 0.06, 1.0, 0.22, c=(190, 120, 60), r=0.07)
    spot = (250, 220, 120) if s.main[1] < 110 else (190, 45, 40)
    for x, y in ((0.32, 0.36), (0.64, 0.34), (0.5, 0.6)):
        s.oval(x, y, 0.085, c=spot)
    s.oval(0.48, 0.45, 0.03, c=LEAF)


@DRAWINGS.register("dish", lean=3)
def cup(s: Sketch) -> None:
    """Draw a cup of coffee, sometimes with a band."""
    s.ring(0.78, 0.52, 0.15, 0.17, c=s.dark, w=0.07, start=-100, end=100)
    s.poly((0.1, 0.2), (0.78, 0.2), (0.7, 0.88), (0.18, 0.88))
    s.oval(0.44, 0.21, 0.34, 0.07, c=s.dark)
    s.oval(0.44, 0.22, 0.29, 0.045, c=(95, 60, 35))
    if s.maybe():
        s.box(0.16, 0.48, 0.73, 0.58, c=s.light)


@DRAWINGS.register("dish", "green brown blue red gray purple", lean=12)
def bottle(s: Sketch) -> None:
    """Draw a corked bottle with a label."""
    s.box(0.42, 0.04, 0.58, 0.3)
    s.smooth((0.42, 0.24), (0.58, 0.24), (0.72, 0.46), (0.72, 0.6), (0.28, 0.6), (0.28, 0.46))
    s.box(0.28, 0.46, 0.72, 1.0, r=0.05)
    s.box(0.4, 0.0, 0.6, 0.08, c=WOOD)
    s.box(0.28, 0.58, 0.72, 0.8, c=CREAM)


@DRAWINGS.register("dish", lean=3)
def bowl(s: Sketch) -> None:
    """Draw a bowl of fruit."""
    for k in range(3):
        s.oval(0.3 + 0.2 * k, 0.4, 0.13, c=s.rng.choice(((235, 80, 60), (120, 180, 70), GOLD)))
    s.oval(0.5, 0.42, 0.5, 0.46, start=0, end=180)
    s.box(0.34, 0.82, 0.66, 0.92, c=s.dark)
    s.box(0.0, 0.38, 1.0, 0.46, c=s.light, r=0.03)


@DRAWINGS.register("dish", "white blue red green yellow gray", lean=2)
def teapot(s: Sketch) -> None:
    """Draw a teapot."""
    s.ring(0.84, 0.55, 0.14, 0.17, w=0.07, start=-110, end=110)
    s.poly((0.26, 0.62), (0.0, 0.3), (0.1, 0.26), (0.36, 0.46), c=s.dark)
    s.oval(0.52, 0.58, 0.34, 0.32)
    s.oval(0.52, 0.3, 0.2, 0.08, c=s.dark)
    s.oval(0.52, 0.2, 0.055, c=s.dark)
    s.box(0.34, 0.86, 0.7, 0.93, c=s.dark)


@DRAWINGS.register("tool", "gray yellow black brown", lean=60)
def fork(s: Sketch) -> None:
    """Draw a fork."""
    s.box(0.455, 0.42, 0.545, 1.0, r=0.04)
    s.smooth((0.36, 0.3), (0.64, 0.3), (0.62, 0.44), (0.5, 0.52), (0.38, 0.44))
    for x in (0.34, 0.43, 0.52, 0.61):
        s.box(x, 0.02, x + 0.05, 0.36, r=0.02)


@DRAWINGS.register("tool", "gray yellow black brown", lean=60)
def spoon(s: Sketch) -> None:
    """Draw a spoon."""
    s.line((0.5, 0.35), (0.5, 0.98), w=0.08)
    s.oval(0.5, 0.21, 0.16, 0.22)
    s.oval(0.5, 0.22, 0.1, 0.15, c=s.dark)


@DRAWINGS.register("tool", "brown red black blue", lean=60)
def knife(s: Sketch) -> None:
    """Draw a knife; its colour is that of the handle."""
    s.smooth((0.44, 0.55), (0.44, 0.1), (0.5, 0.0), (0.6, 0.3), (0.58, 0.55), c=METAL)
    s.box(0.42, 0.52, 0.58, 1.0, r=0.05)
    for y in (0.66, 0.84):
        s.oval(0.5, y, 0.025, c=s.light)


@DRAWINGS.register("furniture", lean=2)
def lamp(s: Sketch) -> None:
    """Draw a table lamp."""
    s.line((0.5, 0.4), (0.5, 0.9), c=INK if s.maybe() else WOOD, w=0.05)
    s.box(0.3, 0.88, 0.7, 0.96, c=INK, r=0.03)
    s.poly((0.34, 0.05), (0.66, 0.05), (0.86, 0.5), (0.14, 0.5))
    s.poly((0.14, 0.5), (0.86, 0.5), (0.84, 0.45), (0.16, 0.45), c=s.light)


@DRAWINGS.register("furniture", lean=2)
def chair(s: Sketch) -> None:
    """Draw a chair from the side."""
    s.line((0.26, 0.04), (0.26, 0.98), w=0.08)
    s.line((0.26, 0.6), (0.74, 0.6), w=0.1)
    s.line((0.72, 0.6), (0.74, 0.98), w=0.08)
    for y in (0.14, 0.3):
        s.line((0.26, y), (0.34, y), c=s.dark, w=0.06)
    s.box(0.28, 0.5, 0.78, 0.57, c=s.light)


@DRAWINGS.register("furniture", "brown white black gray red", lean=1)
def table(s: Sketch) -> None:
    """Draw a table, sometimes with a drawer."""
    for x in (0.08, 0.84):
        s.box(x, 0.36, x + 0.08, 0.9, c=s.dark)
    s.box(0.0, 0.28, 1.0, 0.4, r=0.02)
    if s.maybe():
        s.box(0.36, 0.4, 0.64, 0.5, c=s.dark)
        s.oval(0.5, 0.45, 0.02, c=GOLD)


@DRAWINGS.register("furniture", lean=1)
def bed(s: Sketch) -> None:
    """Draw a bed from the side."""
    s.box(0.0, 0.2, 0.08, 0.85, c=WOOD)
    s.box(0.92, 0.42, 1.0, 0.85, c=WOOD)
    s.box(0.06, 0.54, 0.94, 0.74, c=CREAM)
    s.box(0.1, 0.42, 0.32, 0.56, c=WHITE, r=0.05)
    s.box(0.34, 0.46, 0.94, 0.74, r=0.04)
    s.box(0.34, 0.46, 0.42, 0.74, c=s.light)


@DRAWINGS.register("furniture", lean=1, flips=False)
def sofa(s: Sketch) -> None:
    """Draw a sofa from the front."""
    for x in (0.1, 0.82):
        s.box(x, 0.84, x + 0.08, 0.94, c=WOOD)
    s.box(0.1, 0.24, 0.9, 0.66, r=0.08)
    s.box(0.12, 0.56, 0.88, 0.84, c=s.light)
    s.line((0.5, 0.56), (0.5, 0.84), c=s.dark, w=0.02)
    for x in (0.0, 0.84):
        s.box(x, 0.44, x + 0.16, 0.86, c=s.dark, r=0.06)


@DRAWINGS.register("furniture", lean=1)
def door(s: Sketch) -> None:
    """Draw a closed door."""
    s.box(0.2, 0.0, 0.8, 1.0, c=WOOD if s.maybe() else s.dark)
    s.box(0.25, 0.05, 0.75, 1.0)
    for y in (0.12, 0.56):
        s.box(0.33, y, 0.67, y + 0.34, c=s.light)
    s.oval(0.7, 0.52, 0.035, c=GOLD)


@DRAWINGS.register("furniture", "red white yellow green blue", lean=3)
def candle(s: Sketch) -> None:
    """Draw a burning candle."""
    s.box(0.34, 0.36, 0.66, 0.95)
    s.oval(0.5, 0.37, 0.16, 0.045, c=s.dark)
    s.smooth((0.36, 0.38), (0.44, 0.38), (0.43, 0.56), (0.38, 0.6), c=s.light)
    s.line((0.5, 0.36), (0.5, 0.27), c=INK, w=0.025)
    s.smooth((0.5, 0.0), (0.6, 0.18), (0.5, 0.3), (0.4, 0.18), c=(255, 170, 40))
    s.oval(0.5, 0.96, 0.3, 0.05, c=METAL)
