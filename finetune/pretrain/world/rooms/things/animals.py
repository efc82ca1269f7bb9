"""Animals."""

import math

from finetune.pretrain.world.drawing.paint import mixed
from finetune.pretrain.world.drawing.sketch import (
    BLUSH,
    CREAM,
    GLASS,
    GOLD,
    INK,
    WHITE,
    DrawingRegistry,
    Sketch,
)

DRAWINGS = DrawingRegistry()
FUR = "gray orange black white brown yellow"


@DRAWINGS.register("animal", FUR)
def cat(s: Sketch) -> None:
    """Draw a sitting cat from the front."""
    s.line((0.72, 0.85), (0.95, 0.75), (0.92, 0.45), w=0.07)
    s.oval(0.5, 0.75, 0.26, 0.27)
    head = 0.25
    for side in (-1, 1):
        s.poly((0.5 + side * 0.22, 0.02), (0.5 + side * 0.24, 0.32), (0.5 + side * 0.04, 0.2))
        s.poly(
            (0.5 + side * 0.19, 0.09), (0.5 + side * 0.2, 0.24), (0.5 + side * 0.1, 0.2), c=BLUSH
        )
    s.oval(0.5, 0.36, head, head * 0.88)
    for side in (-1, 1):
        s.eye(0.5 + side * 0.1, 0.33, 0.035)
        for rise in (-0.03, 0.03):
            s.line((0.5 + side * 0.1, 0.43), (0.5 + side * 0.32, 0.43 + rise), c=INK, w=0.012)
    s.poly((0.46, 0.4), (0.54, 0.4), (0.5, 0.45), c=BLUSH)
    s.oval(0.38, 0.97, 0.1, 0.05, c=s.light)
    s.oval(0.62, 0.97, 0.1, 0.05, c=s.light)


@DRAWINGS.register("animal", FUR)
def dog(s: Sketch) -> None:
    """Draw a standing dog from the side, sometimes with a collar."""
    for x in (0.22, 0.34, 0.62, 0.74):
        s.box(x, 0.6, x + 0.09, 0.95, c=s.dark if x in (0.34, 0.62) else None, r=0.03)
    s.line((0.2, 0.5), (0.06, 0.3), w=0.06)
    s.box(0.17, 0.42, 0.84, 0.72, r=0.13)
    s.oval(0.8, 0.3, 0.17, 0.16)
    s.box(0.82, 0.27, 1.04, 0.42, r=0.06)
    s.oval(1.02, 0.3, 0.035, c=INK)
    s.smooth((0.7, 0.16), (0.78, 0.2), (0.76, 0.42), (0.67, 0.46), (0.63, 0.3), c=s.dark)
    s.eye(0.86, 0.25, 0.026)
    if s.maybe():
        s.line((0.7, 0.47), (0.88, 0.48), c=s.accent(), w=0.05)


@DRAWINGS.register("animal")
def fish(s: Sketch) -> None:
    """Draw a fish from the side."""
    s.poly((0.72, 0.5), (1.0, 0.25), (0.94, 0.5), (1.0, 0.75), c=s.dark)
    s.smooth((0.35, 0.25), (0.55, 0.08), (0.62, 0.3), c=s.dark)
    s.smooth((0.02, 0.5), (0.25, 0.26), (0.55, 0.26), (0.8, 0.5), (0.55, 0.74), (0.25, 0.74))
    if s.maybe():
        for x in (0.45, 0.58):
            s.line((x, 0.3), (x + 0.05, 0.5), (x, 0.7), c=s.light, w=0.05)
    s.smooth((0.42, 0.52), (0.58, 0.48), (0.52, 0.62), c=s.dark)
    s.oval(0.2, 0.43, 0.055, c=WHITE)
    s.oval(0.19, 0.43, 0.03, c=INK)


@DRAWINGS.register("animal", "red blue yellow white black brown green orange gray")
def bird(s: Sketch) -> None:
    """Draw a standing bird from the side."""
    for x in (0.46, 0.56):
        s.line((x, 0.75), (x, 0.98), (x + 0.07, 0.98), c=GOLD, w=0.03)
    s.poly((0.3, 0.55), (0.0, 0.45), (0.05, 0.65), c=s.dark)
    s.smooth(
        (0.15, 0.5), (0.45, 0.38), (0.62, 0.2), (0.78, 0.2), (0.84, 0.4), (0.7, 0.75), (0.4, 0.8)
    )
    s.poly((0.82, 0.25), (1.0, 0.33), (0.83, 0.39), c=GOLD)
    s.smooth((0.22, 0.48), (0.52, 0.45), (0.58, 0.6), (0.36, 0.68), c=s.dark)
    s.eye(0.73, 0.29, 0.028)


