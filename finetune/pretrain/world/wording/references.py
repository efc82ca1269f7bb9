"""References to objects: "the big red star", and which objects of a scene they mean."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from finetune.pretrain.world.drawing.paint import plural
from finetune.pretrain.world.scene import Item

FIELDS = ("kind", "colour", "size", "fill")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a room: its noun for any object, its kinds and colours."""

    noun: str
    kinds: tuple[str, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Ref:
    """A description that objects may fit; empty fields say nothing."""

    noun: str
    kind: str = ""
    colour: str = ""
    size: str = ""
    fill: str = ""

    def match(self, items: Sequence[Item]) -> list[Item]:
        return [
            item
            for item in items
            if all(getattr(self, f) in ("", getattr(item, f)) for f in FIELDS)
        ]

    def clear(self, items: Sequence[Item]) -> bool:
        """False where an object of middling size would make the answer a matter of taste."""
        if not self.size:
            return True
        return all(
            item.size for item in Ref(self.noun, self.kind, self.colour, "", self.fill).match(items)
        )

    @property
    def text(self) -> str:
        words = (self.size, self.fill, self.colour, self.kind or self.noun)
        return " ".join(word for word in words if word)

    @property
    def texts(self) -> str:
        """The plural."""
        *front, last = self.text.split(" ")
        return " ".join([*front, plural(last)])


def fields_of(item: Item) -> tuple[str, ...]:
    return tuple(f for f in FIELDS if getattr(item, f))


def ref_of(item: Item, fields: Sequence[str], noun: str) -> Ref:
    return Ref(noun, **{f: getattr(item, f) for f in fields})


def unique_ref(
    item: Item, items: Sequence[Item], noun: str, rng: random.Random, without: Sequence[str] = ()
) -> Ref | None:
    """A short description that fits `item` alone, leaving out the fields in `without`."""
    usable = [f for f in fields_of(item) if f not in without]
    refs = []
    for count in range(0 if len(items) == 1 else 1, len(usable) + 1):
        for fields in combinations(usable, count):
            ref = ref_of(item, fields, noun)
            if len(ref.match(items)) == 1 and ref.clear(items):
                refs.append(ref)
        if len(refs) > 2:
            break
    if not refs:
        return None
    # Plain descriptions ("the red star") are what people use most.
    weights = [1.0 if not (ref.size or ref.fill) else 0.25 for ref in refs]
    return rng.choices(refs, weights)[0]


def some_ref(items: Sequence[Item], words: Vocabulary, rng: random.Random) -> Ref:
    """A description that fits something, mostly of colour and kind."""
    item = rng.choice(items)
    has = fields_of(item)
    options = [
        f
        for f in (
            ("kind",),
            ("colour",),
            ("kind", "colour"),
            ("kind", "colour", "fill"),
            ("size", "kind"),
            ("fill",),
        )
        if all(x in has for x in f)
    ]
    weights = [
        {1: 3, 2: 3, 3: 0.6}[len(f)] * (0.25 if f in (("fill",), ("size", "kind")) else 1)
        for f in options
    ]
    return ref_of(item, rng.choices(options, weights)[0], words.noun)


def absent_ref(items: Sequence[Item], words: Vocabulary, rng: random.Random) -> Ref | None:
    """A description that fits nothing here: often a near miss (one object's colour, another's
    kind).
    """
    for _ in range(8):
        ref = some_ref(items, words, rng)
        kind, colour = ref.kind, ref.colour
        if kind and (not colour or rng.random() < 0.5):
            near = [i.kind for i in items] if colour and rng.random() < 0.6 else words.kinds
            kind = rng.choice(near)
        elif colour:
            near = [i.colour for i in items] if kind and rng.random() < 0.6 else words.colours
            colour = rng.choice(near)
        miss = Ref(words.noun, kind, colour, ref.size, ref.fill)
        if miss.clear(items) and not miss.match(items):
            return miss
    return None
