"""Clothes, tools, toys and devices."""

import math

from finetune.pretrain.world.drawing.paint import mixed
from finetune.pretrain.world.drawing.sketch import (
    CREAM,
    GLASS,
    GOLD,
    INK,
    METAL,
    WHITE,
    WOOD,
    DrawingRegistry,
    Sketch,
)

DRAWINGS = DrawingRegistry()


@DRAWINGS.register("tool", "yellow gray brown black orange", lean=60)
def key(s: Sketch) -> None:
    """Draw a key."""
    s.ring(0.2, 0.5, 0.15, w=0.09)
    s.line((0.36, 0.5), (0.98, 0.5), w=0.09)
    for x, long in ((0.74, 0.14), (0.86, 0.2), (0.95, 0.14)):
        s.line((x, 0.5), (x, 0.5 + long), w=0.06)


@DRAWINGS.register("tool", "yellow gray red blue black", lean=4, flips=False)
def lock(s: Sketch) -> None:
    """Draw a padlock."""
    s.ring(0.5, 0.36, 0.22, 0.28, c=METAL, w=0.09, start=180, end=360)
    s.line((0.28, 0.36), (0.28, 0.5), c=METAL, w=0.09)
    s.line((0.72, 0.36), (0.72, 0.5), c=METAL, w=0.09)
    s.box(0.16, 0.46, 0.84, 0.98, r=0.07)
    s.oval(0.5, 0.66, 0.07, c=INK)
    s.poly((0.47, 0.68), (0.53, 0.68), (0.55, 0.86), (0.45, 0.86), c=INK)


@DRAWINGS.register("tool", "brown red yellow blue black", lean=50)
def hammer(s: Sketch) -> None:
    """Draw a hammer; its colour is that of the handle."""
    s.line((0.5, 0.2), (0.5, 0.98), w=0.1)
    s.box(0.2, 0.08, 0.66, 0.28, c=(105, 110, 118), r=0.03)
    s.poly((0.64, 0.1), (0.88, 0.16), (0.86, 0.3), (0.64, 0.26), c=(85, 90, 98))


@DRAWINGS.register("tool", "brown yellow red gray white", lean=8)
def ladder(s: Sketch) -> None:
    """Draw a ladder."""
    for y in (0.14, 0.32, 0.5, 0.68, 0.86):
        s.line((0.3, y), (0.7, y), w=0.055, c=s.dark)
    for x in (0.28, 0.72):
        s.line((x, 0.0), (x, 1.0), w=0.07)


@DRAWINGS.register("tool", lean=60)
def pencil(s: Sketch) -> None:
    """Draw a pencil with an eraser."""
    s.box(0.4, 0.12, 0.6, 0.74)
    s.box(0.47, 0.12, 0.53, 0.74, c=s.light)
    s.poly((0.4, 0.74), (0.6, 0.74), (0.5, 1.0), c=CREAM)
    s.poly((0.465, 0.91), (0.535, 0.91), (0.5, 1.0), c=INK)
    s.box(0.4, 0.07, 0.6, 0.14, c=METAL)
    s.box(0.4, 0.0, 0.6, 0.08, c=(235, 130, 140), r=0.03)


@DRAWINGS.register("tool", lean=6)
def book(s: Sketch) -> None:
    """Draw a closed or an open book."""
    if s.maybe():
        s.box(0.14, 0.04, 0.86, 0.98, r=0.03)
        s.box(0.14, 0.04, 0.24, 0.98, c=s.dark)
        s.box(0.34, 0.2, 0.76, 0.36, c=CREAM)
        return
    s.poly((0.0, 0.26), (0.5, 0.34), (1.0, 0.26), (1.0, 0.86), (0.5, 0.94), (0.0, 0.86))
    s.poly((0.05, 0.2), (0.5, 0.3), (0.5, 0.88), (0.05, 0.8), c=WHITE)
    s.poly((0.95, 0.2), (0.5, 0.3), (0.5, 0.88), (0.95, 0.8), c=(235, 235, 230))
    for y in (0.38, 0.5, 0.62):
        s.line((0.12, y - 0.04), (0.43, y + 0.03), c=METAL, w=0.02)
        s.line((0.57, y + 0.03), (0.88, y - 0.04), c=METAL, w=0.02)


