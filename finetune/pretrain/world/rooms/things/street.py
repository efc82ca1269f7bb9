"""Vehicles, buildings and other outdoor things."""

import math

from finetune.pretrain.world.drawing.paint import RGB, mixed
from finetune.pretrain.world.drawing.sketch import (
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
TYRE: RGB = (45, 45, 50)
LAMPS: dict[str, RGB] = {"red": (235, 35, 35), "yellow": (250, 210, 40), "green": (40, 200, 70)}


def wheel(s: Sketch, x: float, y: float, r: float) -> None:
    """Draw a wheel of radius `r` around (x, y)."""
    s.oval(x, y, r, c=TYRE)
    s.oval(x, y, r * 0.5, c=METAL)


@DRAWINGS.register("vehicle")
def car(s: Sketch) -> None:
    """Draw a car from the side."""
    roof = s.uniform(0.22, 0.32)
    s.poly((0.2, 0.5), (0.33, roof), (0.66, roof), (0.82, 0.5))
    s.poly((0.27, 0.49), (0.36, roof + 0.05), (0.48, roof + 0.05), (0.48, 0.49), c=GLASS)
    s.poly((0.52, 0.49), (0.52, roof + 0.05), (0.64, roof + 0.05), (0.74, 0.49), c=GLASS)
    s.box(0.02, 0.48, 0.98, 0.72, r=0.07)
    s.oval(0.95, 0.56, 0.035, c=GOLD)
    for x in (0.24, 0.76):
        wheel(s, x, 0.72, 0.12)


@DRAWINGS.register("vehicle", lean=3)
def bus(s: Sketch) -> None:
    """Draw a bus from the side."""
    s.box(0.0, 0.22, 1.0, 0.76, r=0.06)
    for k in range(4):
        s.box(0.06 + 0.18 * k, 0.3, 0.2 + 0.18 * k, 0.48, c=GLASS)
    s.box(0.8, 0.3, 0.95, 0.74, c=GLASS)
    s.box(0.0, 0.55, 0.78, 0.6, c=s.light)
    for x in (0.2, 0.68):
        wheel(s, x, 0.77, 0.1)


@DRAWINGS.register("vehicle", lean=3)
def truck(s: Sketch) -> None:
    """Draw a truck from the side."""
    s.box(0.0, 0.2, 0.62, 0.72)
    s.box(0.05, 0.28, 0.57, 0.34, c=s.dark)
    s.poly((0.65, 0.72), (0.65, 0.36), (0.84, 0.36), (0.98, 0.54), (0.98, 0.72), c=s.dark)
    s.poly((0.72, 0.52), (0.72, 0.41), (0.82, 0.41), (0.9, 0.52), c=GLASS)
    for x in (0.15, 0.42, 0.8):
        wheel(s, x, 0.75, 0.1)


@DRAWINGS.register("vehicle", lean=2)
def train(s: Sketch) -> None:
    """Draw a steam locomotive from the side."""
    s.box(0.04, 0.2, 0.4, 0.68)
    s.box(0.0, 0.14, 0.44, 0.22, c=s.dark)
    s.box(0.11, 0.28, 0.32, 0.46, c=GLASS)
    s.box(0.36, 0.38, 0.92, 0.68, r=0.05)
    s.poly((0.72, 0.4), (0.69, 0.16), (0.86, 0.16), (0.83, 0.4), c=s.dark)
    s.poly((0.9, 0.62), (1.0, 0.8), (0.84, 0.8), c=METAL)
    s.box(0.02, 0.66, 0.9, 0.72, c=INK)
    for x, r in ((0.16, 0.13), (0.46, 0.1), (0.66, 0.1), (0.83, 0.08)):
        s.oval(x, 0.88 - r, r, c=TYRE)
        s.oval(x, 0.88 - r, r * 0.4, c=s.light)


@DRAWINGS.register("vehicle", lean=6)
def boat(s: Sketch) -> None:
    """Draw a sailing boat."""
    s.line((0.48, 0.06), (0.48, 0.72), c=WOOD, w=0.035)
    sail = WHITE if s.maybe() else s.light
    s.poly((0.52, 0.08), (0.52, 0.62), (0.9, 0.62), c=sail)
    s.poly((0.44, 0.18), (0.44, 0.62), (0.16, 0.62), c=sail if s.maybe() else s.accent())
    s.poly((0.04, 0.7), (0.96, 0.7), (0.8, 0.94), (0.2, 0.94))


@DRAWINGS.register("vehicle", lean=14)
def plane(s: Sketch) -> None:
    """Draw an aeroplane from the side."""
    s.poly((0.52, 0.5), (0.3, 0.12), (0.42, 0.12), (0.7, 0.48), c=s.dark)
    s.poly((0.05, 0.48), (0.0, 0.22), (0.1, 0.22), (0.22, 0.46), c=s.dark)
    s.smooth((0.02, 0.45), (0.3, 0.41), (0.75, 0.41), (0.98, 0.52), (0.75, 0.62), (0.3, 0.6))
    for k in range(4):
        s.oval(0.36 + 0.1 * k, 0.49, 0.026, c=GLASS)
    s.poly((0.82, 0.46), (0.9, 0.47), (0.93, 0.5), (0.83, 0.5), c=GLASS)
    s.poly((0.46, 0.55), (0.62, 0.56), (0.34, 0.88), (0.24, 0.88), c=s.light)


@DRAWINGS.register("vehicle", lean=3)
def bicycle(s: Sketch) -> None:
    """Draw a bicycle from the side."""
    for x in (0.22, 0.78):
        s.ring(x, 0.66, 0.2, c=TYRE, w=0.045)
    s.line((0.22, 0.66), (0.4, 0.36), (0.7, 0.36), (0.48, 0.66), (0.22, 0.66), w=0.045)
    s.line((0.4, 0.36), (0.48, 0.66), w=0.045)
    s.line((0.78, 0.66), (0.68, 0.24), (0.8, 0.2), w=0.045)
    s.line((0.4, 0.36), (0.37, 0.28), c=INK, w=0.04)
    s.box(0.28, 0.23, 0.46, 0.28, c=INK, r=0.02)


@DRAWINGS.register("vehicle", lean=25, flips=False)
def rocket(s: Sketch) -> None:
    """Draw a rocket taking off."""
    s.smooth(
        (0.4, 0.76), (0.5, 0.8), (0.6, 0.76), (0.56, 0.9), (0.5, 1.0), (0.44, 0.9), c=(250, 160, 30)
    )
    fins = s.accent()
    for side in (-1, 1):
        s.poly(
            (0.5 + side * 0.14, 0.52), (0.5 + side * 0.32, 0.8), (0.5 + side * 0.12, 0.74), c=fins
        )
    s.smooth(
        (0.5, 0.0), (0.66, 0.22), (0.68, 0.5), (0.62, 0.76), (0.38, 0.76), (0.32, 0.5), (0.34, 0.22)
    )
    s.oval(0.5, 0.34, 0.09, c=WHITE)
    s.oval(0.5, 0.34, 0.065, c=(90, 150, 210))


@DRAWINGS.register("vehicle", lean=8)
def helicopter(s: Sketch) -> None:
    """Draw a helicopter from the side."""
    s.line((0.55, 0.5), (0.98, 0.42), w=0.06)
    s.oval(0.96, 0.4, 0.04, 0.1, c=s.dark)
    s.oval(0.36, 0.53, 0.3, 0.22)
    s.smooth((0.1, 0.5), (0.22, 0.36), (0.34, 0.36), (0.34, 0.54), c=GLASS)
    s.line((0.4, 0.34), (0.4, 0.22), c=INK, w=0.035)
    s.line((0.0, 0.22), (0.82, 0.22), c=INK, w=0.035)
    for x in (0.26, 0.46):
        s.line((x, 0.72), (x, 0.86), c=INK, w=0.025)
    s.line((0.1, 0.87), (0.64, 0.87), c=INK, w=0.035)


@DRAWINGS.register("place", lean=1)
def house(s: Sketch) -> None:
    """Draw a house, sometimes with a chimney."""
    roof = s.accent() if s.maybe(0.7) else s.dark
    if s.maybe():
        s.box(0.68, 0.12, 0.78, 0.4, c=mixed(roof, INK, 0.3))
    s.box(0.14, 0.42, 0.86, 0.98)
    s.poly((0.04, 0.46), (0.5, 0.06), (0.96, 0.46), c=roof)
    door = s.rng.choice((0.22, 0.42, 0.6))
    s.box(door, 0.64, door + 0.17, 0.98, c=WOOD)
    for x in (0.2, 0.42, 0.64):
        if abs(x - door) > 0.15:
            s.box(x, 0.58, x + 0.16, 0.74, c=GLASS)
            s.line((x + 0.08, 0.58), (x + 0.08, 0.74), c=WHITE, w=0.015)


@DRAWINGS.register("place", lean=1)
def castle(s: Sketch) -> None:
    """Draw a castle with two towers."""
    s.box(0.2, 0.42, 0.8, 0.96)
    for x in (0.05, 0.73):
        s.box(x, 0.26, x + 0.22, 0.96, c=s.light)
        for k in range(3):
            s.box(x - 0.02 + 0.095 * k, 0.18, x + 0.05 + 0.095 * k, 0.28, c=s.light)
        s.box(x + 0.08, 0.4, x + 0.14, 0.54, c=INK)
    for k in range(4):
        s.box(0.28 + 0.12 * k, 0.36, 0.35 + 0.12 * k, 0.44)
    s.box(0.4, 0.62, 0.6, 0.96, c=s.dark, r=0.0)
    s.oval(0.5, 0.64, 0.1, c=s.dark)


@DRAWINGS.register("place", "red orange green blue yellow", lean=1, flips=False)
def tent(s: Sketch) -> None:
    """Draw a tent from the front."""
    s.poly((0.5, 0.12), (1.0, 0.92), (0.0, 0.92))
    s.poly((0.5, 0.12), (0.66, 0.92), (0.34, 0.92), c=s.dark)
    s.poly((0.5, 0.3), (0.58, 0.92), (0.42, 0.92), c=INK)
    s.line((0.45, 0.05), (0.5, 0.14), (0.55, 0.05), c=WOOD, w=0.03)


@DRAWINGS.register("place", "red blue white black yellow", lean=1, flips=False)
def lighthouse(s: Sketch) -> None:
    """Draw a striped lighthouse."""
    band = WHITE if sum(s.main) < 600 else (200, 50, 50)
    s.poly((0.36, 0.3), (0.64, 0.3), (0.72, 0.98), (0.28, 0.98))
    for y in (0.42, 0.72):
        s.poly(
            (0.37 - (y - 0.3) * 0.11, y),
            (0.63 + (y - 0.3) * 0.11, y),
            (0.645 + (y - 0.3) * 0.13, y + 0.13),
            (0.355 - (y - 0.3) * 0.13, y + 0.13),
            c=band,
        )
    s.box(0.32, 0.26, 0.68, 0.31, c=INK)
    s.box(0.4, 0.12, 0.6, 0.26, c=(250, 225, 90))
    s.poly((0.35, 0.13), (0.5, 0.0), (0.65, 0.13), c=s.dark)


@DRAWINGS.register("place", "gray brown red black", lean=1)
def bridge(s: Sketch) -> None:
    """Draw a bridge with arches."""
    s.box(0.0, 0.42, 1.0, 0.54)
    for x in (0.0, 0.44, 0.88):
        s.box(x, 0.5, x + 0.12, 0.86)
    for x in (0.28, 0.72):
        s.ring(x, 0.68, 0.18, c=s.dark, w=0.06, start=180, end=360)
    s.line((0.02, 0.3), (0.98, 0.3), c=s.dark, w=0.03)
    for k in range(6):
        s.line((0.03 + 0.188 * k, 0.3), (0.03 + 0.188 * k, 0.44), c=s.dark, w=0.025)


@DRAWINGS.register("sign", "red yellow green", lean=2, flips=False)
def traffic_light(s: Sketch) -> None:
    """Draw a traffic light; its colour is that of the lit lamp."""
    lit = min(LAMPS, key=lambda n: sum(abs(a - b) for a, b in zip(LAMPS[n], s.main, strict=True)))
    s.box(0.46, 0.68, 0.54, 1.0, c=METAL)
    s.box(0.32, 0.0, 0.68, 0.72, c=(55, 58, 62), r=0.06)
    for y, name in ((0.13, "red"), (0.36, "yellow"), (0.59, "green")):
        rgb = LAMPS[name] if name == lit else mixed(LAMPS[name], (30, 30, 32), 0.78)
        s.oval(0.5, y, 0.1, c=rgb)


@DRAWINGS.register("sign", lean=4)
def flag(s: Sketch) -> None:
    """Draw a flag on a pole: a pennant, or waving, sometimes striped."""
    s.line((0.12, 0.02), (0.12, 1.0), c=WOOD if s.maybe() else METAL, w=0.05)
    if s.maybe(0.3):
        s.poly((0.14, 0.06), (0.95, 0.3), (0.14, 0.54))
        return
    top = [(0.14 + 0.8 * k / 12, 0.09 + 0.04 * math.sin(k * 0.6)) for k in range(13)]
    s.poly(*top, *((x, y + 0.45) for x, y in reversed(top)))
    if s.maybe(0.4):
        stripe = [(x, y + 0.15) for x, y in top]
        s.poly(*stripe, *((x, y + 0.15) for x, y in reversed(stripe)), c=s.light)


@DRAWINGS.register("sign", "red blue yellow green gray", lean=2)
def mailbox(s: Sketch) -> None:
    """Draw a mailbox with a raised flag."""
    s.box(0.42, 0.5, 0.52, 1.0, c=WOOD)
    s.box(0.1, 0.2, 0.86, 0.56)
    s.oval(0.1 + 0.02, 0.38, 0.02, 0.18)
    s.oval(0.48, 0.21, 0.38, 0.13, start=180, end=360)
    s.box(0.18, 0.3, 0.42, 0.35, c=INK)
    s.line((0.7, 0.34), (0.7, 0.06), (0.8, 0.06), (0.8, 0.13), (0.7, 0.13), c=s.accent(), w=0.035)


@DRAWINGS.register("sign", "black gray blue brown teal", lean=8, flips=False)
def anchor(s: Sketch) -> None:
    """Draw an anchor."""
    s.ring(0.5, 0.1, 0.08, w=0.05)
    s.line((0.5, 0.18), (0.5, 0.92), w=0.08)
    s.line((0.3, 0.3), (0.7, 0.3), w=0.07)
    s.ring(0.5, 0.56, 0.36, w=0.075, start=10, end=170)
    for side in (-1, 1):
        s.poly((0.5 + side * 0.48, 0.72), (0.5 + side * 0.4, 0.5), (0.5 + side * 0.24, 0.68))


@DRAWINGS.register("figure", "gray blue teal green orange red", lean=3, flips=False)
def robot(s: Sketch) -> None:
    """Draw a robot from the front."""
    s.line((0.5, 0.12), (0.5, 0.02), c=INK, w=0.03)
    s.oval(0.5, 0.03, 0.035, c=s.accent())
    for side in (-1, 1):
        hand = 0.5 + side * 0.4
        s.line((0.5 + side * 0.24, 0.5), (hand, 0.55), (hand, 0.76), c=s.dark, w=0.08)
        s.box(0.5 + side * 0.13 - 0.07, 0.78, 0.5 + side * 0.13 + 0.07, 1.0, c=s.dark)
    s.box(0.3, 0.1, 0.7, 0.38, r=0.04)
    s.box(0.25, 0.42, 0.75, 0.8, r=0.03)
    lamp = GOLD if s.maybe() else WHITE
    for side in (-1, 1):
        s.oval(0.5 + side * 0.1, 0.22, 0.055, c=lamp)
        s.oval(0.5 + side * 0.1, 0.22, 0.022, c=INK)
    s.box(0.4, 0.3, 0.6, 0.34, c=INK)
    s.box(0.36, 0.5, 0.64, 0.66, c=s.light)
    for k in range(3):
        s.oval(0.42 + 0.08 * k, 0.58, 0.025, c=s.rng.choice(((220, 50, 50), GOLD, (60, 170, 90))))


@DRAWINGS.register("figure", "white gray purple blue green", lean=8)
def ghost(s: Sketch) -> None:
    """Draw a ghost."""
    top = [
        (0.5 + 0.36 * math.cos(math.radians(a)), 0.42 + 0.4 * math.sin(math.radians(a)))
        for a in range(180, 361, 15)
    ]
    hem = [(0.86 - 0.12 * k, 0.98 if k % 2 == 0 else 0.86) for k in range(7)]
    s.poly(*top, *hem)
    eyes = INK if sum(s.main) > 250 else WHITE
    for side in (-1, 1):
        s.oval(0.5 + side * 0.13, 0.38, 0.06, 0.085, c=eyes)
    s.oval(0.5, 0.58, 0.06, 0.08, c=eyes)


@DRAWINGS.register("tool", lean=3, flips=False)
def umbrella(s: Sketch) -> None:
    """Draw an open umbrella."""
    s.line((0.5, 0.4), (0.5, 0.84), c=INK, w=0.04)
    s.ring(0.41, 0.84, 0.09, c=INK, w=0.045, start=0, end=180)
    s.oval(0.5, 0.5, 0.5, 0.44, start=180, end=360)
    for x in (0.0, 0.335, 0.665):
        s.oval(x + 0.167, 0.51, 0.165, 0.07, c=s.dark)
    s.line((0.5, 0.08), (0.5, 0.0), c=INK, w=0.04)
    if s.maybe():
        s.oval(0.5, 0.5, 0.17, 0.44, c=s.light, start=180, end=360)


@DRAWINGS.register("toy", lean=20)
def kite(s: Sketch) -> None:
    """Draw a kite with a tail."""
    tail = [(0.5 + 0.07 * math.sin(k * 1.1), 0.66 + 0.035 * k) for k in range(11)]
    s.line(*tail, c=INK, w=0.02)
    other = s.light if s.maybe() else s.pale
    s.poly((0.5, 0.0), (0.82, 0.28), (0.5, 0.7), (0.18, 0.28))
    s.poly((0.5, 0.0), (0.82, 0.28), (0.5, 0.28), c=other)
    s.poly((0.18, 0.28), (0.5, 0.28), (0.5, 0.7), c=other)
    for k in (3, 6, 9):
        x, y = tail[k]
        s.poly(
            (x - 0.06, y - 0.035),
            (x + 0.06, y + 0.035),
            (x + 0.06, y - 0.035),
            (x - 0.06, y + 0.035),
        )


@DRAWINGS.register("toy", lean=8)
def balloon(s: Sketch) -> None:
    """Draw a balloon on a string."""
    s.line((0.5, 0.64), (0.47, 0.76), (0.53, 0.88), (0.5, 1.0), c=INK, w=0.02)
    s.smooth((0.5, 0.0), (0.76, 0.12), (0.78, 0.38), (0.5, 0.64), (0.22, 0.38), (0.24, 0.12))
    s.poly((0.44, 0.67), (0.5, 0.6), (0.56, 0.67), c=s.dark)
    s.oval(0.38, 0.2, 0.05, 0.08, c=s.pale)


@DRAWINGS.register("place", "brown white gray red green", lean=1, flips=False)
def fence(s: Sketch) -> None:
    """Draw a picket fence."""
    for y in (0.45, 0.72):
        s.box(0.0, y, 1.0, y + 0.08, c=s.dark)
    for k in range(5):
        x = 0.03 + 0.2 * k
        s.poly((x, 0.95), (x, 0.36), (x + 0.07, 0.26), (x + 0.14, 0.36), (x + 0.14, 0.95))
