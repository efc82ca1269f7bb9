"""Questions about what is written: reading it, its letters, its colour."""

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.writing.ask_two import TwoWords
from finetune.pretrain.world.rooms.writing.questions import OneWord
from finetune.pretrain.world.scene import QA
from finetune.pretrain.world.wording.false_premises import stranger


class Reader(OneWord, TwoWords):
    """Asks about one scene of the writing room."""

    def all(self) -> list[QA]:
        """Some eight to twelve questions, in random order."""
        if len(self.words) == 2:
            self.two()
        else:
            self.one(*self.words[0])
        self.other()
        return self.chosen()

    def other(self) -> None:
        """What is not there, and what cannot be known."""
        roll = self.rng.random()
        used = {colour for _, colour in self.words}
        if roll < 0.35:
            colour = self.rng.choice([c for c in COLOURS if c not in used])
            self.add(
                "false_premise",
                self.say(
                    "What does the {c} word say?",
                    "What is written in {c}?",
                    "Read the {c} word.",
                    "What do the {c} letters spell?",
                    "~What does it say in {c}?",
                    c=colour,
                ),
                "none",
                f"There is no {colour} word in the picture.",
            )
        elif roll < 0.5:
            self.made.append(stranger("writing", self.rng, self.split))
        elif roll < 0.6:
            self.add(
                "existence",
                self.say(
                    "Is there any writing{in_pic}?",
                    "Is something written here?",
                    "Do you see any text?",
                    "~Do you see any writing?",
                ),
                "yes",
                "Yes, there is writing.",
            )
        elif roll < 0.68:
            self.add(
                "unknowable",
                self.say(
                    "Who wrote this?",
                    "When was this written?",
                    "Where does this sign stand?"
                    if self.scene.layout == "sign"
                    else "Who is it for?",
                ),
                "unknown",
                "I cannot tell that from the picture.",
            )
