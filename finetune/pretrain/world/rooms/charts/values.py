"""A chart's entries, and the questions about their values."""

import random
from dataclasses import dataclass

from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.phrasing import capitalized
from finetune.pretrain.world.wording.question_maker import QuestionMaker


@dataclass(frozen=True)
class Entry:
    """A bar, point or slice: its name in questions ("bar B", "the red slice") and in answers."""

    name: str
    short: str
    value: int
    colour: str


class ChartQuestionMaker(QuestionMaker):
    """The questions about one chart; every text begins with a capital letter.

    `word` is what an entry is called: "bar", "point" or "slice".
    """

    def __init__(self, scene: Scene, rng: random.Random, split: Split) -> None:
        super().__init__(scene, rng, split)
        self.word = scene.items[0].name
        self.is_pie = scene.layout == "pie"
        self.entries = [self._entry(k) for k in range(len(scene.items))]

    def _entry(self, k: int) -> Entry:
        item, names = self.scene.items[k], self.scene.extra["names"]
        value = self.scene.extra["values"][k] * (10 if self.is_pie else 1)
        if names:
            name = f"{self.word} {names[k]}" if self.rng.random() < 0.6 else names[k]
            return Entry(name, names[k], value, item.colour)
        return Entry(f"the {item.colour} {self.word}", item.colour, value, item.colour)

    def phrase(self, *templates: str, **words: object) -> str:
        """Fill one of the templates and capitalise the result."""
        return capitalized(super().phrase(*templates, **words))

    def add(
        self, skill: str, question: str, short: str, sentence: str, before: tuple[QA, ...] = ()
    ) -> None:
        """Add a question; the sentence is capitalised."""
        super().add(skill, question, short, capitalized(sentence), before)

    @property
    def has_values(self) -> bool:
        """Whether values can be read off; the shares of a pie cannot without labels."""
        return not self.is_pie or self.scene.extra["labelled"]

    def value_text(self, value: int) -> str:
        """Return a value as it is written in answers."""
        return f"{value}%" if self.is_pie else str(value)

    def best(self, highest: bool) -> Entry | None:
        """Return the entry with the highest (or lowest) value, or None if several share it."""
        top = (max if highest else min)(e.value for e in self.entries)
        found = [e for e in self.entries if e.value == top]
        return found[0] if len(found) == 1 else None


def ask_extreme(maker: ChartQuestionMaker) -> None:
    """Ask for the entry with the highest or lowest value, and sometimes for that value."""
    highest = maker.rng.random() < 0.5
    best = maker.best(highest)
    if best is None:
        return
    high = ("highest", "tallest", "greatest") if highest else ("lowest", "shortest", "smallest")
    large = ("largest", "biggest") if highest else ("smallest",)
    long = ("longest",) if highest else ("shortest",)
    words = {"pie": large, "flat": long, "line": high[:1] + high[2:]}.get(maker.scene.layout, high)
    word = maker.rng.choice(words)
    question = maker.phrase(
        "Which {n} is the {w}?",
        "What is the {w} {n}?",
        "Which is the {w} {n}?",
        "Which {n} has the {v} value?",
        "What has the {v} value?",
        "Name the {w} {n}.",
        "~What {n} has the {v} value?",
        n=maker.word,
        w=word,
        v="highest" if highest else "lowest",
    )
    maker.add("extreme", question, best.short, f"{best.name} is the {word}.")
    if maker.rng.random() < 0.4:
        maker.add(
            "value",
            maker.phrase(
                "What is the {v} value?",
                "How much is the {v} value?",
                "~Which value is the {v}?",
                v="highest" if highest else "lowest",
            ),
            maker.value_text(best.value),
            f"The {'highest' if highest else 'lowest'} value is {maker.value_text(best.value)}.",
        )