@DRAWINGS.register("animal", "yellow white brown green black")
def duck(s: Sketch) -> None:
    """Draw a swimming duck from the side."""
    s.smooth(
        (0.05, 0.5), (0.3, 0.58), (0.55, 0.55), (0.8, 0.5), (0.82, 0.75), (0.55, 0.92), (0.25, 0.88)
    )
    s.oval(0.7, 0.32, 0.17)
    s.poly((0.6, 0.35), (0.82, 0.4), (0.8, 0.65), (0.55, 0.62))
    s.smooth((0.84, 0.3), (1.04, 0.36), (1.02, 0.43), (0.84, 0.42), c=(240, 140, 30))
    s.smooth((0.25, 0.62), (0.55, 0.62), (0.6, 0.75), (0.35, 0.82), c=s.dark)
    s.eye(0.74, 0.27, 0.028)


@DRAWINGS.register("animal", "white gray brown pink")
def rabbit(s: Sketch) -> None:
    """Draw a sitting rabbit from the front."""
    for side in (-1, 1):
        s.oval(0.5 + side * 0.11, 0.16, 0.07, 0.19)
        s.oval(0.5 + side * 0.11, 0.17, 0.035, 0.14, c=BLUSH)
    s.oval(0.5, 0.76, 0.25, 0.24)
    s.oval(0.5, 0.45, 0.2, 0.18)
    s.oval(0.5, 0.8, 0.13, 0.15, c=s.pale)
    for side in (-1, 1):
        s.eye(0.5 + side * 0.08, 0.42, 0.028)
        s.oval(0.5 + side * 0.15, 0.96, 0.1, 0.05)
    s.oval(0.5, 0.5, 0.03, 0.02, c=BLUSH)


@DRAWINGS.register("animal", "pink brown gray")
def pig(s: Sketch) -> None:
    """Draw a pig from the side."""
    for x in (0.2, 0.33, 0.58, 0.7):
        s.box(x, 0.7, x + 0.09, 0.92, c=s.dark)
    s.ring(0.05, 0.5, 0.05, 0.06, c=s.dark, w=0.03, start=60, end=330)
    s.oval(0.46, 0.56, 0.38, 0.25)
    s.oval(0.8, 0.45, 0.18)
    s.poly((0.7, 0.2), (0.84, 0.3), (0.7, 0.38), c=s.dark)
    s.oval(0.93, 0.5, 0.08, 0.09, c=s.light)
    for y in (0.47, 0.53):
        s.oval(0.95, y, 0.016, c=INK)
    s.eye(0.82, 0.39, 0.025)


@DRAWINGS.register("animal", "white black brown gray")
def sheep(s: Sketch) -> None:
    """Draw a woolly sheep from the side."""
    for x in (0.28, 0.4, 0.58, 0.68):
        s.box(x, 0.65, x + 0.06, 0.95, c=INK)
    for k in range(9):
        turn = 2 * math.pi * k / 9
        s.oval(0.46 + 0.26 * math.cos(turn), 0.5 + 0.16 * math.sin(turn), 0.14)
    s.oval(0.46, 0.5, 0.26, 0.2)
    face = INK if sum(s.main) > 300 else (170, 160, 150)
    s.oval(0.85, 0.42, 0.1, 0.15, c=face)
    s.oval(0.75, 0.35, 0.07, 0.04, c=face)
    s.oval(0.84, 0.28, 0.1, 0.07)
    s.oval(0.87, 0.38, 0.025, c=WHITE if face == INK else INK)


@DRAWINGS.register("animal", "green brown purple red")
def snake(s: Sketch) -> None:
    """Draw a winding snake."""
    path = [(0.04 + 0.72 * k / 20, 0.6 + 0.2 * math.sin(k * 0.75)) for k in range(21)]
    s.line(*path, (0.84, 0.5), (0.86, 0.38), w=0.12)
    s.line(*path[1:-1:1], c=s.light, w=0.03)
    s.oval(0.86, 0.33, 0.11, 0.08)
    s.line((0.95, 0.34), (1.05, 0.36), c=(220, 30, 40), w=0.02)
    s.eye(0.88, 0.3, 0.022)


