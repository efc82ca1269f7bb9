"""The questions of the digits room."""

import random
from collections.abc import Callable

from finetune.pretrain.world.rooms.digits.dice import ask_about_dice, ask_about_domino
from finetune.pretrain.world.rooms.digits.numbers import (
    ask_about_clock,
    ask_about_number,
    ask_about_sum,
)
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.false_premises import false_premise
from finetune.pretrain.world.wording.question_maker import QuestionMaker

SKILLS_BY_LAYOUT: dict[str, Callable[[QuestionMaker], None]] = {
    "drawn": ask_about_number,
    "display": ask_about_number,
    "dice": ask_about_dice,
    "domino": ask_about_domino,
    "sum": ask_about_sum,
    "clock": ask_about_clock,
}


def ask(scene: Scene, rng: random.Random, split: Split) -> list[QA]:
    """Return at most twelve questions about a scene of the digits room, in random order."""
    maker = QuestionMaker(scene, rng, split)
    SKILLS_BY_LAYOUT[scene.layout](maker)
    ask_in_general(maker)
    ask_followup(maker)
    return maker.selection()


def ask_in_general(maker: QuestionMaker) -> None:
    """Ask what kind of picture it is, for something absent, or for something unknowable."""
    names = {"dice": "die", "domino": "domino", "clock": "clock"}
    here = names.get(maker.scene.layout, "number")
    roll = maker.rng.random()
    if roll < 0.45:
        maker.questions.append(false_premise("digits", maker.rng, maker.split))
    elif roll < 0.6:
        noun = maker.rng.choice([n for n in ("die", "domino", "clock") if n != here])
        maker.add(
            "existence",
            maker.phrase("Is there a {n}?", "Do you see a {n}?", "Is there a {n}{in_pic}?", n=noun),
            "no",
            f"No, there is no {noun}.",
        )
    elif roll < 0.8:
        maker.add(
            "existence",
            maker.phrase("Is there a {n}?", "Do you see a {n}?", "Is there a {n}{in_pic}?", n=here),
            "yes",
            f"Yes, there is a {here}.",
        )
    elif roll < 0.88:
        maker.add(
            "unknowable",
            maker.phrase(
                "Who wrote this?",
                "When was this {pic} made?",
                "Who owns it?",
                "What will happen next?",
            ),
            "unknown",
            "I cannot tell that from the picture.",
        )


def ask_followup(maker: QuestionMaker) -> None:
    """Ask a second question whose pronoun refers to the number that was read."""
    layout, items = maker.scene.layout, maker.scene.items
    if layout not in ("drawn", "display", "dice") or maker.rng.random() < 0.6:
        return
    if layout == "dice" and len(items) > 1:
        return
    text = str(items[0].extra["number"]) if layout == "dice" else maker.scene.extra["text"]
    opening = QA("read", "What number is it?", text, f"It is {text}.")
    word = "odd" if int(text) % 2 else "even"
    question, short, sentence = maker.rng.choice(
        (
            ("What colour is it?", items[0].colour, f"It is {items[0].colour}."),
            ("And what colour is it?", items[0].colour, f"It is {items[0].colour}."),
            ("Is it even or odd?", word, f"It is {word}."),
            ("And if you add 1?", str(int(text) + 1), f"Then it is {int(text) + 1}."),
        )
    )
    maker.add("followup", question, short, sentence, (opening,))
