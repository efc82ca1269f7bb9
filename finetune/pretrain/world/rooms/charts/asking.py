"""What those who ask about charts have in common: see `charts_ask`."""

import random
from dataclasses import dataclass

from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.phrasing import capital
from finetune.pretrain.world.wording.question_maker import Teller

KIND_NAMES = {"bars": "bar chart", "flat": "bar chart", "line": "line chart", "pie": "pie chart"}


@dataclass(frozen=True)
class Entry:
    """A bar, point or slice: what it is called ("bar B", "the red slice"), its short name."""

    name: str
    short: str
    value: int
    colour: str


class Analysis(Teller):
    """A chart's entries, and how they are told."""

    def __init__(self, scene: Scene, rng: random.Random, split: Split) -> None:
        super().__init__(scene, rng, split)
        self.word = scene.items[0].name
        self.pie = scene.layout == "pie"
        self.entries = [self.entry(k) for k in range(len(scene.items))]

    def entry(self, k: int) -> Entry:
        item, names = self.scene.items[k], self.scene.extra["names"]
        value = self.scene.extra["values"][k] * (10 if self.pie else 1)
        if names:
            named = f"{self.word} {names[k]}" if self.rng.random() < 0.6 else names[k]
            return Entry(named, names[k], value, item.colour)
        return Entry(f"the {item.colour} {self.word}", item.colour, value, item.colour)

    def say(self, *templates: str, **words: object) -> str:
        return capital(super().say(*templates, **words))

    def add(
        self, skill: str, question: str, short: str, sentence: str, before: tuple[QA, ...] = ()
    ) -> None:
        super().add(skill, question, short, capital(sentence), before)

    def told(self, value: int) -> str:
        return f"{value}%" if self.pie else str(value)

    def best(self, highest: bool) -> Entry | None:
        """The only entry with the highest (lowest) value."""
        top = (max if highest else min)(e.value for e in self.entries)
        found = [e for e in self.entries if e.value == top]
        return found[0] if len(found) == 1 else None