@DRAWINGS.register("device", "white black brown red blue green yellow", lean=1, flips=False)
def clock(s: Sketch) -> None:
    """Draw a clock that shows a full hour, which is kept as a fact."""
    s.facts["hour"] = hour = s.rng.randint(1, 12)
    s.oval(0.5, 0.5, 0.5)
    s.oval(0.5, 0.5, 0.43, c=WHITE if sum(s.main) < 690 else (225, 232, 240))
    for k in range(12):
        turn = math.radians(30 * k)
        near = 0.34 if k % 3 else 0.31
        s.line(
            (0.5 + near * math.sin(turn), 0.5 - near * math.cos(turn)),
            (0.5 + 0.4 * math.sin(turn), 0.5 - 0.4 * math.cos(turn)),
            c=INK,
            w=0.025 if k % 3 else 0.045,
        )
    turn = math.radians(30 * hour)
    s.line((0.5, 0.5), (0.5, 0.17), c=INK, w=0.035)
    s.line(
        (0.5, 0.5),
        (0.5 + 0.21 * math.sin(turn), 0.5 - 0.21 * math.cos(turn)),
        c=(190, 30, 30),
        w=0.07,
    )
    s.oval(0.5, 0.5, 0.045, c=INK)


@DRAWINGS.register("device", "black white gray red blue pink", lean=12)
def phone(s: Sketch) -> None:
    """Draw a mobile phone with app icons."""
    s.box(0.24, 0.0, 0.76, 1.0, r=0.08)
    s.box(0.29, 0.1, 0.71, 0.84, c=mixed(GLASS, INK, 0.1))
    for row in range(3):
        for column in range(3):
            s.box(
                0.34 + 0.12 * column,
                0.18 + 0.16 * row,
                0.42 + 0.12 * column,
                0.27 + 0.16 * row,
                c=s.rng.choice((GOLD, (220, 80, 80), (80, 170, 100), (70, 120, 210))),
                r=0.02,
            )
    s.oval(0.5, 0.92, 0.04, c=s.light if sum(s.main) < 300 else INK)


@DRAWINGS.register("device", "black gray white red blue", lean=1)
def computer(s: Sketch) -> None:
    """Draw a monitor with a keyboard."""
    s.box(0.08, 0.06, 0.92, 0.66, r=0.04)
    s.box(0.14, 0.12, 0.86, 0.58, c=(110, 175, 225))
    for y in (0.2, 0.3, 0.4):
        s.line((0.2, y), (0.2 + s.uniform(0.2, 0.55), y), c=WHITE, w=0.03)
    s.poly((0.42, 0.66), (0.58, 0.66), (0.62, 0.8), (0.38, 0.8), c=s.dark)
    s.box(0.08, 0.82, 0.92, 0.95, c=s.light if sum(s.main) < 400 else s.dark, r=0.02)
    for k in range(6):
        s.box(0.13 + 0.13 * k, 0.85, 0.2 + 0.13 * k, 0.92, c=WHITE)


@DRAWINGS.register("device", "brown red black orange gray", lean=1)
def television(s: Sketch) -> None:
    """Draw a television with an aerial."""
    s.line((0.5, 0.26), (0.3, 0.0), c=INK, w=0.03)
    s.line((0.5, 0.26), (0.7, 0.0), c=INK, w=0.03)
    for x in (0.2, 0.76):
        s.line((x, 0.88), (x + (-0.05 if x < 0.5 else 0.09), 1.0), c=INK, w=0.05)
    s.box(0.0, 0.24, 1.0, 0.9, r=0.06)
    s.box(0.08, 0.32, 0.7, 0.82, c=(150, 200, 190), r=0.06)
    for y in (0.42, 0.56):
        s.oval(0.84, y, 0.05, c=CREAM)
    s.line((0.16, 0.68), (0.34, 0.48), (0.46, 0.6), (0.6, 0.42), c=WHITE, w=0.03)


