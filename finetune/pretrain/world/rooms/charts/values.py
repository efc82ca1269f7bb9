"""Questions about the values of a chart: see `charts_ask`."""

from finetune.pretrain.world.rooms.charts.asking import Analysis


class Values(Analysis):
    """How much something is, and how it stands to the rest."""

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
