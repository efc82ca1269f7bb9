"""Training and held-out rows share nothing, and about the given fraction is held out."""

from __future__ import annotations

import pytest

from finetune.data.read import Row, Turn, split_by_picture


def rows_showing(*pictures: str) -> tuple[list[Row], list[tuple[str, ...]]]:
    rows = [Row(str(n), "f", n, (), ()) for n in range(len(pictures))]
    return rows, [tuple(names) for names in pictures]


def test_no_picture_is_in_both_parts() -> None:
    rows, keys = rows_showing(*(["a", "ab", "b", "c", "c", "d", "e", ""] * 5))
    parts = split_by_picture(rows, keys, 0.4, seed=1)
    key_of = dict(zip((row.id for row in rows), keys, strict=True))
    train = {key for row in parts.train for key in key_of[row.id]}
    held = {key for row in parts.held_out for key in key_of[row.id]}
    assert parts.held_out
    assert parts.train
    assert not train & held
    assert len(parts.train) + len(parts.held_out) == len(rows)


def test_held_out_pictures_stay_held_out_when_data_is_added() -> None:
    rows, keys = rows_showing(*(chr(97 + n) for n in range(20)))
    before = {row.id for row in split_by_picture(rows[:10], keys[:10], 0.5, 0).held_out}
    after = {row.id for row in split_by_picture(rows, keys, 0.5, 0).held_out}
    assert len(before & after) >= len(before) - 2  # the fraction now applies to more rows


@pytest.mark.parametrize("seed", range(50))
def test_the_fraction_of_pictures_is_kept_with_connected_rows(seed: int) -> None:
    """The rows are pairs of frames of one film, and a few single pictures."""
    film = [(f"frame {n}", f"frame {n + 1}") for n in range(500)] * 2
    keys = [*film, *((f"photo {n}",) for n in range(40))]
    rows, _ = rows_showing(*("" for _ in keys))
    parts = split_by_picture(rows, keys, None, seed)
    assert len(parts.held_out) == 27  # 5 % of 541 pictures, each with one row


def test_the_smallest_group_is_held_out_if_all_exceed_the_fraction() -> None:
    keys = [(f"{film} {n}", f"{film} {n + 1}") for film in range(4) for n in range(10)]
    rows, _ = rows_showing(*("" for _ in keys))
    assert len(split_by_picture(rows, keys, None, 0).held_out) == 10


@pytest.mark.parametrize("pictures", [["a"] * 5, ["ab", "bc", "ca"], []])
def test_nothing_is_held_out_if_all_rows_are_connected(pictures: list[str]) -> None:
    rows, keys = rows_showing(*pictures)
    assert split_by_picture(rows, keys, None, 0).held_out == ()


@pytest.mark.parametrize("seed", range(10))
def test_a_picture_with_most_of_the_rows_is_not_held_out(seed: int) -> None:
    rows, keys = rows_showing(*("a" * 90), *"bcdefghijk")
    parts = split_by_picture(rows, keys, None, seed)
    assert len(parts.held_out) == 1


def test_no_text_only_question_is_in_both_parts() -> None:
    def text_row(number: int) -> Row:
        question, answer = f"What is {number % 10}?", f"It is {number % 10}, said {number}."
        turns = (Turn("user", (question,)), Turn("assistant", (answer,)))
        return Row(str(number), "f", number, turns, ((answer,),))

    rows = [text_row(number) for number in range(200)]
    parts = split_by_picture(rows, [()] * len(rows), 0.3, seed=0)
    train, held = ({row.turns[0].text for row in side} for side in (parts.train, parts.held_out))
    assert len(train) == 7
    assert len(held) == 3
    assert not train & held
