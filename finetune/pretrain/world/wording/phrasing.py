"""How questions are worded: templates, plurals, articles, typing noise, answer styles."""

import random
import re
from collections.abc import Sequence

from finetune.pretrain.world.scene import QA, Split
from vqa_app.prompts.conversation import SHORT_STYLE

PICTURE_WORDS = ("picture", "image", "picture", "image", "photo", "scene")
_IRREGULAR_PLURALS = {
    "fish": "fish",
    "sheep": "sheep",
    "leaf": "leaves",
    "knife": "knives",
    "mouse": "mice",
    "die": "dice",
    "domino": "dominoes",
    "scissors": "scissors",
    "glasses": "glasses",
    "cactus": "cacti",
}


def fill_template(
    templates: Sequence[str], rng: random.Random, split: Split, **words: object
) -> str:
    """Pick one of `templates` and fill in its placeholders.

    Templates that begin with "~" are held out: they occur in the test split only. `{pic}` becomes
    "picture", "image", ...; `{in_pic}` becomes " in the picture" or nothing.
    """
    usable = [t for t in templates if split == "test" or not t.startswith("~")]
    template = rng.choice(usable).lstrip("~")
    pic = rng.choice(PICTURE_WORDS)
    in_pic = f" in the {pic}" if rng.random() < 0.5 else ""
    return template.format(pic=pic, in_pic=in_pic, **words)


def with_article(phrase: str) -> str:
    """Return the phrase with "a" or "an" before it."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def join_words(parts: Sequence[str], conjunction: str = "and") -> str:
    """Return an enumeration such as "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + f" {conjunction} {parts[-1]}"


def capitalized(text: str) -> str:
    """Return the text with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def add_typing_noise(text: str, rng: random.Random) -> str:
    """Return a question as people type it: spelling variants, case, missing marks, typos."""
    if rng.random() < 0.6:
        text = text.replace("colour", "color").replace("Colour", "Color")
    if "gray" in text and rng.random() < 0.25:
        text = text.replace("gray", "grey")
    # A word quoted in capitals ("Does it say STOP?") decides the answer, so it must stay intact.
    quoted = re.search(r"\b[A-Z]{2,}\b", text) is not None
    roll = rng.random()
    if roll < (0.05 if quoted else 0.3):
        text = text.lower()
    elif roll < 0.32:
        text = text.upper()
    if rng.random() < 0.15:
        text = text.rstrip("?.")
    if rng.random() < 0.2:
        text = text.replace("What's", "Whats").replace("what's", "whats")
    while rng.random() < 0.09 and len(text) > 12 and not quoted:
        text = _with_typo(text, rng)
    return text


def _with_typo(text: str, rng: random.Random) -> str:
    """Return a text with two letters swapped, or one left out or doubled."""
    at = rng.randrange(1, len(text) - 2)
    if not (text[at].isalpha() and text[at + 1].isalpha()):
        return text
    swapped, doubled = text[at + 1] + text[at], text[at] * 2 + text[at + 1]
    return text[:at] + rng.choice((swapped, text[at], doubled)) + text[at + 2 :]


def to_turn(
    qa: QA, rng: random.Random, short: bool | None = None, plain: bool = False
) -> tuple[str, str]:
    """Return the user's and the assistant's text of one conversation turn.

    Args:
        qa: The question with its answers.
        rng: The source of randomness.
        short: Whether to ask for the single-word style of LLaVA-1.5; random if None. A question
            without a short answer falls back to the sentence.
        plain: Whether to leave out the typing noise.
    """
    if short is None:
        short = rng.random() < 0.6
    question = qa.question if plain else add_typing_noise(qa.question, rng)
    if short and qa.short:
        return question + SHORT_STYLE, qa.short
    return question, qa.sentence
