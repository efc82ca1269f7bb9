"""What all who ask about a scene's objects need: see `ask`."""

import random
from collections.abc import Sequence

from finetune.pretrain.world.scene import QA, Item, Scene, Split
from finetune.pretrain.world.wording.phrasing import say
from finetune.pretrain.world.wording.references import Ref, Vocabulary, ref_of, unique_ref

__all__ = ["QA", "Asking"]


class Asking:
    """A scene's objects, and the words for them."""

    def __init__(self, scene: Scene, rng: random.Random, split: Split, words: Vocabulary) -> None:
        self.items, self.rng, self.split, self.words = scene.items, rng, split, words
        self.about: list[Item] = []
        self.counts: list[int] = []
        """What the question in the making turns on: see `QA.about` and `QA.counts`."""

    def say(self, templates: Sequence[str], **values: object) -> str:
        return say(templates, self.rng, self.split, **values)

    def has(self, field: str) -> bool:
        return all(getattr(item, field) for item in self.items)

    def pick(self, field: str) -> Item | None:
        """Any item that has the field."""
        usable = [item for item in self.items if getattr(item, field)]
        return self.rng.choice(usable) if usable else None

    def unique(self, item: Item, without: Sequence[str] = ()) -> Ref | None:
        self.about.append(item)
        return unique_ref(item, self.items, self.words.noun, self.rng, without)

    def fitting(self, ref: Ref) -> int:
        """How many objects fit a description of the question."""
        self.counts.append(len(ref.match(self.items)))
        return self.counts[-1]

    def full(self, item: Item) -> str:
        """ "red star": what an item is called in answers."""
        fields = [f for f in ("kind", "colour") if getattr(item, f)]
        return ref_of(item, fields, self.words.noun).text

    def two(self) -> tuple[Item, Ref, Item, Ref] | None:
        """Two different objects and a unique reference to each."""
        if len(self.items) < 2:
            return None
        one, other = self.rng.sample(self.items, 2)
        first, second = self.unique(one), self.unique(other)
        return (one, first, other, second) if first and second else None
