"""Values of table cells and JSON keys: missing values, text of any type, lists, answers."""

from __future__ import annotations

import ast
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from finetune.data.rows import BadRow, PictureSource

_QUOTED_LIST = re.compile(r"""\[\s*['"]|['"]\s*\]$""")
_LETTER = re.compile(r"[(\[]?([A-Za-z])[.:)\]]{0,2}")
_LETTERS = re.compile(
    r"\(?[A-Za-z][.)]?"
    r"((\s*[,;/&+\u3001\uff0c]\s*((and|or)\s+)?|\s+((and|or)\s+)?)\(?[A-Za-z][.)]?)+",
    re.IGNORECASE,
)
"""Matches the letters of several choices: `A, B`, `(a) and (b)`, `A, B, or D`."""
_POSITIONS = re.compile(
    r"\d{1,2}((\s*[,;&\u3001\uff0c]\s*((and|or)\s+)?|\s+(and|or)\s+)\d{1,2})+", re.IGNORECASE
)
"""Matches the positions of several choices: `0, 2`; no fractions, and no `1,200`."""
_CAPITALS = re.compile(r"[A-Z]{2,}")
_NUMERIC = re.compile(r"[\d\s.,:/%-]+")
_MOST_LETTERS = 8
"""How many choices are assumed where the choices are no list."""
_NO_COMMA = re.compile(r"""['"]\s+['"]""")
_METADATA_KEY = re.compile(
    r"(.*[ _:-])?(ids?|idx|index|uu?id|no|num|number|count|hash|md5|sha\d*|width|height|size|w|h"
    r"|split|set|subset|sources?|licen[cs]e|urls?|uri|link|date|time|timestamp|version|types?"
    r"|lang|language|model|weight|score|confidence|page|author|category)"
    r"|.*ids?|.*path|.*file|(set|file|data|dataset)_?name|dataset|index.*|unnamed.*|__.*__",
    re.IGNORECASE,
)
"""Matches, in full, keys of metadata about a row."""
_ANNOTATORS = 10
_ANNOTATORS_OF_WEIGHT = {0.3: 1, 0.6: 2, 0.9: 3, 1.0: 4}
"""By VQA accuracy, how many of ten annotators gave the answer."""


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


def to_text(value: Any, name: str) -> str:
    """Return the text that a value of JSON, CSV or Arrow stands for.

    Whole floats lose their point, because pandas stores integers with gaps as floats; dates and
    times are written as in ISO 8601, decimals with all their digits.

    Args:
        value: The value.
        name: Its name for error messages, such as "The question".

    Raises:
        BadRow: No text stands for the value.
    """
    match value:
        case str():
            return value
        case bool():
            pass
        case int():
            return str(value)
        case float() if value.is_integer() and abs(value) < 2**53:
            return str(int(value))
        case float() if math.isfinite(value):
            return str(value)
        case Decimal():
            return f"{value:f}"
        case datetime.datetime() | datetime.date() | datetime.time():
            return str(value)
        case PictureSource() | bytes():
            raise BadRow(f"{name} is bytes that are not UTF-8 text.", "Store it as text.")
    raise BadRow(f"{name} is {shorten(value)}, not text.", "Write it as text, one per row.")


def parse_answers(value: Any, choices: Any = None, *, annotators: bool = False) -> list[str]:
    """Return the answers in a value: text, a number, a list, or VQA v2's list of objects.

    Args:
        value: The value of an answer key.
        choices: The texts that an answer may name by letter, or by position counted from 0. An
            answer that names several of them becomes their texts, separated by commas.
        annotators: The key holds one answer per annotator, with "" for annotators who gave none.
            For other keys, a list of numbers is a single answer, such as a bounding box.

    Raises:
        BadRow: A list cannot be parsed, a position is out of range, or a value is no text.
    """
    return _parse_answers(value, _Choices.of(choices), annotators)


def names_choices(value: Any, choices: Any) -> bool:
    """Return whether a value names choices of a question, each once, rather than annotators' words.

    Args:
        value: One answer, or a list of them.
        choices: The choices; nothing is named if there are none.
    """
    value = parse_list(value)
    answers = value if isinstance(value, list) else [value]
    if is_missing(parse_list(choices)) or any(map(is_missing, answers)):
        return False
    if any(isinstance(a, bool) or not isinstance(a, (str, int, float)) for a in answers):
        return False
    return len({str(answer).strip() for answer in answers}) == len(answers)


