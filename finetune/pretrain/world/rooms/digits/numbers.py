"""Questions about a number that is written or on a display: see `digits_ask`."""

from finetune.pretrain.world.rooms.digits.asking import Reckoning


class Numbers(Reckoning):
    """What the number is, and what its digits are."""

    def number(self) -> None:
        text, colour = self.scene.extra["text"], self.scene.extra["ink"].name
        value = int(text)
        for _ in range(2):
            self.read_number(text)
        self.parity(value, "the number", str(value))
        self.threshold(value)
        self.yes_or_other(text)
        self.colour_of("number", colour)
        self.caption(f"the number {text} in {colour}")
        if len(text) == 1:
            self.plus(value)
            return
        self.one_digit(text)
        self.last_digit(text)
        self.how_many_digits(text)
        self.sum_of_digits(text)
        self.largest_digit(text)

    def read_number(self, text: str) -> None:
        self.add(
            "read",
            self.say(
                "What number is this?",
                "Which number is in the {pic}?",
                "What number do you see?",
                "What does it say?",
                "Read the number.",
                "What number is shown?",
                "Which number does the {pic} show?",
                "What number is written here?",
                "Tell me the number.",
                "~Which number is this?",
                "~What number is in the {pic}?",
            ),
            text,
            f"It is {text}." if self.rng.random() < 0.5 else f"The number is {text}.",
        )

    def threshold(self, value: int) -> None:
        top = 10 ** len(str(value))
        limit = self.rng.choice((5, top // 2, max(1, value + self.rng.choice((-3, -2, 2, 3)))))
        if limit == value:
            return
        more = self.rng.random() < 0.5
        word = self.rng.choice(("bigger", "larger", "greater")) if more else "smaller"
        truth = "bigger" if value > limit else "smaller"
        self.yes_no(
            "compare",
            self.say(
                "Is the number {w} than {n}?",
                "Is it {w} than {n}?",
                "Is the number {w} than {n}?",
                "~Is this number {w} than {n}?",
                w=word,
                n=limit,
            ),
            (value > limit) == more,
            f"{value} is {truth} than {limit}",
        )

    def yes_or_other(self, text: str) -> None:
        """Is it this number? Often a near miss."""
        asked = text
        if self.rng.random() < 0.5:
            at = self.rng.randrange(len(text))
            other = self.rng.choice([d for d in "123456789" if d != text[at]])
            asked = text[:at] + other + text[at + 1 :]
        if self.rng.random() < 0.3:
            word = "true" if asked == text else "false"
            self.add(
                "statement",
                self.say(
                    "True or false: the number is {n}.",
                    "The number is {n}. True or false?",
                    n=asked,
                ),
                word,
                f"That is {word}.",
            )
            return
        self.yes_no(
            "read",
            self.say(
                "Is it {n}?",
                "Is the number {n}?",
                "Does it say {n}?",
                "Is this a {n}?",
                "~Does the number say {n}?",
                n=asked,
            ),
            asked == text,
            f"it is {text}",
        )

    def plus(self, value: int) -> None:
        more = self.rng.randint(1, 9)
        self.add(
            "arithmetic",
            self.say(
                "What is this number plus {n}?",
                "Add {n} to the number.",
                "What is {n} more?",
                "~What is the number plus {n}?",
                n=more,
            ),
            str(value + more),
            f"{value} plus {more} is {value + more}.",
        )

    def one_digit(self, text: str) -> None:
        names = ("first", "second", "third")
        at = self.rng.randrange(len(text))
        self.add(
            "digit",
            self.say(
                "What is the {w} digit?",
                "Which digit comes {w}?",
                "What is the {w} digit of the number?",
                "Name the {w} digit.",
                "~What digit comes {w}?",
                w=names[at],
            ),
            text[at],
            f"The {names[at]} digit is {text[at]}.",
        )

    def last_digit(self, text: str) -> None:
        self.add(
            "digit",
            self.say(
                "What is the last digit?", "Which digit is the last?", "Which digit comes last?"
            ),
            text[-1],
            f"The last digit is {text[-1]}.",
        )

    def how_many_digits(self, text: str) -> None:
        self.add(
            "count",
            self.say(
                "How many digits does the number have?",
                "How many digits are there?",
                "How many digits do you see?",
                "Count the digits.",
                "~How many digits are in the {pic}?",
            ),
            str(len(text)),
            f"The number has {len(text)} digits.",
        )

    def sum_of_digits(self, text: str) -> None:
        total = sum(map(int, text))
        self.add(
            "arithmetic",
            self.say(
                "What is the sum of the digits?",
                "Add the digits.",
                "What do the digits add up to?",
                "~What is the sum of all digits?",
            ),
            str(total),
            f"The digits add up to {total}.",
        )

    def largest_digit(self, text: str) -> None:
        best = max(text)
        self.add(
            "compare",
            self.say(
                "What is the largest digit?",
                "Which digit is the highest?",
                "Name the largest digit.",
                "~Which digit is the largest?",
            ),
            best,
            f"The largest digit is {best}.",
        )
