"""References to objects, such as "the big red star", and the objects of a scene that they match."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from finetune.pretrain.world.scene import Item
from finetune.pretrain.world.wording.phrasing import plural

FIELDS = ("kind", "colour", "size", "fill")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a room: its noun for any object, its kinds and its colours."""

    noun: str
    kinds: tuple[str, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """A description that objects may match; an empty field matches everything."""

    noun: str
    kind: str = ""
    colour: str = ""
    size: str = ""
    fill: str = ""

    def match(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that match the description."""
        return [
            item
            for item in items
            if all(getattr(self, f) in ("", getattr(item, f)) for f in FIELDS)
        ]

    def is_clear(self, items: Sequence[Item]) -> bool:
        """Return False where a medium-sized object makes the matches a matter of opinion."""
        if not self.size:
            return True
        any_size = Reference(self.noun, self.kind, self.colour, "", self.fill)
        return all(item.size for item in any_size.match(items))

    @property
    def text(self) -> str:
        """The description without an article, such as "small red star"."""
        words = (self.size, self.fill, self.colour, self.kind or self.noun)
        return " ".join(word for word in words if word)

    @property
    def plural_text(self) -> str:
        """The description in the plural, such as "small red stars"."""
        *adjectives, noun = self.text.split(" ")
        return " ".join([*adjectives, plural(noun)])


def filled_fields(item: Item) -> tuple[str, ...]:
    """Return the names of those fields that the item has a value for."""
    return tuple(f for f in FIELDS if getattr(item, f))


def reference_to(item: Item, fields: Sequence[str], noun: str) -> Reference:
    """Return the reference that mentions the given fields of an item."""
    return Reference(noun, **{f: getattr(item, f) for f in fields})


def kind_and_colour(item: Item, noun: str) -> Reference:
    """Return the reference that mentions kind and colour, as far as the item has them."""
    return reference_to(item, [f for f in ("kind", "colour") if getattr(item, f)], noun)


def unique_reference(
    item: Item, items: Sequence[Item], noun: str, rng: random.Random, without: Sequence[str] = ()
) -> Reference | None:
    """Return a short reference that matches `item` alone, or None if there is none.

    Args:
        item: The object to refer to.
        items: All objects of the scene.
        noun: The room's word for any object.
        rng: The source of randomness.
        without: Fields that must not be mentioned, because the question asks for them.
    """
    usable = [f for f in filled_fields(item) if f not in without]
    found = []
    for count in range(0 if len(items) == 1 else 1, len(usable) + 1):
        for fields in combinations(usable, count):
            reference = reference_to(item, fields, noun)
            if len(reference.match(items)) == 1 and reference.is_clear(items):
                found.append(reference)
        if len(found) > 2:
            break
    if not found:
        return None
    # People mostly use plain descriptions such as "the red star".
    weights = [1.0 if not (reference.size or reference.fill) else 0.25 for reference in found]
    return rng.choices(found, weights)[0]


def random_reference(items: Sequence[Item], words: Vocabulary, rng: random.Random) -> Reference:
    """Return a reference that matches at least one item, mostly by colour and kind."""
    item = rng.choice(items)
    filled = filled_fields(item)
    options = [
        fields
        for fields in (
            ("kind",),
            ("colour",),
            ("kind", "colour"),
            ("kind", "colour", "fill"),
            ("size", "kind"),
            ("fill",),
        )
        if all(field in filled for field in fields)
    ]
    weights = [
        {1: 3, 2: 3, 3: 0.6}[len(f)] * (0.25 if f in (("fill",), ("size", "kind")) else 1)
        for f in options
    ]
    return reference_to(item, rng.choices(options, weights)[0], words.noun)


def absent_reference(
    items: Sequence[Item], words: Vocabulary, rng: random.Random
) -> Reference | None:
    """Return a reference that matches no item, or None if none was found.

    It is often a near miss: the colour of one object with the kind of another.
    """
    for _ in range(8):
        present = random_reference(items, words, rng)
        kind, colour = present.kind, present.colour
        if kind and (not colour or rng.random() < 0.5):
            kinds = [i.kind for i in items] if colour and rng.random() < 0.6 else words.kinds
            kind = rng.choice(kinds)
        elif colour:
            colours = [i.colour for i in items] if kind and rng.random() < 0.6 else words.colours
            colour = rng.choice(colours)
        absent = Reference(words.noun, kind, colour, present.size, present.fill)
        if absent.is_clear(items) and not absent.match(items):
            return absent
    return None