@DRAWINGS.register("device", "black gray red brown blue", lean=6)
def camera(s: Sketch) -> None:
    """Draw a camera from the front."""
    s.box(0.3, 0.14, 0.62, 0.32, c=s.dark)
    s.box(0.0, 0.24, 1.0, 0.86, r=0.07)
    s.box(0.0, 0.4, 1.0, 0.48, c=s.light)
    s.oval(0.5, 0.55, 0.25, c=METAL)
    s.oval(0.5, 0.55, 0.2, c=INK)
    s.oval(0.5, 0.55, 0.12, c=(70, 110, 160))
    s.oval(0.46, 0.5, 0.04, c=WHITE)
    s.oval(0.87, 0.33, 0.05, c=GOLD)


@DRAWINGS.register("clothes", lean=6)
def hat(s: Sketch) -> None:
    """Draw a hat with a band."""
    s.box(0.26, 0.16, 0.74, 0.72, r=0.08)
    s.box(0.26, 0.56, 0.74, 0.68, c=s.accent())
    s.oval(0.5, 0.74, 0.5, 0.11)


@DRAWINGS.register("clothes", lean=6)
def shirt(s: Sketch) -> None:
    """Draw a shirt, sometimes striped or buttoned."""
    s.poly(
        (0.34, 0.08),
        (0.66, 0.08),
        (0.98, 0.34),
        (0.84, 0.5),
        (0.74, 0.42),
        (0.74, 0.96),
        (0.26, 0.96),
        (0.26, 0.42),
        (0.16, 0.5),
        (0.02, 0.34),
    )
    s.oval(0.5, 0.08, 0.14, 0.12, c=s.dark, start=0, end=180)
    if s.maybe(0.4):
        for y in (0.5, 0.66, 0.82):
            s.box(0.26, y, 0.74, y + 0.06, c=s.light)
    elif s.maybe(0.4):
        for y in (0.35, 0.52, 0.69, 0.86):
            s.oval(0.5, y, 0.025, c=s.pale)


@DRAWINGS.register("clothes", lean=6)
def shoe(s: Sketch) -> None:
    """Draw a laced shoe from the side."""
    s.smooth(
        (0.06, 0.3),
        (0.3, 0.32),
        (0.44, 0.5),
        (0.76, 0.58),
        (0.97, 0.7),
        (0.96, 0.82),
        (0.5, 0.83),
        (0.08, 0.82),
        (0.04, 0.55),
    )
    s.box(0.03, 0.78, 0.99, 0.88, c=WHITE if sum(s.main) < 600 else INK, r=0.04)
    for k in range(3):
        x, y = 0.38 + 0.11 * k, 0.44 + 0.06 * k
        s.line((x, y), (x + 0.06, y + 0.1), c=WHITE if sum(s.main) < 450 else INK, w=0.03)


@DRAWINGS.register("clothes", lean=8)
def sock(s: Sketch) -> None:
    """Draw a sock, sometimes striped."""
    s.smooth(
        (0.3, 0.1),
        (0.62, 0.1),
        (0.62, 0.5),
        (0.72, 0.66),
        (0.9, 0.76),
        (0.88, 0.94),
        (0.6, 0.95),
        (0.36, 0.84),
        (0.3, 0.55),
    )
    s.box(0.27, 0.03, 0.65, 0.16, c=s.light, r=0.03)
    if s.maybe():
        for y in (0.26, 0.4):
            s.box(0.31, y, 0.61, y + 0.06, c=s.dark)


@DRAWINGS.register("clothes", "red pink blue purple white black yellow green teal", lean=4)
def dress(s: Sketch) -> None:
    """Draw a dress with a belt."""
    s.poly(
        (0.36, 0.02),
        (0.43, 0.12),
        (0.57, 0.12),
        (0.64, 0.02),
        (0.7, 0.26),
        (0.6, 0.44),
        (0.88, 0.96),
        (0.12, 0.96),
        (0.4, 0.44),
        (0.3, 0.26),
    )
    s.poly((0.39, 0.42), (0.61, 0.42), (0.63, 0.48), (0.37, 0.48), c=s.dark)
    if s.maybe():
        s.poly((0.15, 0.9), (0.85, 0.9), (0.88, 0.96), (0.12, 0.96), c=s.light)


