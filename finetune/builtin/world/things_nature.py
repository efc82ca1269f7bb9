"""Animals, plants, weather and landmarks of the things room."""

import math

from finetune.builtin.world.things_sketch import (
    BLUSH,
    CREAM,
    GOLD,
    INK,
    LEAF,
    WHITE,
    WOOD,
    Shelf,
    Sketch,
    mixed,
)

SHELF = Shelf()
FUR = "gray orange black white brown yellow"


@SHELF.add("animal", FUR)
def cat(s: Sketch) -> None:
    s.line((0.72, 0.85), (0.95, 0.75), (0.92, 0.45), w=0.07)
    s.oval(0.5, 0.75, 0.26, 0.27)
    head = 0.25
    for side in (-1, 1):
        s.poly((0.5 + side * 0.22, 0.02), (0.5 + side * 0.24, 0.32), (0.5 + side * 0.04, 0.2))
        s.poly((0.5 + side * 0.19, 0.09), (0.5 + side * 0.2, 0.24), (0.5 + side * 0.1, 0.2),
               c=BLUSH)
    s.oval(0.5, 0.36, head, head * 0.88)
    for side in (-1, 1):
        s.eye(0.5 + side * 0.1, 0.33, 0.035)
        for rise in (-0.03, 0.03):
            s.line((0.5 + side * 0.1, 0.43), (0.5 + side * 0.32, 0.43 + rise), c=INK, w=0.012)
    s.poly((0.46, 0.4), (0.54, 0.4), (0.5, 0.45), c=BLUSH)
    s.oval(0.38, 0.97, 0.1, 0.05, c=s.light)
    s.oval(0.62, 0.97, 0.1, 0.05, c=s.light)


@SHELF.add("animal", FUR)
def dog(s: Sketch) -> None:
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


@SHELF.add("animal")
def fish(s: Sketch) -> None:
    s.poly((0.72, 0.5), (1.0, 0.25), (0.94, 0.5), (1.0, 0.75), c=s.dark)
    s.smooth((0.35, 0.25), (0.55, 0.08), (0.62, 0.3), c=s.dark)
    s.smooth((0.02, 0.5), (0.25, 0.26), (0.55, 0.26), (0.8, 0.5), (0.55, 0.74), (0.25, 0.74))
    if s.maybe():
        for x in (0.45, 0.58):
            s.line((x, 0.3), (x + 0.05, 0.5), (x, 0.7), c=s.light, w=0.05)
    s.smooth((0.42, 0.52), (0.58, 0.48), (0.52, 0.62), c=s.dark)
    s.oval(0.2, 0.43, 0.055, c=WHITE)
    s.oval(0.19, 0.43, 0.03, c=INK)


@SHELF.add("animal", "red blue yellow white black brown green orange gray")
def bird(s: Sketch) -> None:
    for x in (0.46, 0.56):
        s.line((x, 0.75), (x, 0.98), (x + 0.07, 0.98), c=GOLD, w=0.03)
    s.poly((0.3, 0.55), (0.0, 0.45), (0.05, 0.65), c=s.dark)
    s.smooth((0.15, 0.5), (0.45, 0.38), (0.62, 0.2), (0.78, 0.2), (0.84, 0.4), (0.7, 0.75),
             (0.4, 0.8))
    s.poly((0.82, 0.25), (1.0, 0.33), (0.83, 0.39), c=GOLD)
    s.smooth((0.22, 0.48), (0.52, 0.45), (0.58, 0.6), (0.36, 0.68), c=s.dark)
    s.eye(0.73, 0.29, 0.028)


@SHELF.add("animal", "yellow white brown green black")
def duck(s: Sketch) -> None:
    s.smooth((0.05, 0.5), (0.3, 0.58), (0.55, 0.55), (0.8, 0.5), (0.82, 0.75), (0.55, 0.92),
             (0.25, 0.88))
    s.oval(0.7, 0.32, 0.17)
    s.poly((0.6, 0.35), (0.82, 0.4), (0.8, 0.65), (0.55, 0.62))
    s.smooth((0.84, 0.3), (1.04, 0.36), (1.02, 0.43), (0.84, 0.42), c=(240, 140, 30))
    s.smooth((0.25, 0.62), (0.55, 0.62), (0.6, 0.75), (0.35, 0.82), c=s.dark)
    s.eye(0.74, 0.27, 0.028)


@SHELF.add("animal", "white gray brown pink")
def rabbit(s: Sketch) -> None:
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


