"""Values of table cells and JSON keys: missing values, lists written as text, answers."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from finetune.data.rows import BadRow

_QUOTED_LIST = re.compile(r"""\[\s*['"]|['"]\s*\]$""")
_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")
_NO_COMMA = re.compile(r"""['"]\s+['"]""")
_METADATA_KEY = re.compile(
    r"(.*[ _:-])?(ids?|idx|index|uu?id|no|num|number|count|hash|md5|sha\d*|width|height|size|w|h"
    r"|split|set|subset|sources?|licen[cs]e|urls?|uri|link|date|time|timestamp|version|types?"
    r"|lang|language|model|weight|score|confidence|page|author|category)"
    r"|.*ids?|.*path|.*file|(set|file|data|dataset)_?name|dataset|index.*|unnamed.*|__.*__",
    re.IGNORECASE,
)
"""Matches, in full, keys of metadata about a row."""


def is_missing(value: Any) -> bool:
    """Return whether a value is null, empty, or NaN, which pandas writes for empty cells."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, (str, bytes, list, tuple, dict)) and not value)


@lru_cache(maxsize=1024)
def is_metadata_key(key: str) -> bool:
    """Return whether a key names metadata that nobody would expect the model to be shown."""
    return _METADATA_KEY.fullmatch(key) is not None


def first_value(record: Mapping[str, Any], keys: Mapping[str, str], names: Sequence[str]) -> Any:
    """Return the value of the first of `names` that the record has, or None.

    Args:
        record: The record.
        keys: Its keys by lower-case key.
        names: Lower-case keys to look for.
    """
    return next((record[keys[name]] for name in names if name in keys), None)


def parse_list(value: Any) -> Any:
    """Return the list that a cell contains as text (JSON, or as Python prints it), or the value.

    Raises:
        BadRow: The text looks like a list of strings and cannot be parsed.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not _QUOTED_LIST.search(text):
        return value  # text in brackets, such as [illegible]
    try:
        # NumPy prints no commas, and Python would concatenate such strings.
        parsed = None if _NO_COMMA.search(text) else ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        parsed = None
    if not isinstance(parsed, list):
        raise BadRow(f"{shorten(value)} is not a list.", 'Write lists as JSON: ["red", "grey"].')
    return parsed


def parse_answers(value: Any, choices: Any = None, *, annotators: bool = False) -> list[str]:
    """Return the answers in a value: text, a number, a list, or VQA v2's list of objects.

    Args:
        value: The value of an answer key.
        choices: The texts that an answer may name by letter, or by position counted from 0.
        annotators: The key holds one answer per annotator, with "" for annotators who gave none.
            For other keys, a list of numbers is a single answer, such as a bounding box.

    Raises:
        BadRow: A list cannot be parsed, or a position is out of range.
    """
    text, value = value, parse_list(value)
    if isinstance(value, list) and not annotators:
        if isinstance(text, str) and not all(isinstance(v, (str, Mapping)) for v in value):
            return [text.strip()]
        if (len(value) > 1 or (value and isinstance(value[0], list))) and _are_numbers(value):
            return [json.dumps(value)]
    if isinstance(value, Mapping):
        value = value.get("answer", value.get("text"))
    if isinstance(value, (list, tuple)):
        blank = [""] if annotators else []
        each = (parse_answers(item, choices, annotators=annotators) or blank for item in value)
        return [answer for answers in each for answer in answers]
    if is_missing(value):
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, float) and value.is_integer():  # pandas stores integers as floats
        value = int(value)
    choices = parse_list(choices)
    if isinstance(choices, Mapping):
        if str(value) in choices:
            return parse_answers(choices[str(value)])
        choices = choices.get("text", list(choices.values()))
    if isinstance(choices, (list, tuple)) and choices:
        value = _resolve_choice(value, choices, annotators)
    return [str(value)] if str(value).strip() else []


def _are_numbers(value: list[Any]) -> bool:
    """Return whether a list contains only numbers or lists of numbers."""
    return all(
        _are_numbers(item)
        if isinstance(item, list)
        else isinstance(item, (int, float)) and not isinstance(item, bool)
        for item in value
    )


def _resolve_choice(answer: Any, choices: Sequence[Any], annotators: bool) -> Any:
    """Return the choice that an answer names by letter or position, or the answer itself."""
    position = answer if isinstance(answer, int) else None
    if isinstance(answer, str) and answer.strip() not in map(str, choices):
        if letter := _LETTER.fullmatch(answer.strip()):
            position = ord(letter[1].upper()) - ord("A")
        elif answer.strip().isdecimal() and not annotators:
            position = int(answer)
    if position is None:
        return answer
    if not 0 <= position < len(choices):
        raise BadRow(
            f"The answer is {answer}, but there are {len(choices)} choices.",
            "Count choices from 0, or write the answer as text.",
        )
    if str(answer) in map(str, choices) and str(choices[position]) != str(answer):
        raise BadRow(
            f"The answer {answer} is ambiguous: it is a choice and the position of another choice.",
            "Write the answer as text.",
        )
    return choices[position]


def check_encodable(text: str, name: str) -> None:
    """Refuse text with an unpaired surrogate, left where text was cut inside an emoji.

    Raises:
        BadRow: The text has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise BadRow(
            f"{name} contains half a character ({half}).", "Restore or delete the character."
        ) from error


def shorten(value: Any) -> str:
    """Return the value's `repr`, cut to 60 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
