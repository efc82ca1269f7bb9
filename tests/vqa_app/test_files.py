"""Why files cannot be read, in words."""

from __future__ import annotations

import json

import pytest

from vqa_app.errors import library_reason
from vqa_app.files import JSON_ERRORS, json_problem


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a":\n 1,}', "line 2, column 4 is not JSON"),
        (b"", "line 1, column 1 is not JSON"),
        (b'"\xff"', "it is not UTF-8 text"),
        (b"1" * 5000, "it has a number of more than 4,300 digits"),
        (b"[" * 100_000, "its lists and objects are nested too deeply"),
    ],
)
def test_the_problem_of_a_json_file_is_told_without_python(data: bytes, words: str) -> None:
    with pytest.raises(JSON_ERRORS) as error:
        json.loads(data)
    assert json_problem(error.value).startswith(words)


def test_messages_of_libraries_are_told_and_those_of_python_are_not() -> None:
    assert library_reason(ValueError("The picture is too narrow.\nMore.")) == (
        ": The picture is too narrow."
    )
    for error in (KeyError("content"), TypeError("'NoneType' object is not iterable")):
        assert library_reason(error) == "."
