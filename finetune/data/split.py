"""Split rows into training and held-out rows that share no picture and no text-only question."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.data.rows import Row

DEFAULT_FRACTION = 0.05
DEFAULT_MAX_PICTURES = 500
_MAX_ROW_SHARE = 0.5
"""A few pictures may have most of the rows. At most this share of the rows is held out, or the
requested fraction if that is larger."""


@dataclass(frozen=True)
class Split:
    """Training and held-out rows."""

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]


@dataclass
class _Group:
    """A connected component: rows that share pictures, directly or through other rows."""

    pictures: set[str] = field(default_factory=set)
    rows: int = 0


def split_by_picture(
    rows: Sequence[Row], keys: Sequence[Sequence[str]], fraction: float | None, seed: int
) -> Split:
    """Hold out about `fraction` of the pictures, with every row that shows one of them.

    The choice depends on the pictures and the seed alone: held-out pictures stay held out when data
    is added. Nothing is held out if all rows are connected by shared pictures.

    Args:
        rows: The rows to split.
        keys: Per row, the digests of its pictures. A row without pictures is identified by its
            questions.
        fraction: The share of pictures to hold out; None for 0.05 and at most 500 pictures.
        seed: Determines which pictures are held out.
    """
    row_keys = [list(own) or [_question_key(row)] for row, own in zip(rows, keys, strict=True)]
    numbers = _connected_components(row_keys)
    groups: dict[int, _Group] = {}
    for number, own_keys in zip(numbers, row_keys, strict=True):
        group = groups.setdefault(number, _Group())
        group.pictures.update(own_keys)
        group.rows += 1
    chosen = _choose_groups(groups, fraction, seed)
    return Split(
        tuple(row for row, group in zip(rows, numbers, strict=True) if group not in chosen),
        tuple(row for row, group in zip(rows, numbers, strict=True) if group in chosen),
    )


def _choose_groups(groups: dict[int, _Group], fraction: float | None, seed: int) -> set[int]:
    """Choose the groups to hold out: in random order, each that still fits."""
    share = DEFAULT_FRACTION if fraction is None else fraction
    pictures = sum(len(group.pictures) for group in groups.values())
    rows = sum(group.rows for group in groups.values())
    pictures_left = min(max(round(share * pictures), 1), pictures - 1)
    if fraction is None:
        pictures_left = min(pictures_left, DEFAULT_MAX_PICTURES)
    if share == 0:
        return set()
    rows_left = max(share, _MAX_ROW_SHARE) * rows

    def random_rank(number: int) -> bytes:
        return hashlib.sha256(f"{seed}:{min(groups[number].pictures)}".encode()).digest()

    chosen: set[int] = set()
    order = sorted(groups, key=random_rank)
    for number in order:
        group = groups[number]
        if len(group.pictures) <= pictures_left and group.rows <= rows_left:
            chosen.add(number)
            pictures_left -= len(group.pictures)
            rows_left -= group.rows
    if chosen or not order:
        return chosen
    # Every group is larger than the share: hold out the smallest, if more than half remains.
    smallest = min(order, key=lambda number: len(groups[number].pictures))
    group = groups[smallest]
    fits = len(group.pictures) <= pictures / 2 and group.rows <= rows_left
    return {smallest} if fits else set()


def _question_key(row: Row) -> str:
    """Return a key that is equal for rows with the same questions."""
    questions = "\n".join(turn.text.strip() for turn in row.turns if turn.role == "user")
    return "asked:" + hashlib.sha256(questions.encode()).hexdigest()


def _connected_components(keys: Sequence[Sequence[str]]) -> list[int]:
    """Return a component number per row; rows with a common key are in one component."""
    parent = list(range(len(keys)))  # union-find

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
