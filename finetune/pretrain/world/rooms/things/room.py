"""The things room: everyday things before simple backdrops."""

import random

from PIL import Image

from finetune.pretrain.world.drawing.paint import background_rgb, far_enough, picture_size
from finetune.pretrain.world.drawing.sketch import INK, ThingDrawing, draw_thing, paint_parts
from finetune.pretrain.world.rooms.things import backdrops
from finetune.pretrain.world.rooms.things.kinds import (
    HELD_OUT_BACKDROPS,
    HELD_OUT_COLOURS,
    KINDS,
    SKY_KINDS,
    THINGS,
)
from finetune.pretrain.world.rooms.things.questions import ask
from finetune.pretrain.world.scene import QA, Box, Item, Scene, Size, Split, to_fractions

SPANS = {
    1: (0.45, 0.9),
    2: (0.32, 0.52),
    3: (0.27, 0.42),
    4: (0.24, 0.36),
    5: (0.21, 0.29),
    6: (0.2, 0.27),
}
"""Number of things -> range of their longer sides, in fractions of the picture's shorter edge."""

KindAndColour = tuple[str, str]


def allowed(kind: str, colour: str, backdrop: str, split: Split) -> bool:
    """Return whether a scene of the split may contain the combination."""
    return split == "test" or (
        (kind, backdrop) not in HELD_OUT_BACKDROPS and (kind, colour) not in HELD_OUT_COLOURS
    )


def choose(count: int, backdrop: str, rng: random.Random, split: Split) -> list[KindAndColour]:
    """Choose `count` things, some of them alike so that there is something to count."""

    def fresh(kind: str = "") -> KindAndColour:
        while True:
            # Reading the time is a skill of its own, so clocks come more often.
            name = kind or ("clock" if rng.random() < 0.03 else rng.choice(KINDS))
            colour = rng.choice(THINGS[name].colours)
            if allowed(name, colour, backdrop, split):
                return name, colour
            if kind and (kind, backdrop) in HELD_OUT_BACKDROPS:
                kind = ""

    found = [fresh()]
    variety = rng.random()
    if count >= 3 and variety < 0.15:  # all are alike except for one
        while True:
            other = fresh(found[0][0]) if rng.random() < 0.5 else (fresh()[0], found[0][1])
            if (
                other != found[0]
                and other[1] in THINGS[other[0]].colours
                and allowed(*other, backdrop, split)
            ):
                break
        found = found * (count - 1) + [other]
        rng.shuffle(found)
        return found
    while len(found) < count:
        again = rng.random() < (0.75 if variety > 0.8 else 0.15)
        found.append(fresh(rng.choice(found)[0] if again else ""))
    return found


def free_place(
    wide: float,
    high: float,
    name: str,
    taken: list[Box],
    size: Size,
    grounded: bool,
    rng: random.Random,
) -> tuple[float, float] | None:
    """Find a free place for a thing and add it to `taken`.

    Args:
        wide: The thing's width in pixels.
        high: The thing's height in pixels.
        name: The kind of thing.
        taken: The boxes of the other things, in pixels.
        size: The size of the picture.
        grounded: Whether things of the sky belong in the upper half and others in the lower.
        rng: The source of randomness.

    Returns:
        The top left corner in pixels, or None if no free place was found.
    """
    if wide > size[0] or high > size[1]:
        return None
    for _ in range(25):
        x, y = rng.uniform(0, size[0] - wide), rng.uniform(0, size[1] - high)
        if grounded and (y + high / 2 > 0.55 * size[1]) == (name in SKY_KINDS):
            continue
        gap = 0.02 * min(size)
        box = (x - gap, y - gap, x + wide + gap, y + high + gap)
        if all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken):
            taken.append(box)
            return x, y
    return None


class Things:
    """The `Room` of things."""

    name = "things"
    kinds = KINDS

    def make(self, rng: random.Random, split: Split) -> Scene:
        """Make a scene of a random layout; see `Room.make`."""
        size = picture_size(rng)
        backdrop = rng.choices(backdrops.BACKDROPS, (8, 2, 2, 1, 1, 1, 1, 1, 1))[0]
        count = rng.choices((1, 2, 3, 4, 5, 6), (26, 27, 19, 14, 7, 7))[0]
        side = min(size)
        grounded = backdrop != "plain" and rng.random() < 0.6
        items: list[Item] = []
        taken: list[Box] = []
        for kind, colour in choose(count, backdrop, rng, split):
            drawing = draw_thing(THINGS[kind], colour, rng)
            long = rng.uniform(*SPANS[count]) * side
            for shrink in (1.0, 0.85, 0.75):
                reach = max(long * shrink, SPANS[6][0] * side)
                spot = free_place(
                    reach * drawing.width,
                    reach * drawing.height,
                    kind,
                    taken,
                    size,
                    grounded and shrink > 0.9,
                    rng,
                )
                if spot:
                    items.append(self.item(kind, colour, drawing, spot, reach, size))
                    break
        if backdrop == "plain":
            colours: backdrops.Palette = (
                background_rgb(rng, [item.extra["drawing"].main for item in items]),
            )
        else:
            colours = backdrops.palette(backdrop, rng)
        extra = {"colours": colours, "contours": rng.random() < 0.35}
        return Scene(self.name, backdrop, *size, tuple(items), rng.getrandbits(32), extra)

    def item(
        self,
        kind: str,
        colour: str,
        drawing: ThingDrawing,
        spot: tuple[float, float],
        reach: float,
        size: Size,
    ) -> Item:
        """Return the item of a thing whose longer side is `reach` pixels, placed at `spot`."""
        x, y = spot
        box = to_fractions((x, y, x + reach * drawing.width, y + reach * drawing.height), size)
        extra = {"drawing": drawing, "x": x, "y": y, "reach": reach}
        return Item(kind, box, colour, order=drawing.facts.get("hour", -1), extra=extra)

    def draw(self, scene: Scene) -> Image.Image:
        """Draw the scene; see `Room.draw`."""
        colours = scene.extra["colours"]
        canvas = backdrops.paint(scene.layout, colours, (scene.width, scene.height), scene.seed)
        dark = sum(colours[0]) < 240
        for item in scene.items:
            drawing, reach = item.extra["drawing"], item.extra["reach"]
            faint = not far_enough(drawing.main, colours, 75)
            edge = max(0.7, reach * 0.012) if scene.extra["contours"] or faint else 0.0
            paint_parts(
                canvas,
                drawing.parts,
                item.extra["x"],
                item.extra["y"],
                reach,
                edge,
                (225, 225, 230) if dark and sum(drawing.main) < 330 else INK,
            )
        return canvas.finish()

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        """Return questions about the scene; see `Room.ask`."""
        return ask(scene, rng, split)


THINGS_ROOM = Things()
