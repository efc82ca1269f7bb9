"""Questions about what only another room shows: a cat among shapes, a chart among things.

A room's own questions cover what is absent within its vocabulary; these cover what is outside it,
so that the model learns not to take the premise of a question for granted.
"""

import random

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.scene import QA, Split
from finetune.pretrain.world.wording.phrasing import fill_template, plural, with_article

_SHAPES = ("star", "heart", "arrow")
_THINGS = ("cat", "car", "tree", "house", "fish", "dog", "cup", "chair", "key", "bird", "boat")
_NUMBERS = ("die", "domino")
_CHARTS = ("bar chart", "pie chart", "line chart")
# For each room, what its pictures never show, nor anything that could be taken for it.
ABSENT: dict[str, tuple[str, ...]] = {
    "shapes": (*_THINGS, *_NUMBERS, *_CHARTS),
    "things": ("hexagon", *_NUMBERS, *_CHARTS),
    "digits": (*_SHAPES, *_THINGS, *_CHARTS),
    "writing": (*_SHAPES, *_THINGS, *_NUMBERS, *_CHARTS),
    "charts": (*_SHAPES, *_THINGS, *_NUMBERS),
}


def false_premise(room: str, rng: random.Random, split: Split) -> QA:
    """Ask for something that no picture of the room shows.

    Raises:
        KeyError: `ABSENT` does not list the room.
    """
    roll = rng.random()
    if roll < 0.2 and room in ("shapes", "things"):
        return _about_writing(rng, split)
    noun = rng.choice(ABSENT[room])
    if roll < 0.6:
        question = fill_template(
            (
                "Is there {a}{in_pic}?",
                "Is there {a}?",
                "Do you see {a}?",
                "Can you see {a}?",
                "Does the {pic} show {a}?",
                "Is {a} in the {pic}?",
                "~Do you see {a}{in_pic}?",
            ),
            rng,
            split,
            a=with_article(noun),
        )
        return QA("absent", question, "no", f"No, there is no {noun}.")
    if roll < 0.72:
        question = fill_template(
            (
                "How many {s} are there?",
                "How many {s} do you see?",
                "Count the {s}.",
                "~How many {s} are in the {pic}?",
            ),
            rng,
            split,
            s=plural(noun),
        )
        return QA("absent", question, "0", f"There are no {plural(noun)}.")
    forms = [
        "What colour is the {n}?",
        "Where is the {n}?",
        "How big is the {n}?",
        "Is the {n} {c}?",
        "What is the colour of the {n}?",
        "~Which colour is the {n}?",
    ]
    if noun in _NUMBERS:
        forms += ["What does the {n} show?", "How many dots are on the {n}?"] * 2
    if noun in _CHARTS:
        forms += ["What does the {n} show?", "What is the highest value?"] * 2
    question = fill_template(forms, rng, split, n=noun, c=rng.choice(list(COLOURS)))
    missing = "chart" if "highest" in question else noun
    return QA("absent", question, "none", f"There is no {missing} in the picture.")


def _about_writing(rng: random.Random, split: Split) -> QA:
    """Ask about writing where there is none."""
    if rng.random() < 0.5:
        question = fill_template(
            (
                "Is there any writing{in_pic}?",
                "Is something written here?",
                "Do you see any text?",
                "~Do you see any writing?",
            ),
            rng,
            split,
        )
        return QA("absent", question, "no", "No, there is no writing.")
    noun = rng.choice(("sign", "word", "number"))
    question = fill_template(
        ("What does the {n} say?", "Read the {n}.", "What colour is the {n}?", "~What is the {n}?"),
        rng,
        split,
        n=noun,
    )
    return QA("absent", question, "none", f"There is no {noun} in the picture.")
