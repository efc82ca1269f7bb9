"""Questions about charts: values, extremes, differences, trends."""

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.charts.looks import Appearance
from finetune.pretrain.world.rooms.charts.values import Values
from finetune.pretrain.world.scene import QA
from finetune.pretrain.world.wording.false_premises import stranger
from finetune.pretrain.world.wording.phrasing import capital

LETTERS = "ABCDEFGH"


class Analyst(Values, Appearance):
    """Asks about one scene of the charts room."""

    def all(self) -> list[QA]:
        """Some eight to twelve questions, in random order."""
        for _ in range(2):
            self.extreme()
            self.value()
        self.arithmetic()
        self.compare()
        self.counting()
        self.colour()
        self.statement()
        self.kind()
        self.absent()
        self.followup()
        if self.scene.layout == "line":
            self.trend()
        if self.rng.random() < 0.5:  # long answers cost most to learn
            self.caption()
        return self.chosen()

    def statement(self) -> None:
        a, b = self.rng.sample(self.entries, 2)
        if (self.pie and not self.scene.extra["told"]) or self.rng.random() < 0.4:
            if a.value == b.value:
                return
            holds, claim = a.value > b.value, f"{a.name} is larger than {b.name}"
        else:
            shown = (
                a.value
                if self.rng.random() < 0.5
                else b.value + self.rng.choice((0, 1)) * (10 if self.pie else 1)
            )
            holds, claim = shown == a.value, f"{a.name} is {self.told(shown)}"
        if self.rng.random() < 0.5:
            word = "true" if holds else "false"
            self.add(
                "statement",
                self.say(
                    "True or false: {c}.",
                    "True or false? {C}.",
                    "{C}. True or false?",
                    c=claim,
                    C=capital(claim),
                ),
                word,
                f"That is {word}.",
            )
            return
        self.add(
            "statement",
            self.say(
                "Is it true that {c}?",
                "Is this true of the {pic}: {c}?",
                '"{C}." Is that right?',
                "~Is this right: {c}?",
                c=claim,
                C=capital(claim),
            ),
            "yes" if holds else "no",
            "Yes, that is true." if holds else "No, that is not true.",
        )

    def absent(self) -> None:
        """What is not in the chart, and what a chart cannot tell."""
        roll = self.rng.random()
        names = self.scene.extra["names"]
        if roll < 0.4:
            if names:
                miss = f"{self.word} " + self.rng.choice([x for x in LETTERS if x not in names])
                told = f"There is no {miss} in the picture."
            else:
                used = [e.colour for e in self.entries]
                colour = self.rng.choice([c for c in COLOURS if c not in used])
                miss, told = (
                    f"the {colour} {self.word}",
                    f"There is no {colour} {self.word} in the picture.",
                )
            self.add(
                "false_premise",
                self.say(
                    "What is the value of {x}?",
                    "How much is {x}?",
                    "Is {x} higher than {y}?",
                    "~How big is {x}?",
                    x=miss,
                    y=self.entries[0].name,
                ),
                "none",
                told,
            )
        elif roll < 0.5:
            self.add(
                "unknowable",
                self.say(
                    "Who made this chart?",
                    "What year is it from?",
                    "Where do the numbers come from?",
                    "What will the next value be?",
                    "What is it about?",
                ),
                "unknown",
                "I cannot tell that from the picture.",
            )
        elif roll < 0.65:
            self.made.append(stranger("charts", self.rng, self.split))

    def followup(self) -> None:
        high = self.rng.random() < 0.5
        best = self.best(high)
        if best is None or self.rng.random() < 0.6 or (self.pie and not self.scene.extra["told"]):
            return
        word = "highest" if high else "lowest"
        opening = QA(
            "extreme",
            f"Which {self.word} has the {word} value?",
            best.short,
            capital(f"{best.name} has the {word} value."),
        )
        asked = self.rng.choice(("What is its value?", "How much is it?", "And what is its value?"))
        self.add(
            "followup", asked, self.told(best.value), f"It is {self.told(best.value)}.", (opening,)
        )