def _parse_answers(value: Any, choices: _Choices | None, annotators: bool) -> list[str]:
    text, value = value, parse_list(value)
    if isinstance(value, list) and not annotators:
        if choices and len(value) > 1 and all(isinstance(v, (str, int, float)) for v in value):
            answers = [choices.resolve(item) for item in value]
            if len({*answers}) == len(answers) and {*answers} <= {*choices.texts}:
                return [", ".join(answers)]
        elif isinstance(text, str) and not all(isinstance(v, (str, Mapping)) for v in value):
            return [text.strip()]
        elif (len(value) > 1 or (value and isinstance(value[0], list))) and _are_numbers(value):
            return [json.dumps(value)]
    if isinstance(value, Mapping):
        if {"ids", "weights"} <= value.keys():
            return _most_weighted_first(value)
        if not {"answer", "text"} & value.keys():
            hint = 'Write it as text, or as an object with "answer".'
            raise BadRow(f"The answer is {shorten(dict(value))}.", hint)
        value = value.get("answer", value.get("text"))
    if isinstance(value, (list, tuple)):
        blank = [""] if annotators else []
        each = (_parse_answers(item, choices, annotators) or blank for item in value)
        return [answer for answers in each for answer in answers]
    if is_missing(value):
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    answer = choices.resolve(value, annotators) if choices else to_text(value, "The answer")
    return [answer] if answer.strip() else []


def _most_weighted_first(value: Mapping[str, Any]) -> list[str]:
    """Return the answers of VQA v2 as Hugging Face publishes it: ids, and a weight for each.

    The weights are VQA accuracies. Where they are the published ones, the ten annotators' answers
    are restored, so that an evaluation gives each answer its weight; else the answers are
    alternatives.
    """
    ids, weights = value["ids"], value["weights"]
    if not (isinstance(ids, list) and isinstance(weights, list) and len(ids) == len(weights)):
        hint = "It must have one weight for each answer."
        raise BadRow(f"The answer is {shorten(dict(value))}.", hint)
    if not all(isinstance(weight, (int, float)) for weight in weights):
        raise BadRow(f"The answer has the weights {shorten(weights)}.", "Write them as numbers.")
    pairs = sorted(zip(weights, ids, strict=True), key=lambda pair: -pair[0])
    answers = [(to_text(answer, "The answer"), round(weight, 2)) for weight, answer in pairs]
    counts = [_ANNOTATORS_OF_WEIGHT.get(weight, 0) for _, weight in answers]
    if not all(counts) or sum(counts) > _ANNOTATORS:
        return [answer for answer, _ in answers]
    given = [a for (a, _), count in zip(answers, counts, strict=True) for a in [a] * count]
    return given + [""] * (_ANNOTATORS - len(given)) if given else []


def _are_numbers(value: list[Any]) -> bool:
    """Return whether a list contains only numbers or lists of numbers."""
    return all(
        _are_numbers(item)
        if isinstance(item, list)
        else isinstance(item, (int, float)) and not isinstance(item, bool)
        for item in value
    )


