"""Questions next to a taught one: from the owner's chats, or suggested."""

from __future__ import annotations

from typing import Any

import pytest

from ui.chat.examples import GENERAL_QUESTIONS
from ui.storage.database import StoredTurn
from ui.teaching.neighbours import Neighbours, find_neighbours

RED, BLUE = "r" * 64, "b" * 64


def turn(name: str, question: str, parent: str | None = None, *pictures: str) -> StoredTurn:
    return StoredTurn(name, parent, question, pictures, "An answer.", "answered", {})


CHATS = (
    turn("1", "What is it?", None, RED),
    turn("2", "And its size?", "1"),
    turn("3", "Are they alike?", "2", BLUE),
    turn("4", "Which colour is it?", None, RED),
)


def find(question: str = "What is it?", *pictures: str, **options: Any) -> Neighbours:
    known = {"turns": CHATS, "knows": "general", "taught": {question}}
    return find_neighbours(question, "A hat.", pictures or (RED,), **{**known, **options})


def test_questions_of_chats_come_first() -> None:
    assert find() == Neighbours("Which colour is it?", "And its size?")


def test_taught_questions_are_no_neighbours() -> None:
    found = find(taught={"What is it?", "Which colour is it?", "And its size?"})
    assert not {found.other, found.followup} & {"Which colour is it?", "And its size?"}
    assert all((found.other, found.followup)), "expected suggestions"
    assert found.other != found.followup


def test_questions_about_more_pictures_are_no_neighbours() -> None:
    assert find("Are they alike?", RED, BLUE).other != "What is it?"
    assert "Are they alike?" not in str(find("And its size?"))


@pytest.mark.parametrize(
    ("knows", "expected"),
    [
        ("drawings", Neighbours("What colour is the hat?", "Where is the hat?")),
        ("general", Neighbours(GENERAL_QUESTIONS[0], "Describe that in more detail.")),
    ],
)
def test_without_chats_questions_are_suggested_that_suit_the_model(
    knows: str, expected: Neighbours
) -> None:
    assert find(turns=(), knows=knows) == expected