@DRAWINGS.register("animal", "green brown teal")
def turtle(s: Sketch) -> None:
    """Draw a turtle from the side."""
    skin = mixed(s.light, (220, 210, 120), 0.4)
    for x in (0.22, 0.62):
        s.box(x, 0.6, x + 0.13, 0.82, c=skin, r=0.05)
    s.poly((0.12, 0.66), (0.0, 0.72), (0.14, 0.72), c=skin)
    s.oval(0.88, 0.48, 0.12, 0.1, c=skin)
    s.line((0.7, 0.62), (0.84, 0.52), c=skin, w=0.1)
    s.oval(0.46, 0.68, 0.37, 0.46, start=180, end=360)
    for x in (0.28, 0.46, 0.64):
        s.oval(x, 0.52 - 0.06 * (x == 0.46), 0.075, 0.085, c=s.dark)
    s.eye(0.92, 0.45, 0.022)


@DRAWINGS.register("animal", lean=25)
def butterfly(s: Sketch) -> None:
    """Draw a butterfly with spread wings."""
    spot = s.accent()
    for side in (-1, 1):
        s.smooth(
            (0.5, 0.5),
            (0.5 + side * 0.12, 0.2),
            (0.5 + side * 0.42, 0.06),
            (0.5 + side * 0.46, 0.36),
            (0.5 + side * 0.2, 0.54),
        )
        s.smooth(
            (0.5, 0.52),
            (0.5 + side * 0.3, 0.55),
            (0.5 + side * 0.36, 0.84),
            (0.5 + side * 0.16, 0.86),
            c=s.dark if s.maybe(0.5) else None,
        )
        s.oval(0.5 + side * 0.28, 0.28, 0.08, c=spot)
        s.oval(0.5 + side * 0.22, 0.7, 0.05, c=spot)
        s.line((0.5, 0.25), (0.5 + side * 0.08, 0.06), c=INK, w=0.015)
    s.oval(0.5, 0.52, 0.035, 0.3, c=INK)


@DRAWINGS.register("animal", "yellow orange", lean=15)
def bee(s: Sketch) -> None:
    """Draw a flying bee from the side."""
    for x, lean in ((0.42, -0.06), (0.58, 0.06)):
        s.smooth((x, 0.42), (x + lean - 0.1, 0.12), (x + lean + 0.1, 0.1), c=GLASS)
    s.poly((0.1, 0.5), (0.0, 0.56), (0.1, 0.62), c=INK)
    s.oval(0.5, 0.56, 0.42, 0.24)
    for x, tall in ((0.3, 0.21), (0.5, 0.24), (0.68, 0.21)):
        s.box(x - 0.05, 0.56 - tall, x + 0.05, 0.56 + tall, c=INK)
    s.oval(0.88, 0.54, 0.13, 0.15, c=mixed(s.main, INK, 0.3))
    s.eye(0.92, 0.5, 0.025)


@DRAWINGS.register("animal", "black brown gray purple", lean=40)
def spider(s: Sketch) -> None:
    """Draw a spider from above."""
    for side in (-1, 1):
        for reach, low in ((0.42, 0.05), (0.5, 0.36), (0.5, 0.68), (0.4, 0.98)):
            knee = (0.5 + side * reach * 0.66, 0.5 + (low - 0.5) * 0.5 - 0.1)
            s.line((0.5, 0.5), knee, (0.5 + side * reach, low), w=0.032)
    s.oval(0.5, 0.62, 0.19, 0.22)
    s.oval(0.5, 0.36, 0.12)
    for side in (-1, 1):
        s.oval(0.5 + side * 0.05, 0.32, 0.025, c=WHITE)


@DRAWINGS.register("animal", "brown gray orange purple pink")
def snail(s: Sketch) -> None:
    """Draw a snail with its shell from the side."""
    skin = CREAM if s.maybe() else (190, 175, 120)
    s.smooth(
        (0.02, 0.9),
        (0.2, 0.78),
        (0.6, 0.8),
        (0.76, 0.5),
        (0.9, 0.42),
        (0.97, 0.55),
        (0.86, 0.85),
        (0.6, 0.92),
        c=skin,
    )
    for x in (0.84, 0.94):
        s.line((x - 0.02, 0.48), (x, 0.24), c=skin, w=0.03)
        s.oval(x, 0.23, 0.03, c=INK)
    s.oval(0.4, 0.5, 0.32)
    spiral = [
        (
            0.4 + 0.27 * (1 - k / 40) * math.cos(k * 0.4),
            0.5 + 0.27 * (1 - k / 40) * math.sin(k * 0.4),
        )
        for k in range(38)
    ]
    s.line(*spiral, c=s.dark, w=0.035)


