"""Training and held-out rows. A picture never stands on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.datasets.rows import Row

DEFAULT_FRACTION = 0.05
DEFAULT_MOST = 500


@dataclass(frozen=True)
class Split:
    train: tuple[Row, ...]
    held_out: tuple[Row, ...]


def split_by_picture(
    rows: Sequence[Row], keys: Sequence[Sequence[str]], fraction: float | None, seed: int
) -> Split:
    """Holds out about `fraction` of the pictures with every row that shows one of them.

    Which ones depends on the pictures and the seed alone, so more data later keeps the held-out
    ones held out.

    Args:
        keys: for each row the identities (digests) of its pictures; a row without any goes by its
            own id.
        fraction: None for 0.05, at most 500 groups.
    """
    groups = _groups(rows, keys)
    names: dict[int, str] = {}
    for row, row_keys, group in zip(rows, keys, groups, strict=True):
        label = min(row_keys, default=f"{row.file}#{row.id}")
        names[group] = min(names.get(group, label), label)
    share = DEFAULT_FRACTION if fraction is None else fraction
    wanted = round(share * len(names))
    if fraction is None:
        wanted = min(wanted, DEFAULT_MOST)
    if share > 0 and len(names) > 1:
        wanted = min(max(wanted, 1), len(names) - 1)
    order = sorted(
        names, key=lambda group: hashlib.sha256(f"{seed}:{names[group]}".encode()).digest()
    )
    held = set(order[:wanted])
    return Split(
        tuple(row for row, group in zip(rows, groups, strict=True) if group not in held),
        tuple(row for row, group in zip(rows, groups, strict=True) if group in held),
    )


def _groups(rows: Sequence[Row], keys: Sequence[Sequence[str]]) -> list[int]:
    """Rows that share a picture, directly or through other rows, get one group number."""
    parent = list(range(len(rows)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[str, int] = {}
    for position, row_keys in enumerate(keys):
        for key in row_keys:
            parent[root(position)] = root(first.setdefault(key, position))
    return [root(position) for position in range(len(rows))]
