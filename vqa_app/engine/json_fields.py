"""The values of a JSON document: where they stand, and how sure a model is of each.

Imports neither torch nor numpy: answers of servers elsewhere are examined too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import exp
from statistics import fmean


def field_confidences(text: str, tokens: Iterable[tuple[int, float]]) -> dict[str, float]:
    """Return how sure the model is of each value: the geometric mean of its tokens' probabilities.

    Args:
        text: A JSON document, whole.
        tokens: For each token of it, where its text ends, and its log probability.

    Returns:
        Confidences by path; see `field_spans`.
    """
    places: list[tuple[int, int, float]] = []
    start = 0
    for end, value in tokens:
        places.append((start, end, value))
        start = end
    found: dict[str, float] = {}
    for path, (start, end) in field_spans(text).items():
        values = [value for first, last, value in places if first < end and last > start]
        if values:  # a stop string may have held its tokens back
            found[path] = exp(fmean(values))
    return found


def field_spans(text: str) -> dict[str, tuple[int, int]]:
    """Return where the values of a JSON document lie that are neither objects nor arrays.

    Args:
        text: A JSON document, whole.

    Returns:
        The place of each value's text as [start, end), by a path such as `objects[0].colour`; the
        path is empty if the document is a single value.
    """
    found: dict[str, tuple[int, int]] = {}
    decoder = json.JSONDecoder()

    def skip(position: int) -> int:
        while position < len(text) and text[position] in " \t\r\n,:":
            position += 1
        return position

    def visit(position: int, path: str) -> int:
        position = skip(position)
        if text[position] not in "{[":
            _, end = decoder.raw_decode(text, position)
            found[path] = (position, end)
            return end
        is_object, number, position = text[position] == "{", 0, skip(position + 1)
        while text[position] not in "}]":
            if is_object:
                key, position = decoder.raw_decode(text, position)
                name = f"{path}.{key}" if path else key
            else:
                name = f"{path}[{number}]"
                number += 1
            position = skip(visit(position, name))
        return position + 1

    visit(0, "")
    return found
