"""What those who ask about numbers have in common: see `digits_ask`."""

from finetune.pretrain.world.wording.question_maker import Teller


class Reckoning(Teller):
    """Questions that fit more than one kind of number."""

    def parity(self, value: int, what: str, told: str) -> None:
        even = value % 2 == 0
        word = "even" if even else "odd"
        if self.rng.random() < 0.5:
            self.add(
                "parity",
                self.say("Is {w} even or odd?", "Is {w} odd or even?", w=what),
                word,
                f"{told} is {word}.",
            )
            return
        asked = self.rng.choice(("even", "odd"))
        self.yes_no(
            "parity",
            self.say("Is {w} {a}?", "Is {w} an {a} number?", w=what, a=asked),
            asked == word,
            f"{told} is {word}",
        )

    def colour_of(self, what: str, colour: str) -> None:
        self.add(
            "colour",
            self.say(
                "What colour is the {w}?",
                "What is the colour of the {w}?",
                "Which colour is the {w}?",
                "Which colour does the {w} have?",
                "Name the colour of the {w}.",
                "~Tell me the colour of the {w}.",
                w=what,
            ),
            colour,
            f"The {what} is {colour}.",
        )

    def caption(self, what: str) -> None:
        if self.rng.random() < 0.5:  # long answers cost most to learn
            return
        self.add(
            "caption",
            self.say(
                "What does the {pic} show?",
                "Describe the {pic} briefly.",
                "What is in the {pic}?",
                "Caption this {pic}.",
                "What do you see?",
                "~What do you see in the {pic}?",
            ),
            "",
            f"The picture shows {what}.",
        )
