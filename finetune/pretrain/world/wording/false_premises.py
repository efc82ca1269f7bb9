"""Questions about what belongs to another room: a cat among shapes, a chart among things.

Each room knows what it lacks within its own vocabulary; these questions make sure that nothing is
taken for granted beyond it.
"""

import random

from finetune.pretrain.world.drawing.paint import COLOURS, plural
from finetune.pretrain.world.scene import QA, Split
from finetune.pretrain.world.wording.phrasing import article, say

# What a room never shows, nor anything that could pass for it.
_SHAPES = ("star", "heart", "arrow")
_THINGS = ("cat", "car", "tree", "house", "fish", "dog", "cup", "chair", "key", "bird", "boat")
_NUMBERS = ("die", "domino")
_CHARTS = ("bar chart", "pie chart", "line chart")
ABSENT: dict[str, tuple[str, ...]] = {
    "shapes": (*_THINGS, *_NUMBERS, *_CHARTS),
    "things": ("hexagon", *_NUMBERS, *_CHARTS),
    "digits": (*_SHAPES, *_THINGS, *_CHARTS),
    "writing": (*_SHAPES, *_THINGS, *_NUMBERS, *_CHARTS),
    "charts": (*_SHAPES, *_THINGS, *_NUMBERS),
}


def stranger(room: str, rng: random.Random, split: Split) -> QA:
    """Asks for something that no picture of the room shows. Raises KeyError: no such room."""
    roll = rng.random()
    if roll < 0.2 and room in ("shapes", "things"):
        return _writing(rng, split)
    noun = rng.choice(ABSENT[room])
    if roll < 0.6:
        question = say(
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
            a=article(noun),
        )
        return QA("absent", question, "no", f"No, there is no {noun}.")
    if roll < 0.72:
        question = say(
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
    question = say(forms, rng, split, n=noun, c=rng.choice(list(COLOURS)))
    missing = "chart" if "highest" in question else noun
    return QA("absent", question, "none", f"There is no {missing} in the picture.")


def _writing(rng: random.Random, split: Split) -> QA:
    """Asks for something to read where nothing is written."""
    if rng.random() < 0.5:
        question = say(
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
    question = say(
        ("What does the {n} say?", "Read the {n}.", "What colour is the {n}?", "~What is the {n}?"),
        rng,
        split,
        n=noun,
    )
    return QA("absent", question, "none", f"There is no {noun} in the picture.")
