"""What a cell or a key's value says: lists that stand as text, answers, nothing at all."""

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
_BOOKKEEPING = re.compile(
    r"(.*[ _:-])?(ids?|idx|index|uu?id|no|num|number|count|hash|md5|sha\d*|width|height|size|w|h"
    r"|split|set|subset|sources?|licen[cs]e|urls?|uri|link|date|time|timestamp|version|types?"
    r"|lang|language|model|weight|score|confidence|page|author|category)"
    r"|.*ids?|.*path|.*file|(set|file|data|dataset)_?name|dataset|index.*|unnamed.*|__.*__",
    re.IGNORECASE,
)
"""Keys, in full, of what is about a row rather than in it."""


def missing(value: Any) -> bool:
    """Whether there is nothing: null, empty, or the NaN that pandas has for it."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, (str, bytes, list, tuple, dict)) and not value)


@lru_cache(maxsize=1024)
def is_bookkeeping(key: str) -> bool:
    """Whether nobody would expect the model to be shown what stands under this key."""
    return _BOOKKEEPING.fullmatch(key) is not None


def first(record: Mapping[str, Any], keys: Mapping[str, str], names: Sequence[str]) -> Any:
    """The value of the first of these keys that the record has, by lower-case name."""
    return next((record[keys[name]] for name in names if name in keys), None)


def parse_if_text(value: Any) -> Any:
    """Lists inside CSV cells: JSON, or as Python and pandas print them.

    Raises:
        BadRow: it looks like a list of texts and is none.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not _QUOTED_LIST.search(text):
        return value  # a text in brackets, such as [illegible]
    try:
        # NumPy prints no commas, and Python would join such texts into one.
        found = None if _NO_COMMA.search(text) else ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        found = None
    if not isinstance(found, list):
        raise BadRow(f"{short(value)} is not a list.", 'Write lists as JSON: ["red", "grey"].')
    return found


def answers_of(value: Any, choices: Any = None, *, several: bool = False) -> list[str]:
    """Answers from text, number, list, or VQA v2's list of objects.

    Args:
        choices: the texts that an answer may be the letter of, or the position, from 0.
        several: the key says that there are several, each as somebody wrote it, and "" where
            somebody wrote nothing; else numbers in brackets are one answer, such as a box.

    Raises:
        BadRow: a list that cannot be read, or a position where there is no choice.
    """
    text, value = value, parse_if_text(value)
    if isinstance(value, list) and not several:
        if isinstance(text, str) and not all(isinstance(v, (str, Mapping)) for v in value):
            return [text.strip()]
        if (len(value) > 1 or (value and isinstance(value[0], list))) and _are_numbers(value):
            return [json.dumps(value)]
    if isinstance(value, Mapping):
        value = value.get("answer", value.get("text"))
    if isinstance(value, (list, tuple)):
        blank = [""] if several else []
        each = (answers_of(item, choices, several=several) or blank for item in value)
        return [answer for answers in each for answer in answers]
    if missing(value):
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, float) and value.is_integer():  # what pandas makes of whole numbers
        value = int(value)
    choices = parse_if_text(choices)
    if isinstance(choices, Mapping):
        if str(value) in choices:
            return answers_of(choices[str(value)])
        choices = choices.get("text", list(choices.values()))
    if isinstance(choices, (list, tuple)) and choices:
        value = _chosen(value, choices, several)
    return [str(value)] if str(value).strip() else []


def _are_numbers(value: list[Any]) -> bool:
    """Numbers, or lists of them."""
    return all(
        _are_numbers(item)
        if isinstance(item, list)
        else isinstance(item, (int, float)) and not isinstance(item, bool)
        for item in value
    )


def _chosen(answer: Any, choices: Sequence[Any], several: bool) -> Any:
    """The choice that an answer is, by its letter or position; the answer where it names none."""
    place = answer if isinstance(answer, int) else None
    if isinstance(answer, str) and answer.strip() not in map(str, choices):
        if letter := _LETTER.fullmatch(answer.strip()):
            place = ord(letter[1].upper()) - ord("A")
        elif answer.strip().isdecimal() and not several:
            place = int(answer)
    if place is None:
        return answer
    if not 0 <= place < len(choices):
        raise BadRow(
            f"The answer is {answer}, and there are {len(choices)} choices.",
            "Count them from 0, or write the answer as text.",
        )
    if str(answer) in map(str, choices) and str(choices[place]) != str(answer):
        raise BadRow(
            f"The answer {answer} is a choice, and the position of another.",
            "Write the answer as text.",
        )
    return choices[place]


def check_text(text: str, where: str) -> None:
    """Raises:
    BadRow: it holds half a character, as text has that was cut inside an emoji.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise BadRow(f"{where} holds half a character ({half}).", "Write its end again.") from error


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