@dataclass(frozen=True)
class _Choices:
    """The choices of a question."""

    texts: tuple[str, ...]
    """Empty for a choice that is no text; no texts at all if the choices are not a list."""
    labels: tuple[str, ...] = ()
    """What the data calls each choice, if it does."""

    @classmethod
    def of(cls, value: Any) -> _Choices | None:
        """Read the choices of a record; None if there are none."""
        value = parse_list(value)
        if is_missing(value):
            return None
        labels: list[Any] = []
        texts: list[Any] = []
        if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # ARC
            labels, texts = value.get("label") or [], value["text"]
        elif isinstance(value, Mapping):
            labels, texts = list(value), list(value.values())
        elif isinstance(value, (list, tuple)):
            texts = list(value)
            if all(isinstance(item, Mapping) for item in texts):
                labels = [item.get("label", item.get("id")) for item in texts]
                texts = [item.get("text") for item in texts]
        named = len(labels) == len(texts) and not any(map(is_missing, labels))
        return cls(tuple(map(_choice_text, texts)), tuple(map(str, labels)) if named else ())

    def resolve(self, answer: Any, annotators: bool = False) -> str:
        """Return the choices that an answer names, or the answer itself as text.

        Args:
            answer: Text, a letter, several letters, or a position counted from 0.
            annotators: Whether the answer is free text, in which numbers are no positions.

        Raises:
            BadRow: There is no such choice, or it is unclear which is meant.
        """
        text = to_text(answer, "The answer").strip()
        is_number = not isinstance(answer, str)
        if text in self.labels:
            return self._at(self.labels.index(text), text)
        if text in self.texts and not is_number:
            return str(answer)
        if letter := _LETTER.fullmatch(text):
            return self._at(ord(letter[1].upper()) - ord("A"), text)
        if text.removeprefix("-").isdecimal() and (is_number or not annotators):
            return self._at(int(text), text)
        if positions := () if annotators else self._several(text):
            joint = " or " if re.search(r"\bor\b", text, re.IGNORECASE) else ", "
            return joint.join(self._at(position, text) for position in positions)
        return text if is_number else str(answer)

    def _several(self, text: str) -> list[int]:
        """Return the positions of the choices that are listed; empty for other text.

        Capitals without separators are a word if one of them is far behind the last choice's
        letter, as in `TV`.

        Raises:
            BadRow: Such capitals repeat a letter.
        """
        is_word = False
        listed = text[1:-1].strip() if text[:1] + text[-1:] in ("[]", "{}") else text
        if _LETTERS.fullmatch(listed):
            names = re.findall(r"\b[A-Za-z]\b", listed)
            if {*names} <= {*self.texts}.difference(self.labels):
                return []  # choices that are letters themselves
        elif _POSITIONS.fullmatch(listed):
            names = re.findall(r"\d+", listed)
            if not {*names} <= {*self.labels} and any(map(_NUMERIC.fullmatch, self.texts)):
                return []  # numbers that are answers themselves
        elif is_word := _CAPITALS.fullmatch(listed) is not None:
            names = list(listed)
        else:
            return []
        positions = [self._position(name) for name in names]
        if is_word:
            if max(positions) > (len(self.texts) + 1 if self.texts else _MOST_LETTERS - 1):
                return []
            if len({*positions}) < len(positions):
                hint = "Write the answer as text."
                raise BadRow(f"The answer is {text}, which names a choice twice.", hint)
        return list(dict.fromkeys(positions))

    def _position(self, name: str) -> int:
        """Return the position of the choice with a label, letter or number; -1 if it has none."""
        labels = [label.upper() for label in self.labels]
        if name.upper() in labels:
            return labels.index(name.upper())
        if name.isdecimal():
            return -1 if any(label.isdecimal() for label in labels) else int(name)
        return ord(name.upper()) - ord("A")

    def _has(self, position: int) -> bool:
        return 0 <= position < len(self.texts) or not self.texts

    def _at(self, position: int, answer: str) -> str:
        if not self.texts:
            raise BadRow(
                f"The answer is {answer}, but the choices are not a list.",
                'Write them as a JSON list: ["red", "grey"].',
            )
        numbered = any(label.isdecimal() for label in self.labels) and answer not in self.labels
        if not self._has(position) or (numbered and answer.isdecimal()):
            named = f": {', '.join(self.labels)}" if numbered else ""
            raise BadRow(
                f"The answer is {answer}, but there are {len(self.texts)} choices{named}.",
                "Count choices from 0, or write the answer as text.",
            )
        chosen = self.texts[position]
        if answer in self.texts and chosen != answer and answer not in self.labels:
            raise BadRow(
                f"The answer {answer} is ambiguous: it is a choice and the position of another"
                " choice.",
                "Write the answer as text.",
            )
        if not chosen.strip():
            raise BadRow(
                f"The answer is {answer}, but that choice has no text.", "Write it as text."
            )
        return chosen


def _choice_text(value: Any) -> str:
    try:
        return "" if is_missing(value) else to_text(value, "A choice")
    except BadRow:
        return ""  # refused where an answer names it


def check_encodable(text: str, name: str) -> None:
    """Refuse text with an unpaired surrogate, left where an emoji was cut, or a NUL character.

    Raises:
        BadRow: The text has one.
    """
    if "\0" in text:
        raise BadRow(f"{name} contains a NUL character.", "Delete the character.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise BadRow(
            f"{name} contains half a character ({half}).", "Restore or delete the character."
        ) from error


def shorten(value: Any) -> str:
    """Return a value for messages: text in quotes, at most 60 characters."""
    is_time = isinstance(value, (datetime.date, datetime.time, datetime.timedelta))
    text = str(value) if is_time else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
