"""What those who ask about writing have in common: see `writing_ask`."""

import random

from finetune.pretrain.world.scene import Scene, Split
from finetune.pretrain.world.wording.question_maker import Teller


class Reading(Teller):
    """One or two words, each with its colour."""

    def __init__(self, scene: Scene, rng: random.Random, split: Split) -> None:
        super().__init__(scene, rng, split)
        self.words = [(text.word, text.colour) for text in scene.extra["texts"]]
        self.captioned = self.rng.random() < 0.5  # long answers cost most to learn

    @property
    def noun(self) -> str:
        """What the writing is called."""
        word = self.words[0][0]
        if len(word) == 1 and word.isalpha():
            return "letter"
        return "number" if word.isdigit() else "word" if word.isalpha() else "text"
