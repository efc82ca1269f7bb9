"""The things room: everyday things in small scenes, in a room, by the sea, at night, ..."""

import random

from PIL import Image

from finetune.builtin.world import (
    ask,
    things_animals,
    things_home,
    things_nature,
    things_objects,
    things_places,
    things_street,
)
from finetune.builtin.world.paint import COLOURS, far_enough, ground_rgb, plural
from finetune.builtin.world.phrasing import article, capital, say
from finetune.builtin.world.refs import unique_ref
from finetune.builtin.world.scene import QA, Item, Scene, Split
from finetune.builtin.world.shapes import picture_size
from finetune.builtin.world.strangers import stranger
from finetune.builtin.world.things_places import SETTINGS
from finetune.builtin.world.things_sketch import INK, Specimen, Thing, set_down, specimen

THINGS: dict[str, Thing] = {
    **things_animals.SHELF,
    **things_nature.SHELF,
    **things_street.SHELF,
    **things_home.SHELF,
    **things_objects.SHELF,
}
# Append only: the encoder's classes are places in this list.
KINDS = (
    "cat",
    "dog",
    "fish",
    "bird",
    "duck",
    "rabbit",
    "pig",
    "sheep",
    "snake",
    "turtle",
    "butterfly",
    "bee",
    "spider",
    "snail",
    "cow",
    "elephant",
    "penguin",
    "crab",
    "tree",
    "flower",
    "cactus",
    "leaf",
    "mushroom",
    "sun",
    "moon",
    "cloud",
    "lightning bolt",
    "snowman",
    "mountain",
    "happy face",
    "sad face",
    "car",
    "bus",
    "truck",
    "train",
    "boat",
    "plane",
    "bicycle",
    "rocket",
    "helicopter",
    "house",
    "castle",
    "tent",
    "lighthouse",
    "bridge",
    "traffic light",
    "flag",
    "mailbox",
    "anchor",
    "robot",
    "ghost",
    "umbrella",
    "kite",
    "balloon",
    "fence",
    "apple",
    "banana",
    "pear",
    "cherry",
    "pineapple",
    "strawberry",
    "carrot",
    "ice cream",
    "cake",
    "donut",
    "pizza",
    "cup",
    "bottle",
    "bowl",
    "teapot",
    "fork",
    "spoon",
    "knife",
    "lamp",
    "chair",
    "table",
    "bed",
    "sofa",
    "door",
    "candle",
    "key",
    "lock",
    "hammer",
    "ladder",
    "pencil",
    "book",
    "clock",
    "phone",
    "computer",
    "television",
    "camera",
    "hat",
    "shirt",
    "shoe",
    "sock",
    "dress",
    "crown",
    "ball",
    "drum",
    "guitar",
    "gift",
    "bell",
    "bag",
    "bucket",
    "envelope",
    "bulb",
    "magnet",
)
SORTS = ("animal", "vehicle", "fruit")
"""Sorts that are asked for by name."""
HIGH = frozenset(
    {
        "sun",
        "moon",
        "cloud",
        "lightning bolt",
        "bird",
        "butterfly",
        "bee",
        "plane",
        "helicopter",
        "rocket",
        "kite",
        "balloon",
    }
)

# Never drawn in training: a place for every thing, and a colour for every other one.
HELD_OUT_PLACES = frozenset(
    (kind, SETTINGS[1 + (5 * k) % (len(SETTINGS) - 1)]) for k, kind in enumerate(KINDS)
)
HELD_OUT_COLOURS = frozenset(
    (kind, sorted(set(THINGS[kind].colours))[k % len(set(THINGS[kind].colours))])
    for k, kind in enumerate(KINDS)
    if k % 2 and len(set(THINGS[kind].colours)) > 3
)