@DRAWINGS.register("clothes", "yellow orange gray", lean=4, flips=False)
def crown(s: Sketch) -> None:
    """Draw a crown with jewels."""
    s.poly(
        (0.06, 0.85), (0.0, 0.3), (0.26, 0.56), (0.5, 0.14), (0.74, 0.56), (1.0, 0.3), (0.94, 0.85)
    )
    s.box(0.06, 0.74, 0.94, 0.9, c=s.dark)
    for x in (0.22, 0.5, 0.78):
        s.oval(x, 0.82, 0.045, c=s.rng.choice(((210, 40, 60), (50, 90, 200), (50, 160, 90))))
    for x, y in ((0.0, 0.28), (0.5, 0.12), (1.0, 0.28)):
        s.oval(x, y, 0.045)


@DRAWINGS.register("toy", lean=60)
def ball(s: Sketch) -> None:
    """Draw a ball with one of two patterns."""
    s.oval(0.5, 0.5, 0.5)
    other = WHITE if sum(s.main) < 600 else (210, 70, 60)
    if s.maybe():
        s.ring(0.5, 0.5, 0.18, 0.48, c=other, w=0.06)
        s.line((0.02, 0.5), (0.98, 0.5), c=other, w=0.06)
    else:
        s.poly(
            *(
                (0.5 + 0.5 * math.cos(math.radians(a)), 0.5 + 0.5 * math.sin(math.radians(a)))
                for a in (-22, -12, 0, 12, 22, 158, 168, 180, 192, 202)
            ),
            c=other,
        )


@DRAWINGS.register("toy", "red blue yellow green orange", lean=2, flips=False)
def drum(s: Sketch) -> None:
    """Draw a drum with sticks."""
    s.line((0.3, 0.3), (0.02, 0.04), c=WOOD, w=0.04)
    s.line((0.7, 0.3), (0.98, 0.04), c=WOOD, w=0.04)
    s.box(0.1, 0.34, 0.9, 0.86)
    s.oval(0.5, 0.86, 0.4, 0.12)
    zigzag = [(0.1 + 0.1 * k, 0.44 if k % 2 else 0.84) for k in range(9)]
    s.line(*zigzag, c=s.pale, w=0.03)
    s.oval(0.5, 0.34, 0.4, 0.13, c=CREAM)
    s.ring(0.5, 0.34, 0.4, 0.13, c=s.dark, w=0.035)


@DRAWINGS.register("toy", "brown orange red black blue", lean=30)
def guitar(s: Sketch) -> None:
    """Draw a guitar."""
    s.box(0.46, 0.06, 0.54, 0.5, c=INK if sum(s.main) > 150 else WOOD)
    s.box(0.43, 0.0, 0.57, 0.11, c=s.dark)
    s.oval(0.5, 0.76, 0.25, 0.23)
    s.oval(0.5, 0.53, 0.18, 0.16)
    s.oval(0.5, 0.62, 0.08, c=INK if sum(s.main) > 150 else CREAM)
    s.line((0.4, 0.82), (0.6, 0.82), c=INK if sum(s.main) > 150 else CREAM, w=0.035)
    s.line((0.5, 0.08), (0.5, 0.82), c=CREAM, w=0.014)


@DRAWINGS.register("toy", lean=3)
def gift(s: Sketch) -> None:
    """Draw a wrapped gift with a bow."""
    ribbon = s.accent()
    s.box(0.1, 0.42, 0.9, 0.98)
    s.box(0.05, 0.28, 0.95, 0.46, c=s.light)
    s.box(0.43, 0.28, 0.57, 0.98, c=ribbon)
    for side in (-1, 1):
        s.smooth(
            (0.5, 0.28),
            (0.5 + side * 0.14, 0.02),
            (0.5 + side * 0.34, 0.06),
            (0.5 + side * 0.28, 0.24),
            c=ribbon,
        )
    s.oval(0.5, 0.25, 0.07, c=mixed(ribbon, INK, 0.25))


