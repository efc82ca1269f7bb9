"""Suggested questions after an answer."""

from __future__ import annotations

import pytest

from ui.chat.followups import suggest_questions
from ui.storage.database import StoredTurn


def turn(question: str, answer: str, state="answered", **facts) -> StoredTurn:
    return StoredTurn("t", None, question, (), answer, state, facts)


def keys(asked: StoredTurn, pictures: int = 1) -> list[str]:
    return [text["key"] for text in suggest_questions(asked, "general", pictures)]


def test_any_model_is_asked_what_suits_any_picture() -> None:
    assert keys(turn("What is it?", "A cat."))[0] == "followups.detail"
    assert keys(turn("What is it?", "A cat. " * 90))[0] == "followups.shorter"
    assert keys(turn("What is it?", "Cats."), pictures=2)[0] == "followups.differences"
    assert "followups.differences" not in keys(turn("What is it?", "A cat."))


@pytest.mark.parametrize(
    ("question", "answer", "suggested", "left_out"),
    [
        ("What is above the star?", "The circle.", "What colour is the star?", ""),
        ("What is it?", "It is a red circle.", "Where is the circle?",
         "What colour is the circle?"),
        ("Where is the mushroom?", "top left", "What colour is the mushroom?",
         "Where is the mushroom?"),
        ("Is there a dog?", "There is no dog.", "How many objects are there?", "Where is the dog?"),
        ("What is the value of bar A?", "It is 3.", "Which bar has the highest value?",
         "How many objects are there?"),
        ("What number is shown?", "62", "Is the number even or odd?", ""),
    ],
)  # fmt: skip
def test_the_built_in_model_is_asked_about_its_world(question, answer, suggested, left_out) -> None:
    for knows in ("drawings", "trained"):
        found = suggest_questions(turn(question, answer), knows, 1)
        assert suggested in found
        assert left_out not in found


@pytest.mark.parametrize(
    ("asked", "pictures"),
    [
        (turn("What is it?", "A cat.", "stopped"), 1),
        (turn("What is it?", "", "failed"), 1),
        (turn("Hello?", "Hello!"), 0),
        (turn("Who is she?", "A cat.", unknown_picture=True), 1),
    ],
    ids=["stopped", "failed", "no picture", "refused"],
)
def test_nothing_is_suggested_where_nothing_can_be_asked(asked, pictures) -> None:
    assert suggest_questions(asked, "drawings", pictures) == []
