"""Questions about a sum to work out and about a digital clock: see `digits_ask`."""

from finetune.pretrain.world.rooms.digits.asking import Reckoning


class Sums(Reckoning):
    """What comes out, and what is written."""

    def sum(self) -> None:
        text = self.scene.extra["text"]
        a, sign, b = int(text[0]), text[1], int(text[2])
        result, word = (a + b, "plus") if sign == "+" else (a - b, "minus")
        for _ in range(3):
            self.add(
                "arithmetic",
                self.say(
                    "What is the result?",
                    "Solve it.",
                    "What does it come to?",
                    "How much is it?",
                    "What is the answer?",
                    "Work it out.",
                    "Calculate this.",
                    "What do you get?",
                    "~How much does it come to?",
                ),
                str(result),
                f"{a} {word} {b} is {result}.",
            )
        self.add(
            "read",
            self.say(
                "What does it say?",
                "What is written here?",
                "Read it to me.",
                "~What does it say here?",
            ),
            f"{a} {sign} {b}",
            f"It says {a} {sign} {b}.",
        )
        names = {"first": a, "second": b}
        for name, value in names.items():
            self.add(
                "digit",
                self.say("What is the {w} number?", "Which number comes {w}?", w=name),
                str(value),
                f"The {name} number is {value}.",
            )
        told = result if self.rng.random() < 0.5 else max(0, result + self.rng.choice((-1, 1, 2)))
        self.yes_no(
            "arithmetic",
            self.say("Is the result {n}?", "Does it make {n}?", n=told),
            told == result,
            f"{a} {word} {b} is {result}",
        )
        plus = self.rng.random() < 0.5
        self.yes_no(
            "read",
            "Is it an addition?" if plus else "Is it a subtraction?",
            plus == (sign == "+"),
            f"it says {a} {sign} {b}",
        )
        self.colour_of("writing", self.scene.extra["ink"].name)
        self.caption(f"{a} {sign} {b}")

    def clock(self) -> None:
        text = self.scene.extra["text"]
        time = f"{text[:2]}:{text[2:]}"
        hour, minute = int(text[:2]), int(text[2:])
        for _ in range(3):
            self.add(
                "time",
                self.say(
                    "What time is it?",
                    "What time does the clock show?",
                    "What is the time?",
                    "What time is shown?",
                    "Tell me the time.",
                    "~What does the clock say?",
                ),
                time,
                f"It is {time}.",
            )
        self.add(
            "time",
            self.say("Which hour is it?", "What is the hour?"),
            str(hour),
            f"The hour is {hour}.",
        )
        self.add(
            "time",
            self.say("How many minutes past the hour is it?", "How many minutes does it show?"),
            str(minute),
            f"It is {minute} minutes past the hour.",
        )
        late = hour >= 12
        self.yes_no(
            "time",
            self.say("Is it past noon?", "Is it afternoon?", "Is it after 12:00?")
            if time != "12:00"
            else "Is it noon or later?",
            late,
            f"it is {time}",
        )
        self.colour_of("display", self.scene.extra["ink"].name)
        self.caption(f"a digital clock that shows {time}")