@DRAWINGS.register("toy", "yellow orange gray red", lean=6, flips=False)
def bell(s: Sketch) -> None:
    """Draw a bell."""
    s.oval(0.5, 0.9, 0.1, c=s.dark)
    s.smooth(
        (0.5, 0.08),
        (0.7, 0.16),
        (0.76, 0.5),
        (0.88, 0.8),
        (0.5, 0.84),
        (0.12, 0.8),
        (0.24, 0.5),
        (0.3, 0.16),
    )
    s.box(0.06, 0.76, 0.94, 0.86, r=0.04)
    s.ring(0.5, 0.07, 0.06, c=s.dark, w=0.04)


@DRAWINGS.register("tool", lean=3)
def bag(s: Sketch) -> None:
    """Draw a bag with a handle."""
    s.ring(0.5, 0.36, 0.2, 0.28, c=s.dark, w=0.06, start=180, end=360)
    s.poly((0.14, 0.34), (0.86, 0.34), (0.94, 0.98), (0.06, 0.98))
    if s.maybe():
        s.oval(0.5, 0.64, 0.14, c=s.light)
    else:
        s.box(0.1, 0.56, 0.9, 0.66, c=s.light)


@DRAWINGS.register("tool", "red blue gray green yellow", lean=4)
def bucket(s: Sketch) -> None:
    """Draw a bucket of water."""
    s.ring(0.5, 0.34, 0.36, 0.32, c=METAL, w=0.035, start=180, end=360)
    s.poly((0.1, 0.34), (0.9, 0.34), (0.76, 0.98), (0.24, 0.98))
    s.oval(0.5, 0.34, 0.4, 0.08, c=s.dark)
    s.oval(0.5, 0.355, 0.34, 0.055, c=(90, 160, 215))


@DRAWINGS.register("tool", "white brown yellow pink red blue", lean=8, flips=False)
def envelope(s: Sketch) -> None:
    """Draw an envelope, sometimes sealed."""
    s.box(0.0, 0.2, 1.0, 0.84)
    s.line((0.02, 0.82), (0.4, 0.5), c=s.dark, w=0.025)
    s.line((0.98, 0.82), (0.6, 0.5), c=s.dark, w=0.025)
    s.poly((0.0, 0.2), (1.0, 0.2), (0.5, 0.6), c=s.light if sum(s.main) < 640 else s.dark)
    if s.maybe(0.4):
        s.oval(0.5, 0.56, 0.08, c=(200, 40, 50))


@DRAWINGS.register("tool", "yellow white orange blue", lean=4, flips=False)
def bulb(s: Sketch) -> None:
    """Draw a light bulb."""
    s.smooth(
        (0.5, 0.02), (0.8, 0.16), (0.84, 0.42), (0.64, 0.7), (0.36, 0.7), (0.16, 0.42), (0.2, 0.16)
    )
    s.line((0.42, 0.68), (0.4, 0.42), (0.5, 0.52), (0.6, 0.42), (0.58, 0.68), c=s.dark, w=0.03)
    for y in (0.7, 0.79, 0.88):
        s.box(0.36, y, 0.64, y + 0.07, c=METAL, r=0.02)
    s.oval(0.5, 0.96, 0.07, 0.04, c=INK)


@DRAWINGS.register("tool", "red blue gray green", lean=4, flips=False)
def magnet(s: Sketch) -> None:
    """Draw a horseshoe magnet."""
    s.ring(0.5, 0.42, 0.3, 0.34, w=0.2, start=180, end=360)
    for x in (0.1, 0.7):
        s.box(x, 0.41, x + 0.2, 0.74)
        s.box(x, 0.74, x + 0.2, 0.94, c=WHITE if sum(s.main) < 450 else INK)