@SHELF.add("animal", "pink brown gray")
def pig(s: Sketch) -> None:
    for x in (0.2, 0.33, 0.58, 0.7):
        s.box(x, 0.7, x + 0.09, 0.92, c=s.dark)
    s.hoop(0.05, 0.5, 0.05, 0.06, c=s.dark, w=0.03, start=60, end=330)
    s.oval(0.46, 0.56, 0.38, 0.25)
    s.oval(0.8, 0.45, 0.18)
    s.poly((0.7, 0.2), (0.84, 0.3), (0.7, 0.38), c=s.dark)
    s.oval(0.93, 0.5, 0.08, 0.09, c=s.light)
    for y in (0.47, 0.53):
        s.oval(0.95, y, 0.016, c=INK)
    s.eye(0.82, 0.39, 0.025)


@SHELF.add("animal", "white black brown gray")
def sheep(s: Sketch) -> None:
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


@SHELF.add("animal", "green brown purple red")
def snake(s: Sketch) -> None:
    path = [(0.04 + 0.72 * k / 20, 0.6 + 0.2 * math.sin(k * 0.75)) for k in range(21)]
    s.line(*path, (0.84, 0.5), (0.86, 0.38), w=0.12)
    s.line(*path[1:-1:1], c=s.light, w=0.03)
    s.oval(0.86, 0.33, 0.11, 0.08)
    s.line((0.95, 0.34), (1.05, 0.36), c=(220, 30, 40), w=0.02)
    s.eye(0.88, 0.3, 0.022)


@SHELF.add("animal", "green brown teal")
def turtle(s: Sketch) -> None:
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


@SHELF.add("animal", lean=25)
def butterfly(s: Sketch) -> None:
    spot = s.accent()
    for side in (-1, 1):
        s.smooth((0.5, 0.5), (0.5 + side * 0.12, 0.2), (0.5 + side * 0.42, 0.06),
                 (0.5 + side * 0.46, 0.36), (0.5 + side * 0.2, 0.54))
        s.smooth((0.5, 0.52), (0.5 + side * 0.3, 0.55), (0.5 + side * 0.36, 0.84),
                 (0.5 + side * 0.16, 0.86), c=s.dark if s.maybe(0.5) else None)
        s.oval(0.5 + side * 0.28, 0.28, 0.08, c=spot)
        s.oval(0.5 + side * 0.22, 0.7, 0.05, c=spot)
        s.line((0.5, 0.25), (0.5 + side * 0.08, 0.06), c=INK, w=0.015)
    s.oval(0.5, 0.52, 0.035, 0.3, c=INK)


@SHELF.add("animal", "yellow orange", lean=15)
def bee(s: Sketch) -> None:
    for x, lean in ((0.42, -0.06), (0.58, 0.06)):
        s.smooth((x, 0.42), (x + lean - 0.1, 0.12), (x + lean + 0.1, 0.1), c=GLASS_WING)
    s.poly((0.1, 0.5), (0.0, 0.56), (0.1, 0.62), c=INK)
    s.oval(0.5, 0.56, 0.42, 0.24)
    for x, tall in ((0.3, 0.21), (0.5, 0.24), (0.68, 0.21)):
        s.box(x - 0.05, 0.56 - tall, x + 0.05, 0.56 + tall, c=INK)
    s.oval(0.88, 0.54, 0.13, 0.15, c=mixed(s.main, INK, 0.3))
    s.eye(0.92, 0.5, 0.025)


GLASS_WING = (215, 230, 242)


@SHELF.add("animal", "black brown gray purple", lean=40)
def spider(s: Sketch) -> None:
    for side in (-1, 1):
        for reach, low in ((0.42, 0.05), (0.5, 0.36), (0.5, 0.68), (0.4, 0.98)):
            knee = (0.5 + side * reach * 0.66, 0.5 + (low - 0.5) * 0.5 - 0.1)
            s.line((0.5, 0.5), knee, (0.5 + side * reach, low), w=0.032)
    s.oval(0.5, 0.62, 0.19, 0.22)
    s.oval(0.5, 0.36, 0.12)
    for side in (-1, 1):
        s.oval(0.5 + side * 0.05, 0.32, 0.025, c=WHITE)


@SHELF.add("animal", "brown gray orange purple pink")
def snail(s: Sketch) -> None:
    skin = CREAM if s.maybe() else (190, 175, 120)
    s.smooth((0.02, 0.9), (0.2, 0.78), (0.6, 0.8), (0.76, 0.5), (0.9, 0.42), (0.97, 0.55),
             (0.86, 0.85), (0.6, 0.92), c=skin)
    for x in (0.84, 0.94):
        s.line((x - 0.02, 0.48), (x, 0.24), c=skin, w=0.03)
        s.oval(x, 0.23, 0.03, c=INK)
    s.oval(0.4, 0.5, 0.32)
    spiral = [(0.4 + 0.27 * (1 - k / 40) * math.cos(k * 0.4),
               0.5 + 0.27 * (1 - k / 40) * math.sin(k * 0.4)) for k in range(38)]
    s.line(*spiral, c=s.dark, w=0.035)


