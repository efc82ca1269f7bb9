"""Attention for questions that share a prefix: within the prefix, and from each question to the
prefix and itself.

A mask over the whole sequence says the same, but computes every question against every other: with
ten questions of 26 tokens behind 66 that is ten times the work. Here the questions are cut out,
padded to groups of like length, and attended to side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.kernels.cpu_attention import attend
from vqa_app.models.architecture import text_config
from vqa_app.transformers_internals import set_attention_implementation

NAME = "branching"
GROWTH = 1.5
"""Questions of one group are at most this much longer than its shortest may be."""


def branch_layout(segments: Sequence[np.ndarray], longest: int) -> dict[str, Any]:
    """How to cut a batch of rows, padded on the right to `longest`, into prefixes and questions.

    Sizes are rounded up: a CPU's kernels are prepared, and kept, once for every shape that occurs.

    Args:
        segments: of each row, without its padding: 0 in the prefix, then 1, 2, ... for each
            question. A row that is all 1 is a question without a prefix.

    Returns:
        prefix: tokens of the longest prefix.
        groups: for each group of n questions padded to s tokens: `rows` [n], the rows they stand
            in; `take` [n * s], their tokens' places in the flattened batch; `real` [tokens], which
            of the n * s are not padding; `seen` [n, 1, s, prefix + s], what each token sees.
        order: [batch * longest], where each token's result stands among [prefixes, groups' real
            tokens].
    """
    prefixes = np.array([np.count_nonzero(row == 0) for row in segments])
    most = min(longest, rounded(int(prefixes.max()), 4))
    spans = [
        (number, int(start), int(stop - start))
        for number, row in enumerate(segments)
        for start, stop in itertools.pairwise(np.flatnonzero(np.diff(row, prepend=0, append=-1)))
    ]
    spans.sort(key=lambda span: span[2])
    order = np.zeros((len(segments), longest), dtype=np.int64)
    for row, prefix in enumerate(prefixes):
        order[row, :prefix] = row * most + np.arange(prefix)
    placed = len(segments) * most
    groups = []
    for group in _groups(spans):
        group += [(0, 0, 0)] * (rounded(len(group), 8) - len(group))  # of no real token
        row, start, size = (np.array(column) for column in zip(*group, strict=True))
        steps = np.arange(rounded(int(size.max()), 4))
        inside = steps < size[:, None]  # [n, s]
        take = (row * longest + start)[:, None] + np.where(inside, steps, 0)
        known = np.arange(most) < prefixes[row][:, None]  # [n, prefix]
        seen = np.concatenate(
            [
                np.broadcast_to(known[:, None], (len(row), len(steps), most)),
                np.broadcast_to(np.tri(len(steps), dtype=bool), (len(row), len(steps), len(steps))),
            ],
            axis=2,
        )
        order.reshape(-1)[take[inside]] = placed + np.arange(inside.sum())
        placed += int(inside.sum())
        parts = {
            "rows": row,
            "take": take.reshape(-1),
            "real": np.flatnonzero(inside),
            "seen": seen[:, None],
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
    """An attention function as transformers calls it; without `branches` it is its "sdpa".

    Args:
        query: [batch, heads, tokens, head width]; key and value may have fewer heads.

    Returns:
        [batch, tokens, heads, head width]; padding holds no meaning.
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
        mixed = attend(q, k, v, scale, group["seen"]).transpose(1, 2)
        pieces.append(mixed.reshape(-1, heads * width).index_select(0, group["real"]))
    out = torch.cat(pieces).index_select(0, branches["order"])
    return out.view(batch, length, heads, width), None


AttentionInterface.register(NAME, branching_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def enable_branching(model: Any) -> None:
    """Lets the LLM take `branches`; everything else stays as it was."""
    set_attention_implementation(text_config(model), NAME)


def rounded(size: int, step: int) -> int:
    """`size` up to a multiple of `step`."""
    return -(-size // step) * step


def _groups(spans: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Spans, shortest first, in groups of like length."""
    groups: list[list[tuple[int, int, int]]] = []
    for span in spans:
        if not groups or span[2] > GROWTH * groups[-1][0][2]:
            groups.append([])
        groups[-1].append(span)
    return groups
