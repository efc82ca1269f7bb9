"""What those who ask about writing, digits and charts have in common."""

import random

from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.phrasing import say


class Teller:
    """Asks about one scene; `made` are its questions so far."""

    def __init__(self, scene: Scene, rng: random.Random, split: Split) -> None:
        self.scene, self.rng, self.split = scene, rng, split
        self.made: list[QA] = []

    def say(self, *templates: str, **words: object) -> str:
        return say(templates, self.rng, self.split, **words)

    def add(
        self, skill: str, question: str, short: str, sentence: str, before: tuple[QA, ...] = ()
    ) -> None:
        self.made.append(QA(skill, question, short, sentence, before))

    def yes_no(self, skill: str, question: str, yes: bool, fact: str) -> None:
        self.add(skill, question, "yes" if yes else "no", f"{'Yes' if yes else 'No'}, {fact}.")

    def chosen(self) -> list[QA]:
        """At most twelve different ones, in random order."""
        self.rng.shuffle(self.made)
        return list({qa.question: qa for qa in self.made}.values())[:12]
