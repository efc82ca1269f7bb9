"""Two pictures in one conversation, and questions that need both.

The questions are asked with the first picture before the second. Both scenes are of the same room
and mostly have something in common, so that there is something to compare.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.concepts import is_countable
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.shapes.room import SHAPES
from finetune.pretrain.world.rooms.shapes.wide import WIDE_KINDS
from finetune.pretrain.world.rooms.things.room import THINGS_ROOM
from finetune.pretrain.world.scene import QA, Item, Room, Scene, Split
from finetune.pretrain.world.wording.phrasing import (
    capitalized,
    fill_template,
    join_words,
    with_article,
)
from finetune.pretrain.world.wording.references import (
    Reference,
    Vocabulary,
    kind_and_colour,
    random_reference,
    unique_reference,
)

VOCABULARIES = {
    "shapes": Vocabulary("shape", SHAPES.kinds, tuple(COLOURS)),
    "wide shapes": Vocabulary("shape", WIDE_KINDS, tuple(COLOURS)),
    "things": Vocabulary("object", THINGS_ROOM.kinds, tuple(COLOURS)),
    # Mass nouns and plurals do not fit into sentences with "a", "the" or a number.
    "icons": Vocabulary(
        "thing", tuple(c.name for c in icon_concepts() if is_countable(c.name)), ()
    ),
}
"""The words of the rooms that pairs are made of."""
DRAWN_ROOMS: Mapping[str, Room] = {"shapes": SHAPES, "things": THINGS_ROOM}
"""The rooms of pairs that need no data and that early checkpoints know."""
MOST_OBJECTS = 4
"""The most objects in one of the pictures."""
PLACES = ("first", "second")


@dataclass(frozen=True)
class Pair:
    """Two scenes and the questions about them together."""

    scenes: tuple[Scene, Scene]
    questions: tuple[QA, ...]


def make_pair(
    seed: int, split: Split = "train", count: int = 8, rooms: Mapping[str, Room] = DRAWN_ROOMS
) -> Pair:
    """Make pair number `seed` with up to `count` questions.

    Pairs of one seed but of different splits are unrelated. Of `rooms`, those are used that
    `VOCABULARIES` lists.
    """
    rng = random.Random(f"pair-{split}-{seed}")
    room = rng.choice([room for name, room in rooms.items() if name in VOCABULARIES])
    first = _comparable_scene(room, rng, split)
    second = _comparable_scene(room, rng, split)
    for _ in range(6):
        if {i.kind for i in first.items} & {i.kind for i in second.items} or rng.random() < 0.1:
            break
        second = _comparable_scene(room, rng, split)
    if rng.random() < 0.08:
        second = first
    return Pair((first, second), tuple(compare(first, second, rng, split, count)))


def compare(
    first: Scene, second: Scene, rng: random.Random, split: Split = "train", count: int = 8
) -> list[QA]:
    """Return up to `count` questions about two scenes of one room, both `comparable`."""
    pair = PairContext(first, second, rng, split, VOCABULARIES[first.room])
    made: dict[str, QA] = {}
    for skill in rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()), k=3 * count):
        qa = skill(pair)
        if qa:
            made.setdefault(qa.question, qa)
        if len(made) == count:
            break
    return list(made.values())


def comparable(scene: Scene) -> bool:
    """Return whether a scene has few objects and is of a room that pairs are made of."""
    if scene.room == "icons" and not all(is_countable(item.kind) for item in scene.items):
        return False
    few = 1 <= len(scene.items) <= MOST_OBJECTS
    return few and scene.room in VOCABULARIES and "panels" not in scene.extra


def _comparable_scene(room: Room, rng: random.Random, split: Split) -> Scene:
    while True:
        scene = room.make(rng, split)
        if comparable(scene):
            return scene


def describe_items(items: tuple[Item, ...], noun: str) -> str:
    """Return an enumeration such as "a red star and a blue circle", from left to right."""
    ordered = sorted(items, key=lambda i: i.centre[0])
    return join_words([with_article(kind_and_colour(i, noun).text) for i in ordered])


class PairContext:
    """What a skill needs to ask about two scenes: their objects and the words for them."""

    def __init__(
        self, first: Scene, second: Scene, rng: random.Random, split: Split, words: Vocabulary
    ) -> None:
        self.sides = (first.items, second.items)
        self.rng, self.split, self.words = rng, split, words

    def phrase(self, *templates: str, **words: object) -> str:
        """Fill one of the templates; see `fill_template`."""
        return fill_template(templates, self.rng, self.split, **words)

    def random_reference(self) -> Reference:
        """Return a reference that matches something in at least one of the pictures.

        It mentions no size, because sizes are relative to a picture.
        """
        while True:
            reference = random_reference(self.rng.choice(self.sides), self.words, self.rng)
            if not reference.size:
                return reference

    def counts(self, reference: Reference) -> tuple[int, int]:
        """Return how many objects of each picture match."""
        first, second = self.sides
        return len(reference.match(first)), len(reference.match(second))


def in_both(pair: PairContext) -> QA | None:
    """Ask whether both pictures show something."""
    ref = pair.random_reference()
    here = [n > 0 for n in pair.counts(ref)]
    if all(here) != (pair.rng.random() < 0.5):
        return None
    question = pair.phrase(
        "Do both pictures show {a}?",
        "Is there {a} in both pictures?",
        "Does each picture have {a}?",
        "Do you see {a} in both images?",
        "~Is there {a} in each picture?",
        a=with_article(ref.text),
    )
    if all(here):
        return QA("pair", question, "yes", f"Yes, both pictures show {with_article(ref.text)}.")
    missing = PLACES[here.index(False)]
    return QA("pair", question, "no", f"No, there is no {ref.text} in the {missing} picture.")


def in_which(pair: PairContext) -> QA | None:
    """Ask which of the pictures shows something."""
    ref = pair.random_reference()
    here = [n > 0 for n in pair.counts(ref)]
    if all(here):
        return None
    question = pair.phrase(
        "Which picture shows {a}, the first or the second?",
        "Which picture has {a}?",
        "In which picture is there {a}?",
        "Which of the two images shows {a}?",
        "~Where do you see {a}, in the first or in the second picture?",
        a=with_article(ref.text),
    )
    place = PLACES[here.index(True)]
    return QA("pair", question, place, f"The {place} picture shows {with_article(ref.text)}.")


def more_in_which(pair: PairContext) -> QA | None:
    """Ask which of the pictures has more, or fewer, of something."""
    ref = pair.random_reference() if pair.rng.random() < 0.4 else Reference(pair.words.noun)
    a, b = pair.counts(ref)
    if a == b:
        return None
    word = pair.rng.choice(("more", "more", "fewer"))
    place = PLACES[(b > a) == (word == "more")]
    question = pair.phrase(
        "Which picture has {w} {s}?",
        "Which picture shows {w} {s}, the first or the second?",
        "Are there {w} {s} in the first or in the second picture?",
        "~Which of the two has {w} {s}?",
        w=word,
        s=ref.plural_text,
    )
    return QA("pair", question, place, f"The {place} picture has {word} {ref.plural_text}.")


def count_together(pair: PairContext) -> QA | None:
    """Ask how many there are in both pictures together."""
    ref = pair.random_reference() if pair.rng.random() < 0.6 else Reference(pair.words.noun)
    total = sum(pair.counts(ref))
    question = pair.phrase(
        "How many {s} are there in both pictures together?",
        "How many {s} do the two pictures show in all?",
        "Count the {s} in both pictures.",
        "~What is the number of {s} over the two pictures?",
        s=ref.plural_text,
    )
    there = f"There is 1 {ref.text}" if total == 1 else f"There are {total} {ref.plural_text}"
    return QA("pair", question, str(total), f"{there} in both pictures together.")


def attribute_in_one(pair: PairContext) -> QA | None:
    """Ask for the colour or kind of an object in one of the pictures."""
    at = pair.rng.randrange(2)
    items = pair.sides[at]
    item = pair.rng.choice(items)
    place = PLACES[at]
    field = pair.rng.choice(("colour", "kind"))
    if not getattr(item, field):
        return None
    ref = unique_reference(item, items, pair.words.noun, pair.rng, (field, "size"))
    if ref is None:
        return None
    if field == "colour":
        question = pair.phrase(
            "What colour is the {r} in the {p} picture?",
            "In the {p} picture, what colour is the {r}?",
            "~Name the colour of the {r} in the {p} image.",
            r=ref.text,
            p=place,
        )
        return QA("pair", question, item.colour, f"The {ref.text} is {item.colour}.")
    question = pair.phrase(
        "What is the {r} in the {p} picture?",
        "Which {n} is the {r} in the {p} picture?",
        "~In the {p} image, what is the {r}?",
        r=ref.text,
        p=place,
        n=pair.words.noun,
    )
    return QA("pair", question, item.word, f"It is {with_article(item.word)}.")


def presence_in_one(pair: PairContext) -> QA | None:
    """Ask whether something, or how many, are in one of the pictures."""
    at = pair.rng.randrange(2)
    ref, place = pair.random_reference(), PLACES[at]
    number = pair.counts(ref)[at]
    if pair.rng.random() < 0.5:
        if (number > 0) != (pair.rng.random() < 0.5):
            return None
        question = pair.phrase(
            "Is there {a} in the {p} picture?",
            "Does the {p} picture show {a}?",
            "Do you see {a} in the {p} image?",
            "~Has the {p} picture got {a}?",
            a=with_article(ref.text),
            p=place,
        )
        fact = f"there is {'no ' + ref.text if not number else with_article(ref.text)}"
        return QA(
            "pair",
            question,
            "yes" if number else "no",
            f"{'Yes' if number else 'No'}, {fact} in the {place} picture.",
        )
    question = pair.phrase(
        "How many {s} are in the {p} picture?",
        "Count the {s} in the {p} picture.",
        "~What is the number of {s} in the {p} image?",
        s=ref.plural_text,
        p=place,
    )
    sentence = {0: f"There are no {ref.plural_text}", 1: f"There is 1 {ref.text}"}.get(
        number, f"There are {number} {ref.plural_text}"
    )
    return QA("pair", question, str(number), f"{sentence} in the {place} picture.")


def same_in_both(pair: PairContext) -> QA | None:
    """Ask whether single objects have the same kind or colour, or several the same number."""
    if len(pair.sides[0]) == len(pair.sides[1]) == 1:
        one, other = pair.sides[0][0], pair.sides[1][0]
        field = pair.rng.choice(("kind", "colour"))
        if not (getattr(one, field) and getattr(other, field)):
            return None
        yes = getattr(one, field) == getattr(other, field)
        attribute = {"kind": pair.words.noun, "colour": "colour"}[field]
        question = pair.phrase(
            "Do both pictures show the same {w}?",
            "Is it the same {w} in both pictures?",
            "~Is the {w} the same in both pictures?",
            w=attribute,
        )
        fact = f"they show {' and '.join(describe_items(s, pair.words.noun) for s in pair.sides)}"
        if yes:
            fact = {
                "kind": f"both show {with_article(one.word)}",
                "colour": f"both are {one.colour}",
            }[field]
        return QA("pair", question, "yes" if yes else "no", f"{'Yes' if yes else 'No'}, {fact}.")
    a, b = map(len, pair.sides)
    if (a == b) != (pair.rng.random() < 0.5):
        return None
    question = pair.phrase(
        "Do both pictures show the same number of {n}s?",
        "Are there as many {n}s in the first picture as in the second?",
        "~Is the number of {n}s the same in both pictures?",
        n=pair.words.noun,
    )
    return QA(
        "pair",
        question,
        "yes" if a == b else "no",
        f"{'Yes' if a == b else 'No'}, there are {a} and {b}.",
    )


def shared_kind(pair: PairContext) -> QA | None:
    """Ask for the one kind that both pictures show."""
    kinds = {i.kind for i in pair.sides[0]} & {i.kind for i in pair.sides[1]}
    if len(kinds) > 1:
        return None
    question = pair.phrase(
        "Which {n} is in both pictures?",
        "What {n} do both pictures show?",
        "Which {n} do the two pictures have in common?",
        "~What have the two pictures in common?",
        n=pair.words.noun,
    )
    if not kinds:
        return QA("pair", question, "none", f"No {pair.words.noun} is in both pictures.")
    kind = kinds.pop()
    return QA("pair", question, kind, f"Both pictures show {with_article(kind)}.")


def caption_of_one(pair: PairContext) -> QA | None:
    """Ask for a caption of one of the pictures."""
    at = pair.rng.randrange(2)
    question = pair.phrase(
        "What is in the {p} picture?",
        "What does the {p} picture show?",
        "Describe the {p} picture briefly.",
        "~What do you see in the {p} picture?",
        p=PLACES[at],
    )
    shown = describe_items(pair.sides[at], pair.words.noun)
    return QA("pair", question, "", capitalized(f"the {PLACES[at]} picture shows {shown}."))


WEIGHTS: Mapping[Callable[[PairContext], QA | None], float] = {
    in_both: 4,
    in_which: 4,
    more_in_which: 3,
    count_together: 3,
    attribute_in_one: 4,
    presence_in_one: 3,
    same_in_both: 2,
    shared_kind: 2,
    caption_of_one: 1,
}
"""How often each skill is drawn; a skill returns None where the pictures do not allow it."""
