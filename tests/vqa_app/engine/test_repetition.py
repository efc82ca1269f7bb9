"""Answers that repeat themselves end; lists and tables that repeat do not."""

from __future__ import annotations

import pytest

from vqa_app.engine.repetition import MIN_COPIES, MIN_TOKENS, length_before_loop


@pytest.mark.parametrize("period", [1, 2, 3, 7, 20, 40])
def test_a_repeated_span_is_a_loop_after_enough_copies(period: int) -> None:
    start, span = list(range(1000, 1005)), list(range(period))
    length = length_before_loop(start + span * 100)
    assert length == len(start) + max(MIN_COPIES * period, MIN_TOKENS)


@pytest.mark.parametrize(
    "tokens",
    [
        [1] * 20,  # "1 1 1 1", zeros of a matrix
        [1, 2] * 15,
        [1, 2, 3, 4, 5, 6, 7, 8] * 5,  # equal rows of a table
        [token for row in range(30) for token in (1, 2, 3, row + 10, 4)],  # rows that differ
        list(range(500)),
    ],
)
def test_lists_and_tables_are_no_loops(tokens: list[int]) -> None:
    assert length_before_loop(tokens) is None


def test_copies_count_only_in_a_row() -> None:
    assert length_before_loop(([1, 2, 3] * 5 + [9]) * 5) is None
