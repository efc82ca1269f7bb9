"""Notice that an answer repeats one span of tokens and would not end by itself."""

from __future__ import annotations

from collections.abc import Iterable

MAX_PERIOD = 40
"""Longest span, in tokens, whose repetition is noticed; about three sentences."""
MIN_COPIES = 6
"""Times that a span must occur in a row. Tables and lists repeat a row a few times."""
MIN_TOKENS = 40
"""Tokens that all copies must have together: a row of ten zeros, or "1 1 1 1", is an answer."""


class RepetitionDetector:
    """Watch the tokens of one answer for a loop.

    An answer is in a loop when it ends with `MIN_COPIES` or more copies of a span of at most
    `MAX_PERIOD` tokens, which have `MIN_TOKENS` or more tokens together.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._matches = [0] * (MAX_PERIOD + 1)
        """For each period, how many of the latest tokens equal the one a period before them."""

    def push(self, token: int) -> bool:
        """Add a token and return whether the answer is in a loop by now."""
        self._tokens.append(token)
        found = False
        for period in range(1, min(MAX_PERIOD, len(self._tokens) - 1) + 1):
            if self._tokens[-1 - period] == token:
                self._matches[period] += 1
                repeated = self._matches[period] + period
                found = found or repeated >= max(MIN_COPIES * period, MIN_TOKENS)
            else:
                self._matches[period] = 0
        return found


def length_before_loop(tokens: Iterable[int]) -> int | None:
    """Return after how many tokens an answer is in a loop, or None if it never is."""
    detector = RepetitionDetector()
    return next((n for n, token in enumerate(tokens, 1) if detector.push(token)), None)
