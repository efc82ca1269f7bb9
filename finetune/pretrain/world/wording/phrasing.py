"""How questions are worded: templates with held-out ones, typing habits, the two answer styles."""

import random
import re
from collections.abc import Sequence

from finetune.pretrain.world.scene import QA, Split
from vqa_app.prompts.conversation import SHORT_STYLE

PICTURE_WORDS = ("picture", "image", "picture", "image", "photo", "scene")


def say(templates: Sequence[str], rng: random.Random, split: Split, **words: object) -> str:
    """One of `templates`, filled in. Those that begin with "~" occur only in the test split.

    `{pic}` is "picture", "image", ...; `{in_pic}` is " in the picture" or nothing.
    """
    usable = [t for t in templates if split == "test" or not t.startswith("~")]
    template = rng.choice(usable).lstrip("~")
    pic = rng.choice(PICTURE_WORDS)
    in_pic = f" in the {pic}" if rng.random() < 0.5 else ""
    return template.format(pic=pic, in_pic=in_pic, **words)


def article(phrase: str) -> str:
    """The phrase with "a" or "an"."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def typed(text: str, rng: random.Random) -> str:
    """The question as somebody types it: spelling variants, case, a missing mark, a typo."""
    if rng.random() < 0.6:
        text = text.replace("colour", "color").replace("Colour", "Color")
    if "gray" in text and rng.random() < 0.25:
        text = text.replace("gray", "grey")
    # A word quoted in capitals ("Does it say STOP?") is what the question turns on.
    quoted = re.search(r"\b[A-Z]{2,}\b", text) is not None
    roll = rng.random()
    if roll < (0.05 if quoted else 0.22):
        text = text.lower()
    elif roll < 0.24:
        text = text.upper()
    if rng.random() < 0.1:
        text = text.rstrip("?.")
    if rng.random() < 0.04 and len(text) > 12 and not quoted:
        at = rng.randrange(1, len(text) - 2)
        if text[at].isalpha() and text[at + 1].isalpha():
            swap = text[at + 1] + text[at]
            text = (
                text[:at]
                + rng.choice((swap, text[at], text[at] * 2 + text[at + 1]))
                + text[at + 2 :]
            )
    return text


def dress(
    qa: QA, rng: random.Random, short: bool | None = None, plain: bool = False
) -> tuple[str, str]:
    """(question, answer) as they stand in a conversation.

    `short` asks for the single-word style (drawn when None; impossible answers fall back to the
    sentence). `plain` leaves out the typing habits.
    """
    if short is None:
        short = rng.random() < 0.6
    question = qa.question if plain else typed(qa.question, rng)
    if short and qa.short:
        return question + SHORT_STYLE, qa.short
    return question, qa.sentence


def listed(parts: Sequence[str], word: str = "and") -> str:
    """ "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + f" {word} {parts[-1]}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
