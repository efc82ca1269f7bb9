"""The questions of the charts room."""

import random

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.charts.appearance import (
    ask_caption,
    ask_colour,
    ask_counts,
    ask_kind,
)
from finetune.pretrain.world.rooms.charts.values import (
    ChartQuestionMaker,
    ask_arithmetic,
    ask_comparison,
    ask_extreme,
    ask_trend,
    ask_value,
)
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.false_premises import false_premise
from finetune.pretrain.world.wording.phrasing import capitalized

LETTERS = "ABCDEFGH"
"""The names that bars and points can have."""


def ask(scene: Scene, rng: random.Random, split: Split) -> list[QA]:
    """Return at most twelve questions about a chart, in random order."""
    maker = ChartQuestionMaker(scene, rng, split)
    for skill in SKILLS:
        skill(maker)
    if scene.layout == "line":
        ask_trend(maker)
    if rng.random() < 0.5:  # long answers take the longest to learn
        ask_caption(maker)
    return maker.selection()


def judge_statement(maker: ChartQuestionMaker) -> None:
    """Ask whether a statement about one or two entries is true."""
    a, b = maker.rng.sample(maker.entries, 2)
    if not maker.has_values or maker.rng.random() < 0.4:
        if a.value == b.value:
            return
        holds, claim = a.value > b.value, f"{a.name} is larger than {b.name}"
    else:
        shown = (
            a.value
            if maker.rng.random() < 0.5
            else b.value + maker.rng.choice((0, 1)) * (10 if maker.is_pie else 1)
        )
        holds, claim = shown == a.value, f"{a.name} is {maker.value_text(shown)}"
    if maker.rng.random() < 0.5:
        word = "true" if holds else "false"
        maker.add(
            "statement",
            maker.phrase(
                "True or false: {c}.",
                "True or false? {C}.",
                "{C}. True or false?",
                c=claim,
                C=capitalized(claim),
            ),
            word,
            f"That is {word}.",
        )
        return
    maker.add(
        "statement",
        maker.phrase(
            "Is it true that {c}?",
            "Is this true of the {pic}: {c}?",
            '"{C}." Is that right?',
            "~Is this right: {c}?",
            c=claim,
            C=capitalized(claim),
        ),
        "yes" if holds else "no",
        "Yes, that is true." if holds else "No, that is not true.",
    )


def ask_in_general(maker: ChartQuestionMaker) -> None:
    """Ask for an entry that is not there, for something unknowable or something absent."""
    roll = maker.rng.random()
    names = maker.scene.extra["names"]
    if roll < 0.4:
        if names:
            missing = f"{maker.word} " + maker.rng.choice([x for x in LETTERS if x not in names])
            sentence = f"There is no {missing} in the picture."
        else:
            used = [e.colour for e in maker.entries]
            colour = maker.rng.choice([c for c in COLOURS if c not in used])
            missing, sentence = (
                f"the {colour} {maker.word}",
                f"There is no {colour} {maker.word} in the picture.",
            )
        maker.add(
            "false_premise",
            maker.phrase(
                "What is the value of {x}?",
                "How much is {x}?",
                "Is {x} higher than {y}?",
                "~How big is {x}?",
                x=missing,
                y=maker.entries[0].name,
            ),
            "none",
            sentence,
        )
    elif roll < 0.5:
        maker.add(
            "unknowable",
            maker.phrase(
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
        maker.questions.append(false_premise("charts", maker.rng, maker.split))


def ask_followup(maker: ChartQuestionMaker) -> None:
    """Ask a second question whose pronoun refers to the highest or lowest entry."""
    high = maker.rng.random() < 0.5
    best = maker.best(high)
    if best is None or maker.rng.random() < 0.6 or not maker.has_values:
        return
    word = "highest" if high else "lowest"
    opening = QA(
        "extreme",
        f"Which {maker.word} has the {word} value?",
        best.short,
        capitalized(f"{best.name} has the {word} value."),
    )
    asked = maker.rng.choice(("What is its value?", "How much is it?", "And what is its value?"))
    maker.add(
        "followup",
        asked,
        maker.value_text(best.value),
        f"It is {maker.value_text(best.value)}.",
        (opening,),
    )


SKILLS = (
    ask_extreme,
    ask_value,
    ask_extreme,
    ask_value,
    ask_arithmetic,
    ask_comparison,
    ask_counts,
    ask_colour,
    judge_statement,
    ask_kind,
    ask_in_general,
    ask_followup,
)
"""What is asked of every chart, in this order; some skills may add nothing."""