@SHELF.add("animal", "white brown black")
def cow(s: Sketch) -> None:
    spot = (60, 40, 30) if sum(s.main) > 300 else WHITE
    for x in (0.16, 0.28, 0.58, 0.68):
        s.box(x, 0.6, x + 0.08, 0.96)
    s.line((0.14, 0.4), (0.05, 0.45), (0.04, 0.75), w=0.03)
    s.box(0.12, 0.34, 0.78, 0.7, r=0.1)
    s.smooth((0.24, 0.4), (0.4, 0.38), (0.42, 0.55), (0.28, 0.58), c=spot)
    s.smooth((0.54, 0.5), (0.68, 0.46), (0.68, 0.62), (0.56, 0.64), c=spot)
    s.oval(0.48, 0.72, 0.08, 0.05, c=BLUSH)
    for x in (0.78, 0.92):
        s.poly((x - 0.03, 0.18), (x + (0.06 if x > 0.8 else -0.06), 0.04), (x + 0.03, 0.18), c=CREAM)
    s.oval(0.7, 0.26, 0.09, 0.045)
    s.box(0.74, 0.14, 0.98, 0.5, r=0.1)
    s.oval(0.87, 0.47, 0.14, 0.09, c=BLUSH)
    for x in (0.82, 0.91):
        s.eye(x, 0.28, 0.02)
        s.oval(x, 0.47, 0.015, c=INK)


@SHELF.add("animal", "gray blue teal pink")
def elephant(s: Sketch) -> None:
    for x in (0.14, 0.28, 0.46, 0.58):
        s.box(x, 0.6, x + 0.12, 0.94, c=s.dark if x in (0.28, 0.46) else None)
    s.line((0.12, 0.45), (0.03, 0.65), w=0.03)
    s.oval(0.4, 0.48, 0.32, 0.28)
    s.oval(0.74, 0.36, 0.19)
    s.line((0.88, 0.4), (0.95, 0.55), (0.93, 0.78), (1.0, 0.84), w=0.09)
    s.smooth((0.62, 0.18), (0.72, 0.26), (0.7, 0.54), (0.56, 0.58), (0.48, 0.36), c=s.light)
    s.poly((0.84, 0.5), (0.9, 0.62), (0.82, 0.55), c=WHITE)
    s.eye(0.82, 0.32, 0.024)


@SHELF.add("animal", "black white blue gray")
def penguin(s: Sketch) -> None:
    for side in (-1, 1):
        s.oval(0.5 + side * 0.13, 0.96, 0.11, 0.045, c=(240, 150, 40))
        s.smooth((0.5 + side * 0.2, 0.4), (0.5 + side * 0.38, 0.7), (0.5 + side * 0.22, 0.66),
                 c=s.dark)
    s.oval(0.5, 0.58, 0.27, 0.38)
    s.oval(0.5, 0.24, 0.19, 0.2)
    chest = WHITE if sum(s.main) < 600 else (205, 210, 215)
    s.oval(0.5, 0.64, 0.18, 0.29, c=chest)
    for side in (-1, 1):
        s.oval(0.5 + side * 0.07, 0.21, 0.055, 0.065, c=chest)
        s.oval(0.5 + side * 0.06, 0.21, 0.025, c=INK)
    s.poly((0.43, 0.29), (0.57, 0.29), (0.5, 0.38), c=(240, 150, 40))


@SHELF.add("animal", "red orange purple", flips=False)
def crab(s: Sketch) -> None:
    for side in (-1, 1):
        for k in range(3):
            s.line((0.5 + side * 0.2, 0.62), (0.5 + side * (0.44 - 0.06 * k), 0.66 + 0.08 * k),
                   (0.5 + side * (0.46 - 0.08 * k), 0.8 + 0.07 * k), w=0.035)
        s.line((0.5 + side * 0.22, 0.5), (0.5 + side * 0.4, 0.38), w=0.05)
        s.oval(0.5 + side * 0.4, 0.27, 0.11, start=-60 - 0, end=240)
        s.line((0.5 + side * 0.1, 0.45), (0.5 + side * 0.1, 0.28), w=0.03)
        s.oval(0.5 + side * 0.1, 0.26, 0.045, c=WHITE)
        s.oval(0.5 + side * 0.1, 0.26, 0.022, c=INK)
    s.oval(0.5, 0.58, 0.3, 0.2)
    s.hoop(0.5, 0.58, 0.12, 0.07, c=s.dark, w=0.025, start=20, end=160)


