"""Questions about dice and dominoes: see `digits_ask`."""

from collections.abc import Sequence
from dataclasses import replace

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.objects import questions
from finetune.pretrain.world.rooms.digits.asking import Reckoning
from finetune.pretrain.world.wording.phrasing import article, listed

DICE_WEIGHTS: dict[str, float] = {
    "existence": 4,
    "colour": 4,
    "count": 5,
    "position": 3,
    "relation": 3,
    "statement": 2,
    "same": 1,
}


class Dots(Reckoning):
    """What the faces show, one by one and together."""

    def dice(self) -> None:
        items = self.scene.items
        numbers = [item.extra["number"] for item in items]
        plain = replace(self.scene, items=tuple(replace(i, kind="die") for i in items))
        words = questions.Vocabulary("die", ("die", "domino"), tuple(COLOURS))
        self.made += questions.about_items(plain, self.rng, self.split, words, 4, DICE_WEIGHTS)
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

    def domino(self) -> None:
        a, b = (item.extra["number"] for item in self.scene.items)
        sides = ("left", "right") if self.scene.extra["across"] else ("top", "bottom")
        for side, number in zip(sides, (a, b), strict=True):
            self.half(side, number)
        for _ in range(2):
            self.dots(a + b)
        self.double(a, b)
        if a != b:
            self.more_dots(sides, a > b)
        colour = self.scene.items[0].colour
        self.colour_of("domino", colour)
        self.caption(f"{article(colour)} domino with {a} and {b}")

    def half(self, side: str, number: int) -> None:
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

    def dots(self, total: int) -> None:
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

    def double(self, a: int, b: int) -> None:
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

    def more_dots(self, sides: tuple[str, str], first: bool) -> None:
        """`first`: the first side has more of them."""
        word = self.rng.choice(("more", "fewer"))
        best = sides[0] if first == (word == "more") else sides[1]
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
