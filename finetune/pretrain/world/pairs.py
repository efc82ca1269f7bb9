"""Two pictures in one conversation, and questions that need both.

A pair's questions are asked with the first picture before the second one. Both scenes are of the
same room, and mostly have something in common, so that there is something to compare.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.shapes.room import SHAPES
from finetune.pretrain.world.rooms.things.room import THINGS_ROOM
from finetune.pretrain.world.scene import QA, Item, Room, Scene, Split
from finetune.pretrain.world.wording.phrasing import article, capital, listed, say
from finetune.pretrain.world.wording.references import Ref, Vocabulary, ref_of, some_ref, unique_ref

PAIRED: dict[str, tuple[Room, str]] = {
    "shapes": (SHAPES, "shape"),
    "things": (THINGS_ROOM, "object"),
}
MOST = 4
"""Objects in one of the pictures."""
PLACES = ("first", "second")


@dataclass(frozen=True)
class Pair:
    """Two scenes and what is asked about them together."""

    scenes: tuple[Scene, Scene]
    questions: tuple[QA, ...]


def make_pair(seed: int, split: Split = "train", count: int = 8) -> Pair:
    """Pair number `seed` with up to `count` questions. Train and test pairs are unrelated."""
    rng = random.Random(f"pair-{split}-{seed}")
    room, _ = rng.choice(tuple(PAIRED.values()))
    first = _few(room, rng, split)
    second = _few(room, rng, split)
    for _ in range(6):
        if {i.kind for i in first.items} & {i.kind for i in second.items} or rng.random() < 0.1:
            break
        second = _few(room, rng, split)
    if rng.random() < 0.08:
        second = first
    return Pair((first, second), tuple(compare(first, second, rng, split, count)))


def compare(
    first: Scene, second: Scene, rng: random.Random, split: Split = "train", count: int = 8
) -> list[QA]:
    """Up to `count` questions about two scenes of one room, both `comparable`."""
    room, noun = PAIRED[first.room]
    words = Vocabulary(noun, room.kinds, tuple(COLOURS))
    return Comparer(first, second, rng, split, words).all(count)


def comparable(scene: Scene) -> bool:
    """Few objects, in a room whose scenes are made of objects."""
    few = 1 <= len(scene.items) <= MOST
    return few and scene.room in PAIRED and "panels" not in scene.extra


def _few(room: Room, rng: random.Random, split: Split) -> Scene:
    while True:
        scene = room.make(rng, split)
        if comparable(scene):
            return scene


def what(items: tuple[Item, ...], noun: str) -> str:
    """ "a red star and a blue circle", from left to right."""
    ordered = sorted(items, key=lambda i: i.centre[0])
    fields = ("kind", "colour")
    return listed(
        [article(ref_of(i, [f for f in fields if getattr(i, f)], noun).text) for i in ordered]
    )


class Comparer:
    """Asks about two pictures; each skill returns None where the pictures do not allow it."""

    def __init__(
        self, first: Scene, second: Scene, rng: random.Random, split: Split, words: Vocabulary
    ) -> None:
        self.sides = (first.items, second.items)
        self.rng, self.split, self.words = rng, split, words

    def all(self, count: int) -> list[QA]:
        skills: tuple[Callable[[], QA | None], ...] = (
            self.both,
            self.which,
            self.more,
            self.together,
            self.within,
            self.inside,
            self.same,
            self.shared,
            self.tell,
        )
        made: dict[str, QA] = {}
        for skill in self.rng.choices(skills, (4, 4, 3, 3, 4, 3, 2, 2, 1), k=3 * count):
            qa = skill()
            if qa:
                made.setdefault(qa.question, qa)
            if len(made) == count:
                break
        return list(made.values())

    def say(self, *templates: str, **words: object) -> str:
        return say(templates, self.rng, self.split, **words)

    def ref(self) -> Ref:
        """A description without a size (sizes are relative to a picture) that fits something."""
        while True:
            ref = some_ref(self.rng.choice(self.sides), self.words, self.rng)
            if not ref.size:
                return ref

    def found(self, ref: Ref) -> tuple[int, int]:
        return tuple(len(ref.match(items)) for items in self.sides)

    def both(self) -> QA | None:
        ref = self.ref()
        here = [n > 0 for n in self.found(ref)]
        if all(here) != (self.rng.random() < 0.5):
            return None
        question = self.say(
            "Do both pictures show {a}?",
            "Is there {a} in both pictures?",
            "Does each picture have {a}?",
            "Do you see {a} in both images?",
            "~Is there {a} in each picture?",
            a=article(ref.text),
        )
        if all(here):
            return QA("pair", question, "yes", f"Yes, both pictures show {article(ref.text)}.")
        missing = PLACES[here.index(False)]
        return QA("pair", question, "no", f"No, there is no {ref.text} in the {missing} picture.")

    def which(self) -> QA | None:
        ref = self.ref()
        here = [n > 0 for n in self.found(ref)]
        if all(here):
            return None
        question = self.say(
            "Which picture shows {a}, the first or the second?",
            "Which picture has {a}?",
            "In which picture is there {a}?",
            "Which of the two images shows {a}?",
            "~Where do you see {a}, in the first or in the second picture?",
            a=article(ref.text),
        )
        place = PLACES[here.index(True)]
        return QA("pair", question, place, f"The {place} picture shows {article(ref.text)}.")

    def more(self) -> QA | None:
        ref = self.ref() if self.rng.random() < 0.4 else Ref(self.words.noun)
        a, b = self.found(ref)
        if a == b:
            return None
        word = self.rng.choice(("more", "more", "fewer"))
        place = PLACES[(b > a) == (word == "more")]
        question = self.say(
            "Which picture has {w} {s}?",
            "Which picture shows {w} {s}, the first or the second?",
            "Are there {w} {s} in the first or in the second picture?",
            "~Which of the two has {w} {s}?",
            w=word,
            s=ref.texts,
        )
        return QA("pair", question, place, f"The {place} picture has {word} {ref.texts}.")

    def together(self) -> QA | None:
        ref = self.ref() if self.rng.random() < 0.6 else Ref(self.words.noun)
        total = sum(self.found(ref))
        question = self.say(
            "How many {s} are there in both pictures together?",
            "How many {s} do the two pictures show in all?",
            "Count the {s} in both pictures.",
            "~What is the number of {s} over the two pictures?",
            s=ref.texts,
        )
        there = f"There is 1 {ref.text}" if total == 1 else f"There are {total} {ref.texts}"
        return QA("pair", question, str(total), f"{there} in both pictures together.")

    def within(self) -> QA | None:
        """A question about one of the pictures."""
        at = self.rng.randrange(2)
        items = self.sides[at]
        item = self.rng.choice(items)
        place = PLACES[at]
        field = self.rng.choice(("colour", "kind"))
        if not getattr(item, field):
            return None
        ref = unique_ref(item, items, self.words.noun, self.rng, (field, "size"))
        if ref is None:
            return None
        if field == "colour":
            question = self.say(
                "What colour is the {r} in the {p} picture?",
                "In the {p} picture, what colour is the {r}?",
                "~Name the colour of the {r} in the {p} image.",
                r=ref.text,
                p=place,
            )
            return QA("pair", question, item.colour, f"The {ref.text} is {item.colour}.")
        question = self.say(
            "What is the {r} in the {p} picture?",
            "Which {n} is the {r} in the {p} picture?",
            "~In the {p} image, what is the {r}?",
            r=ref.text,
            p=place,
            n=self.words.noun,
        )
        return QA("pair", question, item.word, f"It is {article(item.word)}.")

    def inside(self) -> QA | None:
        """Whether, or how many, in one of the pictures."""
        at = self.rng.randrange(2)
        ref, place = self.ref(), PLACES[at]
        number = self.found(ref)[at]
        if self.rng.random() < 0.5:
            if (number > 0) != (self.rng.random() < 0.5):
                return None
            question = self.say(
                "Is there {a} in the {p} picture?",
                "Does the {p} picture show {a}?",
                "Do you see {a} in the {p} image?",
                "~Has the {p} picture got {a}?",
                a=article(ref.text),
                p=place,
            )
            told = f"there is {'no ' + ref.text if not number else article(ref.text)}"
            return QA(
                "pair",
                question,
                "yes" if number else "no",
                f"{'Yes' if number else 'No'}, {told} in the {place} picture.",
            )
        question = self.say(
            "How many {s} are in the {p} picture?",
            "Count the {s} in the {p} picture.",
            "~What is the number of {s} in the {p} image?",
            s=ref.texts,
            p=place,
        )
        sentence = {0: f"There are no {ref.texts}", 1: f"There is 1 {ref.text}"}.get(
            number, f"There are {number} {ref.texts}"
        )
        return QA("pair", question, str(number), f"{sentence} in the {place} picture.")

    def same(self) -> QA | None:
        """Of the single objects: their kinds or colours; of more: their number."""
        if len(self.sides[0]) == len(self.sides[1]) == 1:
            one, other = self.sides[0][0], self.sides[1][0]
            field = self.rng.choice(("kind", "colour"))
            yes = getattr(one, field) == getattr(other, field)
            what_for = {"kind": self.words.noun, "colour": "colour"}[field]
            question = self.say(
                "Do both pictures show the same {w}?",
                "Is it the same {w} in both pictures?",
                "~Is the {w} the same in both pictures?",
                w=what_for,
            )
            told = f"they show {' and '.join(what(s, self.words.noun) for s in self.sides)}"
            if yes:
                told = {
                    "kind": f"both show {article(one.word)}",
                    "colour": f"both are {one.colour}",
                }[field]
            return QA(
                "pair", question, "yes" if yes else "no", f"{'Yes' if yes else 'No'}, {told}."
            )
        a, b = map(len, self.sides)
        if (a == b) != (self.rng.random() < 0.5):
            return None
        question = self.say(
            "Do both pictures show the same number of {n}s?",
            "Are there as many {n}s in the first picture as in the second?",
            "~Is the number of {n}s the same in both pictures?",
            n=self.words.noun,
        )
        return QA(
            "pair",
            question,
            "yes" if a == b else "no",
            f"{'Yes' if a == b else 'No'}, there are {a} and {b}.",
        )

    def shared(self) -> QA | None:
        """The one kind that both pictures show."""
        kinds = {i.kind for i in self.sides[0]} & {i.kind for i in self.sides[1]}
        if len(kinds) > 1:
            return None
        question = self.say(
            "Which {n} is in both pictures?",
            "What {n} do both pictures show?",
            "Which {n} do the two pictures have in common?",
            "~What have the two pictures in common?",
            n=self.words.noun,
        )
        if not kinds:
            return QA("pair", question, "none", f"No {self.words.noun} is in both pictures.")
        kind = kinds.pop()
        return QA("pair", question, kind, f"Both pictures show {article(kind)}.")

    def tell(self) -> QA | None:
        at = self.rng.randrange(2)
        question = self.say(
            "What is in the {p} picture?",
            "What does the {p} picture show?",
            "Describe the {p} picture briefly.",
            "~What do you see in the {p} picture?",
            p=PLACES[at],
        )
        shown = what(self.sides[at], self.words.noun)
        return QA("pair", question, "", capital(f"the {PLACES[at]} picture shows {shown}."))
