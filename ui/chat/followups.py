"""Suggests further questions about the pictures of a chat, from what was asked and answered."""

from __future__ import annotations

import re
from functools import cache

from ui.chat.examples import Knowledge
from ui.storage.database import StoredTurn
from ui.texts import Entry, entry

_LONG_ANSWER = 400
"""Characters from which an answer can be shortened."""
_NEGATIVE = re.compile(r"\b(no|not|none|nothing|cannot|never|unknown)\b|n't\b", re.IGNORECASE)
_BUILT_IN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"bars?", ("Which bar has the highest value?", "How many bars are there?")),
    (r"slices?", ("Which slice has the highest value?", "How many slices are there?")),
    (r"digits?|number", ("Is the number even or odd?", "How many digits are there?")),
    (r"letters?|words?|spell|written", ("How many letters are there?", "What colour is the word?")),
)
"""Questions of the built-in model's world, by the words that name its kinds of pictures."""


def suggest_questions(turn: StoredTurn, knows: Knowledge, pictures: int) -> list[str | Entry]:
    """Return questions that may follow a turn, the most fitting first; none without pictures.

    Args:
        turn: The latest turn of a chat.
        knows: What the model in use knows. The built-in one gets questions of its world, in
            English; others get questions that suit any picture, in the language of the page.
        pictures: Number of pictures in the chat up to this turn.
    """
    if turn.state != "answered" or not turn.answer or not pictures:
        return []
    if knows == "general":
        return _about_any_picture(turn, pictures)
    if turn.facts.get("unknown_picture"):  # other questions about it would be refused as well
        return []
    return list(_about_drawings(turn.question, turn.answer))


def _about_any_picture(turn: StoredTurn, pictures: int) -> list[str | Entry]:
    keys = ["followups.shorter" if len(turn.answer) > _LONG_ANSWER else "followups.detail"]
    if pictures > 1:
        keys.insert(0, "followups.differences")
    keys += ["followups.shows", "followups.else", "followups.text"]
    return [entry(key) for key in keys]


def _about_drawings(question: str, answer: str) -> list[str]:
    negative = _NEGATIVE.search(answer)
    both = f"{question} {answer}"
    for words, questions in _BUILT_IN:
        if re.search(rf"\b({words})\b", both, re.IGNORECASE):
            return list(questions)
    found: list[str] = []
    # Something that is not there has no colour and no place.
    for noun in [] if negative else _nouns(both):
        if not re.search(rf"\b{_colours()}\b", both, re.IGNORECASE):
            found.append(f"What colour is the {noun}?")
        if not re.match("where|in which part", question, re.IGNORECASE):
            found.append(f"Where is the {noun}?")
        if noun in _objects("shapes"):  # only of these the model tells sizes reliably
            found.append(f"How big is the {noun}?")
    return [*found[:3], "How many objects are there?", "What colours are there?"]


def _nouns(text: str) -> list[str]:
    """Return the objects of the built-in model's world that a text names, in its order."""
    words = re.findall(r"[a-z]+", text.lower())
    return [
        word for word in dict.fromkeys(words) if word in _objects("shapes") | _objects("things")
    ]


@cache
def _objects(room: str) -> frozenset[str]:
    from finetune.pretrain.world.rooms.shapes.room import KINDS as SHAPES
    from finetune.pretrain.world.rooms.things.kinds import KINDS as THINGS

    return frozenset(SHAPES if room == "shapes" else THINGS)


@cache
def _colours() -> str:
    from finetune.pretrain.world.drawing.paint import COLOURS

    return f"(colou?rs?|{'|'.join(COLOURS)})"