@SHELF.add("plant", "green green teal orange red", lean=2)
def tree(s: Sketch) -> None:
    wide = s.any(0.06, 0.09)
    s.poly((0.5 - wide, 1), (0.5 - wide * 0.7, 0.5), (0.5 + wide * 0.7, 0.5), (0.5 + wide, 1), c=WOOD)
    if s.maybe(0.35):  # a fir
        for k in range(3):
            y = 0.05 + 0.2 * k
            s.poly((0.5, y - 0.05), (0.5 + 0.18 + 0.08 * k, y + 0.3), (0.5 - 0.18 - 0.08 * k, y + 0.3),
                   c=s.dark if k % 2 else None)
        return
    if s.maybe():
        s.oval(0.5, 0.34, 0.34, 0.33)
        s.oval(0.42, 0.26, 0.13, 0.12, c=s.light)
        return
    for x, y, r in ((0.3, 0.45, 0.2), (0.7, 0.45, 0.2), (0.36, 0.25, 0.2), (0.64, 0.25, 0.2),
                    (0.5, 0.36, 0.24)):
        s.oval(x, y, r)
    if s.maybe(0.3):
        spot = s.accent()
        for x, y in ((0.36, 0.3), (0.6, 0.22), (0.66, 0.46), (0.44, 0.5)):
            s.oval(x, y, 0.035, c=spot)


@SHELF.add("plant", "red yellow pink purple white blue orange")
def flower(s: Sketch) -> None:
    s.line((0.5, 0.4), (0.5 + s.any(-0.05, 0.05), 0.7), (0.5, 1), c=LEAF, w=0.045)
    s.smooth((0.5, 0.85), (0.62, 0.68), (0.78, 0.66), (0.66, 0.8), c=LEAF)
    if s.maybe():
        s.smooth((0.5, 0.9), (0.4, 0.74), (0.24, 0.72), (0.34, 0.86), c=LEAF)
    if s.maybe(0.3):  # a tulip
        s.smooth((0.5, 0.55), (0.28, 0.45), (0.28, 0.1), (0.4, 0.25), (0.5, 0.08), (0.6, 0.25),
                 (0.72, 0.1), (0.72, 0.45))
        return
    count = s.rng.choice((5, 6, 8))
    for k in range(count):
        turn = 2 * math.pi * k / count
        s.oval(0.5 + 0.19 * math.cos(turn), 0.3 + 0.19 * math.sin(turn), 0.105)
    heart = GOLD if sum(abs(a - b) for a, b in zip(s.main, GOLD, strict=True)) > 120 else WOOD
    s.oval(0.5, 0.3, 0.12, c=heart)


@SHELF.add("plant", "green teal", lean=3)
def cactus(s: Sketch) -> None:
    s.box(0.4, 0.08, 0.6, 0.8, r=0.1)
    s.line((0.45, 0.55), (0.2, 0.55), (0.2, 0.3), w=0.11)
    s.line((0.55, 0.45), (0.8, 0.45), (0.8, 0.2), w=0.11)
    for x, y in ((0.46, 0.2), (0.54, 0.3), (0.46, 0.4), (0.54, 0.55), (0.2, 0.38), (0.8, 0.3)):
        s.line((x - 0.02, y), (x + 0.02, y - 0.03), c=s.light, w=0.014)
    pot = s.accent()
    s.poly((0.28, 0.76), (0.72, 0.76), (0.64, 1.0), (0.36, 1.0), c=pot)
    s.box(0.25, 0.72, 0.75, 0.8, c=mixed(pot, INK, 0.2))


@SHELF.add("plant", "green orange red yellow brown", lean=120)
def leaf(s: Sketch) -> None:
    s.smooth((0.5, 0.02), (0.74, 0.25), (0.76, 0.52), (0.5, 0.84), (0.24, 0.52), (0.26, 0.25))
    s.line((0.5, 0.1), (0.5, 1.0), c=s.dark, w=0.03)
    for y in (0.3, 0.46, 0.62):
        s.line((0.34, y - 0.1), (0.5, y), (0.66, y - 0.1), c=s.dark, w=0.02)