@DRAWINGS.register("animal", "white brown black")
def cow(s: Sketch) -> None:
    """Draw a spotted cow from the side."""
    spot = (60, 40, 30) if sum(s.main) > 300 else WHITE
    for x in (0.16, 0.28, 0.58, 0.68):
        s.box(x, 0.6, x + 0.08, 0.96)
    s.line((0.14, 0.4), (0.05, 0.45), (0.04, 0.75), w=0.03)
    s.box(0.12, 0.34, 0.78, 0.7, r=0.1)
    s.smooth((0.24, 0.4), (0.4, 0.38), (0.42, 0.55), (0.28, 0.58), c=spot)
    s.smooth((0.54, 0.5), (0.68, 0.46), (0.68, 0.62), (0.56, 0.64), c=spot)
    s.oval(0.48, 0.72, 0.08, 0.05, c=BLUSH)
    for x in (0.78, 0.92):
        tip = x + (0.06 if x > 0.8 else -0.06)
        s.poly((x - 0.03, 0.18), (tip, 0.04), (x + 0.03, 0.18), c=CREAM)
    s.oval(0.7, 0.26, 0.09, 0.045)
    s.box(0.74, 0.14, 0.98, 0.5, r=0.1)
    s.oval(0.87, 0.47, 0.14, 0.09, c=BLUSH)
    for x in (0.82, 0.91):
        s.eye(x, 0.28, 0.02)
        s.oval(x, 0.47, 0.015, c=INK)


@DRAWINGS.register("animal", "gray blue teal pink")
def elephant(s: Sketch) -> None:
    """Draw an elephant from the side."""
    for x in (0.14, 0.28, 0.46, 0.58):
        s.box(x, 0.6, x + 0.12, 0.94, c=s.dark if x in (0.28, 0.46) else None)
    s.line((0.12, 0.45), (0.03, 0.65), w=0.03)
    s.oval(0.4, 0.48, 0.32, 0.28)
    s.oval(0.74, 0.36, 0.19)
    s.line((0.88, 0.4), (0.95, 0.55), (0.93, 0.78), (1.0, 0.84), w=0.09)
    s.smooth((0.62, 0.18), (0.72, 0.26), (0.7, 0.54), (0.56, 0.58), (0.48, 0.36), c=s.light)
    s.poly((0.84, 0.5), (0.9, 0.62), (0.82, 0.55), c=WHITE)
    s.eye(0.82, 0.32, 0.024)


@DRAWINGS.register("animal", "black white blue gray")
def penguin(s: Sketch) -> None:
    """Draw a penguin from the front."""
    for side in (-1, 1):
        s.oval(0.5 + side * 0.13, 0.96, 0.11, 0.045, c=(240, 150, 40))
        s.smooth(
            (0.5 + side * 0.2, 0.4), (0.5 + side * 0.38, 0.7), (0.5 + side * 0.22, 0.66), c=s.dark
        )
    s.oval(0.5, 0.58, 0.27, 0.38)
    s.oval(0.5, 0.24, 0.19, 0.2)
    chest = WHITE if sum(s.main) < 600 else (205, 210, 215)
    s.oval(0.5, 0.64, 0.18, 0.29, c=chest)
    for side in (-1, 1):
        s.oval(0.5 + side * 0.07, 0.21, 0.055, 0.065, c=chest)
        s.oval(0.5 + side * 0.06, 0.21, 0.025, c=INK)
    s.poly((0.43, 0.29), (0.57, 0.29), (0.5, 0.38), c=(240, 150, 40))


@DRAWINGS.register("animal", "red orange purple", flips=False)
def crab(s: Sketch) -> None:
    """Draw a crab with raised claws from the front."""
    for side in (-1, 1):
        for k in range(3):
            s.line(
                (0.5 + side * 0.2, 0.62),
                (0.5 + side * (0.44 - 0.06 * k), 0.66 + 0.08 * k),
                (0.5 + side * (0.46 - 0.08 * k), 0.8 + 0.07 * k),
                w=0.035,
            )
        s.line((0.5 + side * 0.22, 0.5), (0.5 + side * 0.4, 0.38), w=0.05)
        s.oval(0.5 + side * 0.4, 0.27, 0.11, start=-60 - 0, end=240)
        s.line((0.5 + side * 0.1, 0.45), (0.5 + side * 0.1, 0.28), w=0.03)
        s.oval(0.5 + side * 0.1, 0.26, 0.045, c=WHITE)
        s.oval(0.5 + side * 0.1, 0.26, 0.022, c=INK)
    s.oval(0.5, 0.58, 0.3, 0.2)
    s.ring(0.5, 0.58, 0.12, 0.07, c=s.dark, w=0.025, start=20, end=160)
