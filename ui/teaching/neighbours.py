"""Finds questions next to the taught ones: a training should leave their answers as they were."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ui.chat.examples import GENERAL_QUESTIONS, Knowledge
from ui.chat.followups import suggest_questions
from ui.storage.database import StoredTurn
from ui.texts import ENGLISH, Entry, catalogue


@dataclass(frozen=True)
class Neighbours:
    """Questions next to a taught one; empty texts where none was found."""

    other: str
    """Another question about the same pictures."""
    followup: str
    """A question that follows the taught one in the same conversation."""


def find_neighbours(
    question: str,
    answer: str,
    pictures: tuple[str, ...],
    *,
    turns: Sequence[StoredTurn],
    knows: Knowledge,
    taught: Collection[str],
) -> Neighbours:
    """Return questions next to a taught one, those that were asked in chats before suggested ones.

    Args:
        question: The taught question.
        answer: Its right answer.
        pictures: Digests of its pictures.
        turns: Turns of the owner's chats about the first of these; parents come before children.
        knows: What the trained model knows, for the suggestions.
        taught: All taught questions, none of which is a neighbour.
    """
    shown: dict[str, tuple[str, ...]] = {}  # the pictures up to each turn
    for turn in turns:
        before = shown.get(turn.parent or "", ())
        shown[turn.id] = tuple(dict.fromkeys((*before, *turn.pictures)))
    about = [turn for turn in turns if shown[turn.id] == pictures]
    asked_here = {turn.id for turn in about if turn.question.strip() == question}
    # Without pictures of its own, a question may depend on those before it.
    others = [turn.question for turn in about if turn.pictures]
    followups = [turn.question for turn in about if turn.parent in asked_here]
    example = StoredTurn("", None, question, pictures, answer, "answered", {})
    suggested = [_in_english(one) for one in suggest_questions(example, knows, len(pictures))]
    # Only the suggestions for drawings can be understood without the answer before them.
    alone = GENERAL_QUESTIONS if knows == "general" else suggested
    other = _first_new([*others, *alone], taught)
    return Neighbours(other, _first_new([*followups, *suggested], {*taught, other}))


def _first_new(questions: Iterable[str], known: Collection[str]) -> str:
    found = (question.strip() for question in questions)
    return next((question for question in found if question and question not in known), "")


def _in_english(question: str | Entry) -> str:
    return question if isinstance(question, str) else str(catalogue(ENGLISH)[question["key"]])