def ask_value(maker: ChartQuestionMaker) -> None:
    """Ask for the value of an entry."""
    if not maker.has_values:
        return  # shares cannot be read off exactly without labels
    one = maker.rng.choice(maker.entries)
    forms = [
        "What is the value of {x}?",
        "How much is {x}?",
        "What value does {x} have?",
        "What does {x} stand at?",
        "Read the value of {x}.",
        "~Tell me the value of {x}.",
    ]
    if maker.is_pie:
        forms += ["What percentage is {x}?", "How many percent is {x}?"]
    elif maker.scene.layout != "flat":
        forms += ["How high is {x}?"]
    else:
        forms += ["How long is {x}?"]
    maker.add(
        "value",
        maker.phrase(*forms, x=one.name),
        maker.value_text(one.value),
        f"{one.name} is {maker.value_text(one.value)}."
        if maker.rng.random() < 0.5
        else f"The value of {one.name} is {maker.value_text(one.value)}.",
    )


def ask_arithmetic(maker: ChartQuestionMaker) -> None:
    """Ask for a difference, a sum or the total."""
    if not maker.has_values:
        return
    a, b = maker.rng.sample(maker.entries, 2)
    if maker.rng.random() < 0.5:
        gap = abs(a.value - b.value)
        maker.add(
            "arithmetic",
            maker.phrase(
                "What is the difference between {a} and {b}?",
                "How far apart are {a} and {b}?",
                "By how much do {a} and {b} differ?",
                "~What is the difference of {a} and {b}?",
                a=a.name,
                b=b.name,
            ),
            maker.value_text(gap),
            f"The difference is {maker.value_text(gap)}.",
        )
    else:
        total = a.value + b.value
        maker.add(
            "arithmetic",
            maker.phrase(
                "What is the sum of {a} and {b}?",
                "How much are {a} and {b} together?",
                "Add {a} and {b}.",
                "~What are {a} and {b} together?",
                a=a.name,
                b=b.name,
            ),
            maker.value_text(total),
            f"Together they are {maker.value_text(total)}.",
        )
    if not maker.is_pie and len(maker.entries) <= 3 and maker.rng.random() < 0.6:
        total = sum(e.value for e in maker.entries)
        maker.add(
            "arithmetic",
            maker.phrase(
                "What is the total of all {n}s?",
                "What is the sum of all values?",
                "~How much are all {n}s together?",
                n=maker.word,
            ),
            str(total),
            f"The total is {total}.",
        )


def ask_comparison(maker: ChartQuestionMaker) -> None:
    """Ask how the values of two entries compare."""
    a, b = maker.rng.sample(maker.entries, 2)
    if a.value == b.value or maker.rng.random() < 0.15:
        same = a.value == b.value
        shown = maker.has_values
        fact = (
            f"{a.name} is {maker.value_text(a.value)} and {b.name} is {maker.value_text(b.value)}"
        )
        maker.add_yes_no(
            "compare",
            maker.phrase(
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
    word = maker.rng.choice(
        ("larger", "smaller")
        if maker.is_pie or maker.scene.layout == "flat"
        else ("higher", "lower")
    )
    grows = word in ("larger", "higher")
    wins = (a.value > b.value) == grows
    other = {"larger": "smaller", "smaller": "larger", "higher": "lower", "lower": "higher"}[word]
    if maker.rng.random() < 0.6:
        maker.add_yes_no(
            "compare",
            maker.phrase(
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
    maker.add(
        "compare",
        maker.phrase(
            "Which is {w}, {a} or {b}?", "What is {w}: {a} or {b}?", a=a.name, b=b.name, w=word
        ),
        best.short,
        f"{best.name} is {word}.",
    )


def ask_trend(maker: ChartQuestionMaker) -> None:
    """Ask whether a line rises or falls between neighbouring points."""
    for _ in range(2):
        at = maker.rng.randrange(len(maker.entries) - 1)
        a, b = maker.entries[at], maker.entries[at + 1]
        if a.value == b.value:
            continue
        rises = b.value > a.value
        word = (
            maker.rng.choice(("rise", "go up"))
            if (up := maker.rng.random() < 0.5)
            else maker.rng.choice(("fall", "go down"))
        )
        maker.add_yes_no(
            "trend",
            maker.phrase(
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
