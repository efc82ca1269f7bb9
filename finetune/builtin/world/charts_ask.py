"""Questions about charts: values, extremes, differences, trends."""

import random
from dataclasses import dataclass

from finetune.builtin.world.paint import COLOURS
from finetune.builtin.world.phrasing import article, capital, listed
from finetune.builtin.world.scene import QA, Scene, Split
from finetune.builtin.world.strangers import stranger
from finetune.builtin.world.teller import Teller

KIND_NAMES = {"bars": "bar chart", "flat": "bar chart", "line": "line chart", "pie": "pie chart"}
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Entry:
    """A bar, point or slice: what it is called ("bar B", "the red slice"), its short name."""

    name: str
    short: str
    value: int
    colour: str


class Analyst(Teller):
    """Asks about one scene of the charts room."""

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

    def best(self, highest: bool) -> Entry | None:
        """The only entry with the highest (lowest) value."""
        top = (max if highest else min)(e.value for e in self.entries)
        found = [e for e in self.entries if e.value == top]
        return found[0] if len(found) == 1 else None

    def extreme(self) -> None:
        highest = self.rng.random() < 0.5
        best = self.best(highest)
        if best is None:
            return
        high = ("highest", "tallest", "greatest") if highest else ("lowest", "shortest", "smallest")
        large = ("largest", "biggest") if highest else ("smallest",)
        long = ("longest",) if highest else ("shortest",)
        words = {"pie": large, "flat": long, "line": high[:1] + high[2:]}.get(
            self.scene.layout, high
        )
        word = self.rng.choice(words)
        question = self.say(
            "Which {n} is the {w}?",
            "What is the {w} {n}?",
            "Which is the {w} {n}?",
            "Which {n} has the {v} value?",
            "What has the {v} value?",
            "Name the {w} {n}.",
            "~What {n} has the {v} value?",
            n=self.word,
            w=word,
            v="highest" if highest else "lowest",
        )
        self.add("extreme", question, best.short, f"{best.name} is the {word}.")
        if self.rng.random() < 0.4:
            self.add(
                "value",
                self.say(
                    "What is the {v} value?",
                    "How much is the {v} value?",
                    "~Which value is the {v}?",
                    v="highest" if highest else "lowest",
                ),
                self.told(best.value),
                f"The {'highest' if highest else 'lowest'} value is {self.told(best.value)}.",
            )

    def value(self) -> None:
        if self.pie and not self.scene.extra["told"]:
            return  # shares without labels are a matter of the eye
        one = self.rng.choice(self.entries)
        forms = [
            "What is the value of {x}?",
            "How much is {x}?",
            "What value does {x} have?",
            "What does {x} stand at?",
            "Read the value of {x}.",
            "~Tell me the value of {x}.",
        ]
        if self.pie:
            forms += ["What percentage is {x}?", "How many percent is {x}?"]
        elif self.scene.layout != "flat":
            forms += ["How high is {x}?"]
        else:
            forms += ["How long is {x}?"]
        self.add(
            "value",
            self.say(*forms, x=one.name),
            self.told(one.value),
            f"{one.name} is {self.told(one.value)}."
            if self.rng.random() < 0.5
            else f"The value of {one.name} is {self.told(one.value)}.",
        )

    def arithmetic(self) -> None:
        if self.pie and not self.scene.extra["told"]:
            return
        a, b = self.rng.sample(self.entries, 2)
        if self.rng.random() < 0.5:
            gap = abs(a.value - b.value)
            self.add(
                "arithmetic",
                self.say(
                    "What is the difference between {a} and {b}?",
                    "How far apart are {a} and {b}?",
                    "By how much do {a} and {b} differ?",
                    "~What is the difference of {a} and {b}?",
                    a=a.name,
                    b=b.name,
                ),
                self.told(gap),
                f"The difference is {self.told(gap)}.",
            )
        else:
            total = a.value + b.value
            self.add(
                "arithmetic",
                self.say(
                    "What is the sum of {a} and {b}?",
                    "How much are {a} and {b} together?",
                    "Add {a} and {b}.",
                    "~What are {a} and {b} together?",
                    a=a.name,
                    b=b.name,
                ),
                self.told(total),
                f"Together they are {self.told(total)}.",
            )
        if not self.pie and len(self.entries) <= 3 and self.rng.random() < 0.6:
            total = sum(e.value for e in self.entries)
            self.add(
                "arithmetic",
                self.say(
                    "What is the total of all {n}s?",
                    "What is the sum of all values?",
                    "~How much are all {n}s together?",
                    n=self.word,
                ),
                str(total),
                f"The total is {total}.",
            )

    def compare(self) -> None:
        a, b = self.rng.sample(self.entries, 2)
        if a.value == b.value or self.rng.random() < 0.15:
            same = a.value == b.value
            shown = not self.pie or self.scene.extra["told"]
            fact = f"{a.name} is {self.told(a.value)} and {b.name} is {self.told(b.value)}"
            self.yes_no(
                "compare",
                self.say(
                    "Are {a} and {b} equal?",
                    "Are {a} and {b} the same?",
                    "~Do {a} and {b} have the same value?",
                    a=a.name,
                    b=b.name,
                ),
                same,
                fact if shown else "they are equal" if same else "they are not equal",
            )
            return
        word = self.rng.choice(
            ("larger", "smaller")
            if self.pie or self.scene.layout == "flat"
            else ("higher", "lower")
        )
        grows = word in ("larger", "higher")
        wins = (a.value > b.value) == grows
        other = {"larger": "smaller", "smaller": "larger", "higher": "lower", "lower": "higher"}[
            word
        ]
        if self.rng.random() < 0.6:
            self.yes_no(
                "compare",
                self.say(
                    "Is {a} {w} than {b}?",
                    "Does {a} have a {w} value than {b}?",
                    "~Is the value of {a} {w} than {b}?",
                    a=a.name,
                    b=b.name,
                    w=word,
                ),
                wins,
                f"{a.name} is {word if wins else other} than {b.name}",
            )
            return
        best = a if wins else b
        self.add(
            "compare",
            self.say(
                "Which is {w}, {a} or {b}?", "What is {w}: {a} or {b}?", a=a.name, b=b.name, w=word
            ),
            best.short,
            f"{best.name} is {word}.",
        )

    def counting(self) -> None:
        number = len(self.entries)
        self.add(
            "count",
            self.say(
                "How many {n}s are there?",
                "How many {n}s does the chart have?",
                "Count the {n}s.",
                "How many {n}s do you see?",
                "Give me the number of {n}s.",
                "~How many {n}s are in the chart?",
                n=self.word,
            ),
            str(number),
            f"There are {number} {self.word}s.",
        )
        if self.pie or self.rng.random() < 0.4:
            return
        limit = self.rng.randint(2, 8)
        more = self.rng.random() < 0.5
        hits = sum(e.value > limit if more else e.value < limit for e in self.entries)
        side = "above" if more else "below"
        self.add(
            "count",
            self.say(
                "How many {n}s are {s} {v}?",
                "How many {n}s have a value {s} {v}?",
                "~Count the {n}s {s} {v}.",
                n=self.word,
                s=side,
                v=limit,
            ),
            str(hits),
            f"{hits} {self.word}{'s are' if hits != 1 else ' is'} {side} {limit}.",
        )

    def colour(self) -> None:
        one = self.rng.choice(self.entries)
        if self.scene.layout == "line":
            self.add(
                "colour",
                self.say(
                    "What colour is the line?",
                    "Which colour is the line?",
                    "What is the colour of the line?",
                    "~Tell me the colour of the line.",
                ),
                one.colour,
                f"The line is {one.colour}.",
            )
        elif self.scene.extra["names"]:
            self.add(
                "colour",
                self.say(
                    "What colour is {x}?",
                    "Which colour is {x}?",
                    "What is the colour of {x}?",
                    "What colour has {x} got?",
                    "~Which colour does {x} have?",
                    x=one.name,
                ),
                one.colour,
                f"{one.name} is {one.colour}.",
            )
        else:
            asked = one.colour if self.rng.random() < 0.5 else self.rng.choice(list(COLOURS))
            here = asked in [e.colour for e in self.entries]
            self.yes_no(
                "existence",
                self.say(
                    "Is there {a} {n}?",
                    "Do you see {a} {n}?",
                    "Is one {n} {c}?",
                    "~Does the chart have {a} {n}?",
                    a=article(asked),
                    n=self.word,
                    c=asked,
                ),
                here,
                f"there is {article(asked)} {self.word}"
                if here
                else f"there is no {asked} {self.word}",
            )
            if not self.pie:
                best = {True: "highest", False: "lowest"}[(high := self.rng.random() < 0.5)]
                top = self.best(high)
                if top:
                    self.add(
                        "extreme",
                        self.say(
                            "What colour is the {w} {n}?",
                            "What is the colour of the {w} {n}?",
                            w=best,
                            n=self.word,
                        ),
                        top.colour,
                        f"The {best} {self.word} is {top.colour}.",
                    )

    def statement(self) -> None:
        a, b = self.rng.sample(self.entries, 2)
        if self.pie and not self.scene.extra["told"] or self.rng.random() < 0.4:
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

    def kind(self) -> None:
        name = KIND_NAMES[self.scene.layout]
        if self.rng.random() < 0.5:
            self.add(
                "kind",
                self.say(
                    "What kind of chart is this?",
                    "What type of chart is it?",
                    "Which chart is this?",
                    "~What chart is this?",
                ),
                name,
                f"It is a {name}.",
            )
            return
        asked = self.rng.choice(("bar chart", "line chart", "pie chart", name))
        self.yes_no(
            "kind",
            self.say(
                "Is this a {k}?",
                "Is there a {k}?",
                "Do you see a {k}?",
                "Is it a {k}?",
                "Does the {pic} show a {k}?",
                k=asked,
            ),
            asked == name,
            f"it is a {name}",
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
        if best is None or self.rng.random() < 0.6 or self.pie and not self.scene.extra["told"]:
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

    def trend(self) -> None:
        for _ in range(2):
            at = self.rng.randrange(len(self.entries) - 1)
            a, b = self.entries[at], self.entries[at + 1]
            if a.value == b.value:
                continue
            rises = b.value > a.value
            word = (
                self.rng.choice(("rise", "go up"))
                if (up := self.rng.random() < 0.5)
                else self.rng.choice(("fall", "go down"))
            )
            self.yes_no(
                "trend",
                self.say(
                    "Does the line {w} from {a} to {b}?",
                    "Does it {w} from {a} to {b}?",
                    "~Does the value {w} from {a} to {b}?",
                    w=word,
                    a=a.short,
                    b=b.short,
                ),
                rises == up,
                f"it {'rises' if rises else 'falls'} from {a.short} to {b.short}",
            )

    def caption(self) -> None:
        question = self.say(
            "What does the {pic} show?",
            "Describe the {pic} briefly.",
            "What is in the {pic}?",
            "Caption this {pic}.",
            "What do you see?",
            "Describe the chart.",
            "~What do you see in the {pic}?",
        )
        name = KIND_NAMES[self.scene.layout]
        if self.pie and not self.scene.extra["told"]:
            parts = [e.short for e in self.entries]
            text = f"The picture shows a pie chart with {len(parts)} slices: {listed(parts)}."
        else:
            parts = [f"{e.short} {self.told(e.value)}" for e in self.entries]
            text = f"The picture shows a {name}: {listed(parts)}."
        self.add("caption", question, "", text)
