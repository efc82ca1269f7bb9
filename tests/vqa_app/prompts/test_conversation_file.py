"""Exported conversations: written, read, and checked."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.tiny import picture
from vqa_app.errors import DataError, ImageError
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.conversation_file import FORMAT, MAX_TURNS, ConversationFile

DIALOGUE = Conversation.ask("What is it?", [picture(0)]).then(
    Message.assistant("A circle."), Message.user("And why?"), Message.assistant("It is round.")
)


def read(document: dict[str, Any]) -> ConversationFile:
    data = json.dumps(document).encode()
    return ConversationFile.from_json(data, max_question=100, max_answer=100, max_pictures=2)


def document() -> dict[str, Any]:
    return json.loads(ConversationFile.of(DIALOGUE, "builtin").to_json())


def png() -> str:
    buffer = BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_dialogue_is_read_as_written() -> None:
    file = read(document())
    assert file == ConversationFile.of(DIALOGUE, "builtin")
    first, second = file.turns
    assert (first.question, first.answer, first.facts) == (
        "What is it?",
        "A circle.",
        {"model": "builtin"},
    )
    assert (second.parent, second.state) == (first.id, "answered")
    assert first.pictures == [picture(0).digest]
    with Image.open(BytesIO(file.pictures[picture(0).digest].data)) as image:
        assert image.convert("RGB") == picture(0).image


def test_a_file_of_an_earlier_version_is_read() -> None:
    """Files saved by the shell of version 0.1.0 have neither verdicts nor changes."""
    turn = {
        "id": "0",
        "parent": None,
        "shown": True,
        "question": "What is it?",
        "pictures": ["d"],
        "answer": "A circle.",
        "state": "answered",
        "facts": {"model": "builtin"},
    }
    file = read(
        {
            "format": FORMAT,
            "version": 1,
            "title": "What is it?",
            "turns": [turn],
            "pictures": {"d": {"name": "a.png", "data": png()}},
        }
    )
    assert file.turns[0].verdict is None
    assert file.pictures["d"].changes == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "contains no conversation"),
        ({"version": 2}, "another version"),
        ({"turns": []}, "contains no questions"),
        ({"turns": [{}] * (MAX_TURNS + 1)}, "the limit is 2,000"),
        ({"turns": [5]}, "Question 1 of the file is damaged"),
    ],
)
def test_other_files_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(document() | changes)


def test_a_file_that_is_not_json_is_rejected() -> None:
    with pytest.raises(DataError, match="not JSON"):
        ConversationFile.from_json(b"{", max_question=1, max_answer=1, max_pictures=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"question": 5},
        {"question": "x" * 101},
        {"answer": "x" * 101},
        {"answer": "\ud800"},
        {"id": "x" * 201},
        {"pictures": None},
        {"pictures": [1]},
        {"pictures": ["a", "b", "c"]},
        {"facts": None},
    ],
)
def test_the_error_for_a_damaged_turn_names_it(changes: dict[str, Any]) -> None:
    forged = document()
    forged["turns"][1] |= changes
    with pytest.raises(DataError, match="Question 2 of the file is damaged"):
        read(forged)


@pytest.mark.parametrize(
    "entry", [None, {"name": "a.png"}, {"data": png()}, {"name": "a.png", "data": "!"}]
)
def test_a_damaged_picture_is_rejected(entry: Any) -> None:
    forged = document()
    forged["pictures"][picture(0).digest] = entry
    with pytest.raises(ImageError, match="damaged"):
        read(forged)


REGION = {"of": "0" * 64, "name": "room.png", "box": [2, 1, 6, 5], "whole": [6, 5]}


def test_the_region_of_a_picture_is_read_as_written() -> None:
    found = document()
    found["pictures"][picture(0).digest]["region"] = REGION
    written = json.loads(read(json.loads(read(found).to_json())).to_json())
    assert written["pictures"][picture(0).digest]["region"] == REGION


@pytest.mark.parametrize(
    "changes",
    [
        {"of": "../../secret"},
        {"of": 5},
        {"box": [2, 1, 7, 5]},
        {"box": [-1, 1, 6, 5]},
        {"box": [6, 1, 2, 5]},
        {"box": [2, 1, 6]},
        {"whole": [0, 0]},
        {"whole": None},
    ],
)
def test_an_implausible_region_is_dropped(changes: dict[str, Any]) -> None:
    found = document()
    found["pictures"][picture(0).digest]["region"] = REGION | changes
    assert read(found).pictures[picture(0).digest].region is None


def test_unknown_values_are_dropped() -> None:
    forged = document()
    forged["pictures"]["unused"] = None
    forged["turns"][0] |= {
        "state": "answering",
        "verdict": ["right"],
        "facts": {"confidence": 0.5, "new_tokens": True, "gain": float("nan"), "other": 1},
    }
    file = read(forged)
    assert list(file.pictures) == [picture(0).digest]
    turn = file.turns[0]
    assert (turn.state, turn.verdict, turn.facts) == ("stopped", None, {"confidence": 0.5})
