"""Questions about dice and dominoes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.objects import (
    appearance,
    comparison,
    description,
    position,
    presence,
)
from finetune.pretrain.world.objects.context import Skill
from finetune.pretrain.world.objects.questions import ask_about_objects
from finetune.pretrain.world.rooms.digits.numbers import ask_caption, ask_colour, ask_parity
from finetune.pretrain.world.wording.phrasing import join_words, with_article
from finetune.pretrain.world.wording.question_maker import QuestionMaker
from finetune.pretrain.world.wording.references import Vocabulary

DICE_WEIGHTS: Mapping[Skill, float] = {
    presence.existence: 4,
    appearance.colour: 4,
    presence.count: 5,
    position.position: 3,
    position.relation: 3,
    description.statement: 2,
    comparison.same: 1,
}
"""How often each skill on objects is drawn for dice."""


def ask_about_dice(maker: QuestionMaker) -> None:
    """Ask about the dice: as objects, what they show, one by one and together."""
    items = maker.scene.items
    numbers = [item.extra["number"] for item in items]
    plain = replace(maker.scene, items=tuple(replace(i, kind="die") for i in items))
    words = Vocabulary("die", ("die", "domino"), tuple(COLOURS))
    maker.questions += ask_about_objects(plain, maker.rng, maker.split, words, 4, DICE_WEIGHTS)
    colours = [item.colour for item in items]
    faces = [f"{with_article(c)} die that shows {n}" for c, n in zip(colours, numbers, strict=True)]
    ask_caption(maker, join_words(faces))
    if len(items) == 1:
        read_face(maker, "the die", numbers[0])
        ask_parity(maker, numbers[0], "the number on the die", str(numbers[0]))
    else:
        for colour, number in zip(colours, numbers, strict=True):
            if colours.count(colour) == 1:
                read_face(maker, f"the {colour} die", number)
        combine_faces(maker, numbers, colours)
    find_face(maker, numbers)
    absent = [c for c in COLOURS if c not in colours]
    if maker.rng.random() < 0.5:
        missing = maker.rng.choice(absent)
        maker.add(
            "false_premise",
            maker.phrase(
                "What does the {c} die show?",
                "What number is on the {c} die?",
                "~What number does the {c} die show?",
                c=missing,
            ),
            "none",
            f"There is no {missing} die in the picture.",
        )


def read_face(maker: QuestionMaker, name: str, number: int) -> None:
    """Ask what one die shows."""
    maker.add(
        "read",
        maker.phrase(
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


def combine_faces(maker: QuestionMaker, numbers: Sequence[int], colours: Sequence[str]) -> None:
    """Ask about several dice: their total, the highest and lowest, whether all are equal."""
    total = sum(numbers)
    maker.add(
        "arithmetic",
        maker.phrase(
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
    ask_parity(maker, total, "the total", str(total))
    for word, pick in (("highest", max), ("lowest", min)):
        best = pick(numbers)
        maker.add(
            "compare",
            maker.phrase(
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
            maker.add(
                "compare",
                maker.phrase(
                    "Which die shows the {w} number?",
                    "What colour is the die with the {w} number?",
                    w=word,
                ),
                colour,
                f"The {colour} die shows the {word} number.",
            )
    alike = len(set(numbers)) == 1
    if not alike and maker.rng.random() < 0.7:
        return
    maker.add_yes_no(
        "same",
        maker.phrase(
            "Do all dice show the same number?",
            "Are the numbers the same?",
            "~Do the dice show the same number?",
        ),
        alike,
        f"they all show {numbers[0]}"
        if alike
        else f"they show {join_words([str(n) for n in numbers])}",
    )


def find_face(maker: QuestionMaker, numbers: Sequence[int]) -> None:
    """Ask whether, or how often, a number is shown."""
    asked = maker.rng.choice(numbers) if maker.rng.random() < 0.5 else maker.rng.randint(1, 6)
    number = numbers.count(asked)
    if maker.rng.random() < 0.5 and len(numbers) > 1:
        sentences = {0: f"No die shows {asked}.", 1: f"1 die shows {asked}."}
        maker.add(
            "count",
            maker.phrase(
                "How many dice show {n}?",
                "How many dice show a {n}?",
                "~Count the dice that show {n}.",
                n=asked,
            ),
            str(number),
            sentences.get(number, f"{number} dice show {asked}."),
        )
        return
    maker.add_yes_no(
        "existence",
        maker.phrase(
            "Is there a die that shows {n}?",
            "Does any die show {n}?",
            "Do you see a die with {n}?",
            "~Is there a die with {n}?",
            n=asked,
        ),
        number > 0,
        f"there is a die that shows {asked}" if number else f"no die shows {asked}",
    )


def ask_about_domino(maker: QuestionMaker) -> None:
    """Ask about the two halves of a domino."""
    a, b = (item.extra["number"] for item in maker.scene.items)
    sides = ("left", "right") if maker.scene.extra["across"] else ("top", "bottom")
    for side, number in zip(sides, (a, b), strict=True):
        read_half(maker, side, number)
    for _ in range(2):
        count_dots(maker, a + b)
    is_double(maker, a, b)
    if a != b:
        compare_halves(maker, sides, a > b)
    colour_name = maker.scene.items[0].colour
    ask_colour(maker, "domino", colour_name)
    ask_caption(maker, f"{with_article(colour_name)} domino with {a} and {b}")


def read_half(maker: QuestionMaker, side: str, number: int) -> None:
    """Ask what one half shows."""
    maker.add(
        "read",
        maker.phrase(
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


def count_dots(maker: QuestionMaker, total: int) -> None:
    """Ask for the number of dots in all."""
    maker.add(
        "arithmetic",
        maker.phrase(
            "How many dots does the domino have?",
            "How many dots are there in all?",
            "What is the sum of the two halves?",
            "What does the domino add up to?",
            "How many pips are there?",
            "~How many dots are on the domino?",
        ),
        str(total),
        f"The domino has {total} dots in all." if total != 1 else "The domino has 1 dot in all.",
    )


def is_double(maker: QuestionMaker, a: int, b: int) -> None:
    """Ask whether both halves show the same number."""
    maker.add_yes_no(
        "same",
        maker.phrase(
            "Is it a double?",
            "Do both halves show the same number?",
            "Are the halves the same?",
            "~Is this domino a double?",
        ),
        a == b,
        f"both show {a}" if a == b else f"one shows {a} and the other {b}",
    )


def compare_halves(maker: QuestionMaker, sides: tuple[str, str], first: bool) -> None:
    """Ask which half has more or fewer dots; `first` tells whether the first has more."""
    word = maker.rng.choice(("more", "fewer"))
    best = sides[0] if first == (word == "more") else sides[1]
    maker.add(
        "compare",
        maker.phrase(
            "Which half has {w} dots?",
            "Are there {w} dots on the {x} or on the {y}?",
            w=word,
            x=sides[0],
            y=sides[1],
        ),
        best,
        f"The {best} half has {word} dots.",
    )
