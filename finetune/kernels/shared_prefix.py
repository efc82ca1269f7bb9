"""Attention for several questions that share a prefix.

Each question attends to the prefix and to itself. A mask over the whole sequence would have the
same effect, but compute every question against every other: with ten questions of 26 tokens after
a prefix of 66, that is ten times the work. Here the questions are cut out, padded in groups of
similar length, and processed in parallel.

Tried with transformers 5.23.0 and 5.24.0, whose registries of attention functions are used here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from finetune.kernels.cpu_attention import attend
from vqa_app.models.architecture import text_config
from vqa_app.transformers_internals import (
    sdpa_attention_forward,
    sdpa_mask,
    set_attention_implementation,
)

NAME = "branching"
GROWTH = 1.5
"""The questions of a group are at most this many times as long as its shortest."""


def branch_layout(segments: Sequence[np.ndarray], longest: int) -> dict[str, Any]:
    """Compute how to split a batch, padded on the right, into prefixes and questions.

    Sizes are rounded up, because CPU kernels are prepared and kept for every shape that occurs.

    Args:
        segments: Segment numbers of each row's tokens, without padding: 0 in the prefix, then 1,
            2, ... for each question. A row that is all 1 is a question without a prefix.
        longest: Length of the padded rows.

    Returns:
        prefix: Length of the longest prefix.
        groups: For each group of n questions padded to s tokens: `rows` [n], the batch rows that
            they are in; `take` [n * s], the indices of their tokens in the flattened batch; `real`
            [tokens], which of the n * s are not padding; `mask` [n, 1, s, prefix + s], what each
            token attends to.
        order: For each token of the flattened batch [batch * longest], the index of its result
            among [prefixes, real tokens of the groups].
    """
    prefixes = np.array([np.count_nonzero(row == 0) for row in segments])
    most = min(longest, round_up(int(prefixes.max()), 4))
    spans = [
        (number, int(start), int(stop - start))
        for number, row in enumerate(segments)
        for start, stop in itertools.pairwise(np.flatnonzero(np.diff(row, prepend=0, append=-1)))
    ]
    spans.sort(key=lambda span: span[2])
    order = np.zeros((len(segments), longest), dtype=np.int64)
    for number, prefix in enumerate(prefixes):
        order[number, :prefix] = number * most + np.arange(prefix)
    placed = len(segments) * most
    groups = []
    for group in _groups(spans):
        group += [(0, 0, 0)] * (round_up(len(group), 8) - len(group))  # padding
        rows, start, size = (np.array(column) for column in zip(*group, strict=True))
        steps = np.arange(round_up(int(size.max()), 4))
        inside = steps < size[:, None]  # [n, s]
        take = (rows * longest + start)[:, None] + np.where(inside, steps, 0)
        in_prefix = np.arange(most) < prefixes[rows][:, None]  # [n, prefix]
        mask = np.concatenate(
            [
                np.broadcast_to(in_prefix[:, None], (len(rows), len(steps), most)),
                np.broadcast_to(
                    np.tri(len(steps), dtype=bool), (len(rows), len(steps), len(steps))
                ),
            ],
            axis=2,
        )
        order.reshape(-1)[take[inside]] = placed + np.arange(inside.sum())
        placed += int(inside.sum())
        parts = {
            "rows": rows,
            "take": take.reshape(-1),
            "real": np.flatnonzero(inside),
            "mask": mask[:, None],
        }
        groups.append({name: torch.from_numpy(part) for name, part in parts.items()})
    return {"prefix": most, "groups": groups, "order": torch.from_numpy(order.reshape(-1))}


def branching_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    branches: dict[str, Any] | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """Compute attention as an attention function of transformers.

    Args:
        module: The attention layer.
        query: [batch, heads, tokens, head width].
        key: The same shape, possibly with fewer heads.
        value: The shape of `key`.
        attention_mask: Used without `branches`.
        scaling: Factor of the scores; None is 1 / sqrt(head width).
        dropout: Used without `branches`.
        branches: Result of `branch_layout`; None computes ordinary attention ("sdpa").
        further: Passed on to "sdpa".

    Returns:
        [batch, tokens, heads, head width], whose values at padding are meaningless, and None in
        the place of attention weights.
    """
    batch, heads, length, width = query.shape
    trains = query.requires_grad and length == key.shape[2] and not dropout
    if branches is None and not trains:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **further
        )
    scale = scaling if scaling is not None else width**-0.5
    key, value = (
        states.repeat_interleave(heads // states.shape[1], dim=1) for states in (key, value)
    )
    if branches is None:
        return attend(query, key, value, scale, attention_mask).transpose(1, 2), None
    start = branches["prefix"]
    pieces = []
    if start:
        first = attend(query[:, :, :start], key[:, :, :start], value[:, :, :start], scale)
        pieces.append(first.transpose(1, 2).reshape(batch * start, heads * width))
    flat = [s.transpose(1, 2).reshape(batch * length, heads * width) for s in (query, key, value)]
    for group in branches["groups"]:
        count = len(group["rows"])
        q, k, v = (
            states.index_select(0, group["take"]).view(count, -1, heads, width).transpose(1, 2)
            for states in flat
        )
        if start:
            k = torch.cat((key[:, :, :start].index_select(0, group["rows"]), k), 2)
            v = torch.cat((value[:, :, :start].index_select(0, group["rows"]), v), 2)
        mixed = attend(q, k, v, scale, group["mask"]).transpose(1, 2)
        pieces.append(mixed.reshape(-1, heads * width).index_select(0, group["real"]))
    out = torch.cat(pieces).index_select(0, branches["order"])
    return out.view(batch, length, heads, width), None


AttentionInterface.register(NAME, branching_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def enable_branching(model: Any) -> None:
    """Make the language model accept `branches`; everything else stays the same."""
    set_attention_implementation(text_config(model), NAME)


def round_up(size: int, step: int) -> int:
    """Round a size up to a multiple of `step`."""
    return -(-size // step) * step


def _groups(spans: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Group spans (row, start, length), sorted by length, into groups of similar length."""
    groups: list[list[tuple[int, int, int]]] = []
    for span in spans:
        if not groups or span[2] > GROWTH * groups[-1][0][2]:
            groups.append([])
        groups[-1].append(span)
    return groups
