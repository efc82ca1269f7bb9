"""Questions about numbers that are seen: which, how much in all, which is more."""

from collections.abc import Sequence
from dataclasses import replace

from finetune.builtin.world import ask
from finetune.builtin.world.paint import COLOURS
from finetune.builtin.world.phrasing import article, listed
from finetune.builtin.world.scene import QA
from finetune.builtin.world.strangers import stranger
from finetune.builtin.world.teller import Teller

DICE_WEIGHTS: dict[str, float] = {
    "existence": 4,
    "colour": 4,
    "count": 5,
    "position": 3,
    "relation": 3,
    "statement": 2,
    "same": 1,
}


class Reckoner(Teller):
    """Asks about one scene of the digits room."""

    def all(self) -> list[QA]:
        """Some eight to twelve questions, in random order."""
        layout = self.scene.layout
        if layout == "dice":
            self.dice()
        elif layout == "domino":
            self.domino()
        elif layout == "sum":
            self.sum()
        elif layout == "clock":
            self.clock()
        else:
            self.number()
        self.wrong_room()
        self.followup()
        return self.chosen()

    # Numbers, written or on a display

    def number(self) -> None:
        text, colour = self.scene.extra["text"], self.scene.extra["ink"].name
        value = int(text)
        for _ in range(2):
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
        self.parity(value, "the number", f"{value}")
        self.threshold(value)
        self.yes_or_other(text)
        self.colour_of("number", colour)
        self.caption(f"the number {text} in {colour}")
        if len(text) == 1:
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
            return
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
        self.add(
            "digit",
            self.say(
                "What is the last digit?", "Which digit is the last?", "Which digit comes last?"
            ),
            text[-1],
            f"The last digit is {text[-1]}.",
        )
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

    # Dice

    def dice(self) -> None:
        items = self.scene.items
        numbers = [item.extra["number"] for item in items]
        plain = replace(self.scene, items=tuple(replace(i, kind="die") for i in items))
        words = ask.Vocabulary("die", ("die", "domino"), tuple(COLOURS))
        self.made += ask.about_items(plain, self.rng, self.split, words, 4, DICE_WEIGHTS)
        colours = [item.colour for item in items]
        faces = [f"{article(c)} die that shows {n}" for c, n in zip(colours, numbers, strict=True)]
        self.caption(listed(faces))
        if len(items) == 1:
            self.face("the die", numbers[0])
            self.parity(numbers[0], "the number on the die", str(numbers[0]))
        else:
            for colour, number in zip(colours, numbers, strict=True):
                if colours.count(colour) == 1:
                    self.face(f"the {colour} die", number)
            self.several(numbers, colours)
        self.shows(numbers)
        absent = [c for c in COLOURS if c not in colours]
        if self.rng.random() < 0.5:
            missing = self.rng.choice(absent)
            self.add(
                "false_premise",
                self.say(
                    "What does the {c} die show?",
                    "What number is on the {c} die?",
                    "~What number does the {c} die show?",
                    c=missing,
                ),
                "none",
                f"There is no {missing} die in the picture.",
            )

    def face(self, name: str, number: int) -> None:
        self.add(
            "read",
            self.say(
                "What does {d} show?",
                "What number is on {d}?",
                "Which number does {d} show?",
                "How many dots are on {d}?",
                "How many pips does {d} have?",
                "What number did {d} roll?",
                "Read {d}.",
                "~What is the number on {d}?",
                d=name,
            ),
            str(number),
            f"{name.capitalize()} shows {number}.",
        )

    def several(self, numbers: Sequence[int], colours: Sequence[str]) -> None:
        total = sum(numbers)
        self.add(
            "arithmetic",
            self.say(
                "What is the total of the dice?",
                "What do the dice add up to?",
                "What is the sum?",
                "How many dots are there in all?",
                "What is the sum of the dice?",
                "Add the dice.",
                "~What is the total?",
            ),
            str(total),
            f"The dice show {total} in all.",
        )
        self.parity(total, "the total", str(total))
        for word, pick in (("highest", max), ("lowest", min)):
            best = pick(numbers)
            self.add(
                "compare",
                self.say(
                    "What is the {w} number on the dice?",
                    "What is the {w} number?",
                    "~Which number is the {w}?",
                    w=word,
                ),
                str(best),
                f"The {word} number is {best}.",
            )
            if numbers.count(best) == 1 and colours.count(colours[numbers.index(best)]) == 1:
                colour = colours[numbers.index(best)]
                self.add(
                    "compare",
                    self.say(
                        "Which die shows the {w} number?",
                        "What colour is the die with the {w} number?",
                        w=word,
                    ),
                    colour,
                    f"The {colour} die shows the {word} number.",
                )
        alike = len(set(numbers)) == 1
        if not alike and self.rng.random() < 0.7:
            return
        self.yes_no(
            "same",
            self.say(
                "Do all dice show the same number?",
                "Are the numbers the same?",
                "~Do the dice show the same number?",
            ),
            alike,
            f"they all show {numbers[0]}"
            if alike
            else f"they show {listed([str(n) for n in numbers])}",
        )

    def shows(self, numbers: Sequence[int]) -> None:
        asked = self.rng.choice(numbers) if self.rng.random() < 0.5 else self.rng.randint(1, 6)
        number = numbers.count(asked)
        if self.rng.random() < 0.5 and len(numbers) > 1:
            told = {0: f"No die shows {asked}.", 1: f"1 die shows {asked}."}
            self.add(
                "count",
                self.say(
                    "How many dice show {n}?",
                    "How many dice show a {n}?",
                    "~Count the dice that show {n}.",
                    n=asked,
                ),
                str(number),
                told.get(number, f"{number} dice show {asked}."),
            )
            return
        self.yes_no(
            "existence",
            self.say(
                "Is there a die that shows {n}?",
                "Does any die show {n}?",
                "Do you see a die with {n}?",
                "~Is there a die with {n}?",
                n=asked,
            ),
            number > 0,
            f"there is a die that shows {asked}" if number else f"no die shows {asked}",
        )

    # A domino

    def domino(self) -> None:
        a, b = (item.extra["number"] for item in self.scene.items)
        sides = ("left", "right") if self.scene.extra["across"] else ("top", "bottom")
        for side, number in zip(sides, (a, b), strict=True):
            self.add(
                "read",
                self.say(
                    "How many dots are on the {s} half?",
                    "What number is on the {s}?",
                    "What does the {s} half of the domino show?",
                    "How many pips does the {s} half have?",
                    "~What number does the {s} half show?",
                    s=side,
                ),
                str(number),
                f"The {side} half shows {number}.",
            )
        total = a + b
        for _ in range(2):
            self.add(
                "arithmetic",
                self.say(
                    "How many dots does the domino have?",
                    "How many dots are there in all?",
                    "What is the sum of the two halves?",
                    "What does the domino add up to?",
                    "How many pips are there?",
                    "~How many dots are on the domino?",
                ),
                str(total),
                f"The domino has {total} dots in all."
                if total != 1
                else "The domino has 1 dot in all.",
            )
        self.yes_no(
            "same",
            self.say(
                "Is it a double?",
                "Do both halves show the same number?",
                "Are the halves the same?",
                "~Is this domino a double?",
            ),
            a == b,
            f"both show {a}" if a == b else f"one shows {a} and the other {b}",
        )
        if a != b:
            word = self.rng.choice(("more", "fewer"))
            best = sides[0] if (a > b) == (word == "more") else sides[1]
            self.add(
                "compare",
                self.say(
                    "Which half has {w} dots?",
                    "Are there {w} dots on the {x} or on the {y}?",
                    w=word,
                    x=sides[0],
                    y=sides[1],
                ),
                best,
                f"The {best} half has {word} dots.",
            )
        self.colour_of("domino", self.scene.items[0].colour)
        self.caption(f"{article(self.scene.items[0].colour)} domino with {a} and {b}")

    # A sum to work out, a digital clock

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

    # What is not there, and what comes next

    def wrong_room(self) -> None:
        """What is there in general, what is not, and what cannot be known."""
        names = {"dice": "die", "domino": "domino", "clock": "clock"}
        here = names.get(self.scene.layout, "number")
        roll = self.rng.random()
        if roll < 0.45:
            self.made.append(stranger("digits", self.rng, self.split))
        elif roll < 0.6:
            noun = self.rng.choice([n for n in ("die", "domino", "clock") if n != here])
            self.add(
                "existence",
                self.say("Is there a {n}?", "Do you see a {n}?", "Is there a {n}{in_pic}?", n=noun),
                "no",
                f"No, there is no {noun}.",
            )
        elif roll < 0.8:
            self.add(
                "existence",
                self.say("Is there a {n}?", "Do you see a {n}?", "Is there a {n}{in_pic}?", n=here),
                "yes",
                f"Yes, there is a {here}.",
            )
        elif roll < 0.88:
            self.add(
                "unknowable",
                self.say(
                    "Who wrote this?",
                    "When was this {pic} made?",
                    "Who owns it?",
                    "What will happen next?",
                ),
                "unknown",
                "I cannot tell that from the picture.",
            )

    def followup(self) -> None:
        """A second question whose pronoun stands for what was read."""
        layout, items = self.scene.layout, self.scene.items
        if layout not in ("drawn", "display", "dice") or self.rng.random() < 0.6:
            return
        if layout == "dice" and len(items) > 1:
            return
        text = str(items[0].extra["number"]) if layout == "dice" else self.scene.extra["text"]
        opening = QA("read", "What number is it?", text, f"It is {text}.")
        word = "odd" if int(text) % 2 else "even"
        question, short, sentence = self.rng.choice(
            (
                ("What colour is it?", items[0].colour, f"It is {items[0].colour}."),
                ("And what colour is it?", items[0].colour, f"It is {items[0].colour}."),
                ("Is it even or odd?", word, f"It is {word}."),
                ("And if you add 1?", str(int(text) + 1), f"Then it is {int(text) + 1}."),
            )
        )
        self.add("followup", question, short, sentence, (opening,))
