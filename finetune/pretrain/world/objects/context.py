"""What the skills that ask about a scene's objects work with."""

import random
from collections.abc import Callable, Sequence

from finetune.pretrain.world.scene import QA, Item, Scene, Split
from finetune.pretrain.world.wording.phrasing import fill_template
from finetune.pretrain.world.wording.references import (
    Reference,
    Vocabulary,
    kind_and_colour,
    unique_reference,
)


class ObjectContext:
    """A scene's objects and the words for them, and what the current question depends on.

    Skills append to `about` and `counts`, which become `QA.about` and `QA.counts`.
    """

    def __init__(self, scene: Scene, rng: random.Random, split: Split, words: Vocabulary) -> None:
        self.items, self.rng, self.split, self.words = scene.items, rng, split, words
        self.about: list[Item] = []
        self.counts: list[int] = []

    def phrase(self, templates: Sequence[str], **values: object) -> str:
        """Fill one of the templates; see `fill_template`."""
        return fill_template(templates, self.rng, self.split, **values)

    def all_have(self, field: str) -> bool:
        """Return whether every object has a value for the field."""
        return all(getattr(item, field) for item in self.items)

    def pick_with(self, field: str) -> Item | None:
        """Return a random object that has a value for the field, or None."""
        usable = [item for item in self.items if getattr(item, field)]
        return self.rng.choice(usable) if usable else None

    def refer_to(self, item: Item, without: Sequence[str] = ()) -> Reference | None:
        """Return a reference to `item` alone and note that the question is about it."""
        self.about.append(item)
        return unique_reference(item, self.items, self.words.noun, self.rng, without)

    def count(self, reference: Reference) -> int:
        """Return how many objects match, and note that the answer depends on that number."""
        self.counts.append(len(reference.match(self.items)))
        return self.counts[-1]

    def name_of(self, item: Item) -> str:
        """Return what an object is called in answers, such as "red star"."""
        return kind_and_colour(item, self.words.noun).text

    def pick_two(self) -> tuple[Item, Reference, Item, Reference] | None:
        """Return two random objects, each followed by a reference to it alone, or None."""
        if len(self.items) < 2:
            return None
        one, other = self.rng.sample(self.items, 2)
        first, second = self.refer_to(one), self.refer_to(other)
        return (one, first, other, second) if first and second else None


Skill = Callable[[ObjectContext], QA | None]
"""Makes one question, or returns None where the scene does not allow it."""
