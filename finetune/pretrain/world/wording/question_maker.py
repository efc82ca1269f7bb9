"""Collects the questions about one scene of writing, digits or charts."""

import random

from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.phrasing import fill_template


class QuestionMaker:
    """The questions made about one scene so far; the skills of a room add to them."""

    def __init__(self, scene: Scene, rng: random.Random, split: Split) -> None:
        self.scene, self.rng, self.split = scene, rng, split
        self.questions: list[QA] = []

    def phrase(self, *templates: str, **words: object) -> str:
        """Fill one of the templates; see `fill_template`."""
        return fill_template(templates, self.rng, self.split, **words)

    def add(
        self, skill: str, question: str, short: str, sentence: str, before: tuple[QA, ...] = ()
    ) -> None:
        """Add a question with its short answer and its sentence; see `QA`."""
        self.questions.append(QA(skill, question, short, sentence, before))

    def add_yes_no(self, skill: str, question: str, yes: bool, fact: str) -> None:
        """Add a question that is answered with "yes" or "no", and `fact` as the reason."""
        self.add(skill, question, "yes" if yes else "no", f"{'Yes' if yes else 'No'}, {fact}.")

    def selection(self) -> list[QA]:
        """Return at most twelve different questions in random order."""
        self.rng.shuffle(self.questions)
        return list({qa.question: qa for qa in self.questions}.values())[:12]
