"""The things room: everyday things in small scenes, in a room, by the sea, at night, ..."""

import random

from PIL import Image

from finetune.pretrain.world.drawing.paint import far_enough, ground_rgb, picture_size
from finetune.pretrain.world.drawing.sketch import INK, Specimen, set_down, specimen
from finetune.pretrain.world.rooms.things import places
from finetune.pretrain.world.rooms.things.kinds import (
    HELD_OUT_COLOURS,
    HELD_OUT_PLACES,
    HIGH,
    KINDS,
    THINGS,
)
from finetune.pretrain.world.rooms.things.places import SETTINGS
from finetune.pretrain.world.rooms.things.questions import about_things
from finetune.pretrain.world.scene import QA, Item, Scene, Split

SPANS = {
    1: (0.45, 0.9),
    2: (0.32, 0.52),
    3: (0.27, 0.42),
    4: (0.24, 0.36),
    5: (0.21, 0.29),
    6: (0.2, 0.27),
}
"""How long the longer side of one of so many things is, in fractions of the shorter edge."""

Chosen = tuple[str, str]


def allowed(kind: str, colour: str, setting: str, split: Split) -> bool:
    return split == "test" or (
        (kind, setting) not in HELD_OUT_PLACES and (kind, colour) not in HELD_OUT_COLOURS
    )


def choose(count: int, setting: str, rng: random.Random, split: Split) -> list[Chosen]:
    """`count` (kind, colour) pairs, some of them alike so that there is something to count."""

    def fresh(kind: str = "") -> Chosen:
        while True:
            # Telling the time is a skill of its own, so clocks come more often.
            name = kind or ("clock" if rng.random() < 0.03 else rng.choice(KINDS))
            colour = rng.choice(THINGS[name].colours)
            if allowed(name, colour, setting, split):
                return name, colour
            if kind and (kind, setting) in HELD_OUT_PLACES:
                kind = ""

    found = [fresh()]
    mood = rng.random()
    if count >= 3 and mood < 0.15:  # all alike but one
        while True:
            other = fresh(found[0][0]) if rng.random() < 0.5 else (fresh()[0], found[0][1])
            if (
                other != found[0]
                and other[1] in THINGS[other[0]].colours
                and allowed(*other, setting, split)
            ):
                break
        found = found * (count - 1) + [other]
        rng.shuffle(found)
        return found
    while len(found) < count:
        again = rng.random() < (0.75 if mood > 0.8 else 0.15)
        found.append(fresh(rng.choice(found)[0] if again else ""))
    return found


def free_place(
    wide: float,
    high: float,
    name: str,
    taken: list[tuple[float, ...]],
    size: tuple[int, int],
    low: bool,
    rng: random.Random,
) -> tuple[float, float] | None:
    """The left top corner of a place (pixels) that touches none of `taken`, if one is found."""
    if wide > size[0] or high > size[1]:
        return None
    for _ in range(25):
        x, y = rng.uniform(0, size[0] - wide), rng.uniform(0, size[1] - high)
        if low and (y + high / 2 > 0.55 * size[1]) == (name in HIGH):
            continue
        gap = 0.02 * min(size)
        box = (x - gap, y - gap, x + wide + gap, y + high + gap)
        if all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken):
            taken.append(box)
            return x, y
    return None


class Things:
    """See the module's text."""

    name = "things"
    kinds = KINDS

    def make(self, rng: random.Random, split: Split) -> Scene:
        size = picture_size(rng)
        setting = rng.choices(SETTINGS, (8, 2, 2, 1, 1, 1, 1, 1, 1))[0]
        count = rng.choices((1, 2, 3, 4, 5, 6), (26, 27, 19, 14, 7, 7))[0]
        side = min(size)
        low = setting != "plain" and rng.random() < 0.6
        items: list[Item] = []
        taken: list[tuple[float, ...]] = []
        for kind, colour in choose(count, setting, rng, split):
            drawn = specimen(THINGS[kind], colour, rng)
            long = rng.uniform(*SPANS[count]) * side
            for shrink in (1.0, 0.85, 0.75):
                reach = max(long * shrink, SPANS[6][0] * side)
                spot = free_place(
                    reach * drawn.wide,
                    reach * drawn.high,
                    kind,
                    taken,
                    size,
                    low and shrink > 0.9,
                    rng,
                )
                if spot:
                    items.append(self.item(kind, colour, drawn, spot, reach, size))
                    break
        if setting == "plain":
            colours = (ground_rgb(rng, [item.extra["drawn"].main for item in items]),)
        else:
            colours = places.palette(setting, rng)
        extra = {"colours": colours, "contours": rng.random() < 0.35}
        return Scene(self.name, setting, *size, tuple(items), rng.getrandbits(32), extra)

    def item(
        self,
        kind: str,
        colour: str,
        drawn: Specimen,
        spot: tuple[float, float],
        reach: float,
        size: tuple[int, int],
    ) -> Item:
        x, y = spot
        box = (
            x / size[0],
            y / size[1],
            (x + reach * drawn.wide) / size[0],
            (y + reach * drawn.high) / size[1],
        )
        extra = {"drawn": drawn, "x": x, "y": y, "reach": reach}
        return Item(kind, box, colour, order=drawn.facts.get("hour", -1), extra=extra)

    def draw(self, scene: Scene) -> Image.Image:
        colours = scene.extra["colours"]
        canvas = places.paint(scene.layout, colours, (scene.width, scene.height), scene.seed)
        dark = sum(colours[0]) < 240
        for item in scene.items:
            drawn, reach = item.extra["drawn"], item.extra["reach"]
            faint = not far_enough(drawn.main, colours, 75)
            edge = max(0.7, reach * 0.012) if scene.extra["contours"] or faint else 0.0
            set_down(
                canvas,
                drawn.parts,
                item.extra["x"],
                item.extra["y"],
                reach,
                edge,
                (225, 225, 230) if dark and sum(drawn.main) < 330 else INK,
            )
        return canvas.finish()

    def ask(self, scene: Scene, rng: random.Random, split: Split) -> list[QA]:
        return about_things(scene, rng, split)


THINGS_ROOM = Things()