WEIGHTS: dict[str, float] = {
    "existence": 10,
    "negation": 4,
    "colour": 9,
    "kind": 10,
    "count": 9,
    "position": 6,
    "what_at": 4,
    "side": 2,
    "relation": 7,
    "beside": 5,
    "extreme": 4,
    "superlative": 3,
    "bigger": 3,
    "more": 2,
    "odd": 3,
    "same": 2,
    "all_same": 1,
    "logic": 4,
    "statement": 5,
    "colours": 1,
    "caption": 4,
    "describe": 1.5,
    "false_premise": 5,
    "unknowable": 1,
    "followup": 4,
}
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
            colours = things_places.palette(setting, rng)
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
        canvas = things_places.paint(scene.layout, colours, (scene.width, scene.height), scene.seed)
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
        words = ask.Vocabulary("object", KINDS, tuple(COLOURS))
        asked = ask.about_items(scene, rng, split, words, count=10, weights=WEIGHTS)
        asked += [
            qa for about in (clock_time, sort_of, sort_count) if (qa := about(scene, rng, split))
        ]
        if rng.random() < 0.5:
            asked.append(stranger("things", rng, split))
        return list({qa.question: qa for qa in asked}.values())


def clock_time(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    clocks = [item for item in scene.items if item.kind == "clock"]
    if not clocks:
        return None
    ref = unique_ref(clocks[0], scene.items, "object", rng)
    if ref is None:
        return None
    name = ref.text if ref.kind else ref.text.replace("object", "clock")
    hour = clocks[0].extra["drawn"].facts["hour"]
    if rng.random() < 0.25:
        told = hour if rng.random() < 0.5 else rng.randint(1, 12)
        yes = "Yes" if told == hour else "No"
        sentence = f"{yes}, it is {hour} o'clock."
        return QA("time", f"Is it {told} o'clock?", yes.lower(), sentence, about=(clocks[0],))
    question = say(
        (
            "What time is it?",
            "What time does the {r} show?",
            "What is the time?",
            "What time is shown on the {r}?",
            "Which hour does the {r} show?",
            "Tell me the time.",
            "What does the {r} say the time is?",
            "Can you tell the time?",
            "~What time is shown?",
        ),
        rng,
        split,
        r=name,
    )
    sentence = f"It is {hour} o'clock."
    return QA("time", question, f"{hour} o'clock", sentence, about=(clocks[0],))


def sort_of(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    """Which animal (vehicle, fruit) there is, where there is one kind of it or none."""
    sort = rng.choice(SORTS)
    found = {item.kind for item in scene.items if THINGS[item.kind].sort == sort}
    if len(found) > 1 or not found and rng.random() < 0.8:
        return None
    question = say(
        (
            "What {s} is in the {pic}?",
            "Which {s} do you see?",
            "What {s} is this?",
            "Which {s} is in the {pic}?",
            "What kind of {s} is there?",
            "Name the {s}{in_pic}.",
            "~What {s} do you see?",
        ),
        rng,
        split,
        s=sort,
    )
    if not found:
        return QA("false_premise", question, "none", f"There is no {sort} in the picture.")
    kind = found.pop()
    return QA("shape", question, kind, f"It is {article(kind)}.")


def sort_count(scene: Scene, rng: random.Random, split: Split) -> QA | None:
    sort = rng.choice(SORTS)
    number = sum(THINGS[item.kind].sort == sort for item in scene.items)
    if number == 0 and rng.random() < 0.7:
        return None
    several = plural(sort)
    if rng.random() < 0.5:
        question = say(
            (
                "Is there {a}{in_pic}?",
                "Do you see {a}?",
                "Are there any {p}?",
                "Is any of them {a}?",
                "~Do you see {a}{in_pic}?",
            ),
            rng,
            split,
            a=article(sort),
            p=several,
        )
        there = f"Yes, there is {article(sort)}." if number else f"No, there is no {sort}."
        return QA("existence", question, "yes" if number else "no", there, counts=(number,))
    question = say(
        (
            "How many {p} are there?",
            "How many {p} are in the {pic}?",
            "How many {p} do you see?",
            "Count the {p}.",
            "Give me the number of {p}.",
            "~How many {p} are there in the {pic}?",
        ),
        rng,
        split,
        p=several,
    )
    sentence = {0: f"There are no {several}.", 1: f"There is 1 {sort}."}.get(
        number, f"There are {number} {several}."
    )
    return QA("count", question, str(number), capital(sentence), counts=(number,))


THINGS_ROOM = Things()