@SHELF.add("plant", "red brown white orange purple")
def mushroom(s: Sketch) -> None:
    s.smooth((0.4, 0.45), (0.6, 0.45), (0.62, 0.75), (0.66, 0.95), (0.34, 0.95), (0.38, 0.75),
             c=CREAM)
    s.oval(0.5, 0.52, 0.45, 0.44, start=180, end=360)
    s.oval(0.5, 0.51, 0.45, 0.07, c=s.dark)
    if s.maybe(0.8):
        spot = WHITE if sum(s.main) < 600 else (190, 60, 60)
        for x, y, r in ((0.5, 0.22, 0.07), (0.28, 0.36, 0.06), (0.72, 0.36, 0.06), (0.5, 0.41, 0.045)):
            s.oval(x, y, r, c=spot)


@SHELF.add("sky", "yellow orange", lean=30)
def sun(s: Sketch) -> None:
    count = s.rng.choice((8, 10, 12))
    for k in range(count):
        turn = 2 * math.pi * k / count
        tip = (0.5 + 0.49 * math.cos(turn), 0.5 + 0.49 * math.sin(turn))
        if s.parts and s.parts[0].width:
            s.line((0.5, 0.5), tip, w=0.045)
        else:
            side = [(0.5 + 0.3 * math.cos(turn + d), 0.5 + 0.3 * math.sin(turn + d))
                    for d in (-0.2, 0.2)]
            s.poly(*side, tip)
    s.oval(0.5, 0.5, 0.29, c=s.main if s.maybe() else s.light)


@SHELF.add("sky", "yellow white gray orange blue", lean=20)
def moon(s: Sketch) -> None:
    outer = [(0.5 + 0.5 * math.cos(t), 0.5 + 0.5 * math.sin(t))
             for t in (math.radians(60 + 12 * k) for k in range(21))]
    inner = [(0.68 + 0.41 * math.cos(t), 0.5 + 0.41 * math.sin(t))
             for t in (math.radians(282 - 10.2 * k) for k in range(21))]
    s.poly(*outer, *inner)
    for x, y, r in ((0.14, 0.45, 0.05), (0.25, 0.7, 0.04), (0.27, 0.26, 0.035)):
        s.oval(x, y, r, c=mixed(s.main, INK, 0.15))


@SHELF.add("sky", "white gray blue pink", lean=2)
def cloud(s: Sketch) -> None:
    for x, y, r in ((0.2, 0.6, 0.17), (0.42, 0.46, 0.22), (0.66, 0.5, 0.19), (0.83, 0.62, 0.15)):
        s.oval(x, y, r, r * s.any(0.9, 1.0))
    s.box(0.18, 0.6, 0.85, 0.77, r=0.08)


@SHELF.add("sky", "yellow orange purple white", lean=8)
def lightning(s: Sketch) -> None:
    s.poly((0.42, 0.0), (0.72, 0.0), (0.56, 0.36), (0.76, 0.36), (0.34, 1.0), (0.46, 0.54),
           (0.26, 0.54))


@SHELF.add("sky", "white blue gray", lean=3)
def snowman(s: Sketch) -> None:
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


@SHELF.add("place", "gray brown blue purple green", lean=1)
def mountain(s: Sketch) -> None:
    peak = s.any(0.4, 0.55)
    s.poly((0.45, 0.95), (0.74, 0.35), (1.0, 0.95), c=s.dark)
    s.poly((0.0, 0.95), (peak, 0.08), (0.84, 0.95))
    cut = 0.28
    left, right = peak - peak * (cut - 0.08) / 0.87, peak + (0.84 - peak) * (cut - 0.08) / 0.87
    s.poly((peak, 0.08), (right, cut), (peak + 0.04, cut - 0.05), (peak - 0.02, cut + 0.05),
           (left, cut), c=WHITE if sum(s.main) < 620 else (120, 120, 130))


def face(s: Sketch, bend: float) -> None:
    """A round face; `bend` > 0 smiles, < 0 frowns."""
    s.oval(0.5, 0.5, 0.5)
    for side in (-1, 1):
        s.oval(0.5 + side * 0.17, 0.4, 0.055, s.any(0.055, 0.085), c=INK)
        if s.maybe(0.3):
            s.oval(0.5 + side * 0.3, 0.58, 0.07, 0.05, c=BLUSH)
    if bend > 0:
        s.hoop(0.5, 0.55, 0.26, 0.24, c=INK, w=0.055, start=20, end=160)
    else:
        s.hoop(0.5, 0.84, 0.23, 0.2, c=INK, w=0.055, start=205, end=335)


@SHELF.add("face", "yellow orange pink green blue white", lean=8)
def happy_face(s: Sketch) -> None:
    face(s, 1)


@SHELF.add("face", "yellow orange pink green blue white", lean=8)
def sad_face(s: Sketch) -> None:
    face(s, -1)
