"""Training and held-out rows. A picture never stands on both sides, nor does a question without
one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.data.rows import Row

DEFAULT_FRACTION = 0.05
DEFAULT_MOST = 500
_MOST_ROWS = 0.5
"""A few pictures may have most of the rows; what is held out has no more than this share, or than
is asked for."""


@dataclass(frozen=True)
class Split:
    train: tuple[Row, ...]
    held_out: tuple[Row, ...]


@dataclass
class _Group:
    """Rows that share pictures, directly or through other rows."""

    pictures: set[str] = field(default_factory=set)
    rows: int = 0


def split_by_picture(
    rows: Sequence[Row], keys: Sequence[Sequence[str]], fraction: float | None, seed: int
) -> Split:
    """Holds out about `fraction` of the pictures with every row that shows one of them.

    Which ones depends on the pictures and the seed alone, so more data later keeps the held-out
    ones held out. Nothing is held out where all rows hang together by their pictures.

    Args:
        keys: for each row the identities (digests) of its pictures; a row without any goes by its
            questions, as if they were a picture.
        fraction: None for 0.05, at most 500 pictures.
    """
    named = [list(known) or [_questions(row)] for row, known in zip(rows, keys, strict=True)]
    numbers = _groups(named)
    groups: dict[int, _Group] = {}
    for number, known in zip(numbers, named, strict=True):
        group = groups.setdefault(number, _Group())
        group.pictures.update(known)
        group.rows += 1
    held = _held_out(groups, fraction, seed)
    return Split(
        tuple(row for row, group in zip(rows, numbers, strict=True) if group not in held),
        tuple(row for row, group in zip(rows, numbers, strict=True) if group in held),
    )


def _held_out(groups: dict[int, _Group], fraction: float | None, seed: int) -> set[int]:
    """Groups in the seed's order, each that still fits into the share."""
    share = DEFAULT_FRACTION if fraction is None else fraction
    pictures = sum(len(group.pictures) for group in groups.values())
    rows = sum(group.rows for group in groups.values())
    room = min(max(round(share * pictures), 1), pictures - 1)
    if fraction is None:
        room = min(room, DEFAULT_MOST)
    if share == 0:
        return set()
    most_rows = max(share, _MOST_ROWS) * rows

    def place(number: int) -> bytes:
        return hashlib.sha256(f"{seed}:{min(groups[number].pictures)}".encode()).digest()

    held: set[int] = set()
    order = sorted(groups, key=place)
    for number in order:
        group = groups[number]
        if len(group.pictures) <= room and group.rows <= most_rows:
            held.add(number)
            room -= len(group.pictures)
            most_rows -= group.rows
    if held or not order:
        return held
    smallest = min(order, key=lambda number: len(groups[number].pictures))
    alone = groups[smallest]
    fits = len(alone.pictures) <= pictures / 2 and alone.rows <= most_rows
    return {smallest} if fits else set()


def _questions(row: Row) -> str:
    """Equal for rows that ask the same."""
    asked = "\n".join(turn.text.strip() for turn in row.turns if turn.role == "user")
    return "asked:" + hashlib.sha256(asked.encode()).hexdigest()


def _groups(keys: Sequence[Sequence[str]]) -> list[int]:
    """Rows that share a picture, directly or through other rows, get one group number."""
    parent = list(range(len(keys)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[str, int] = {}
    for position, row_keys in enumerate(keys):
        for key in row_keys:
            parent[root(position)] = root(first.setdefault(key, position))
    return [root(position) for position in range(len(keys))]
