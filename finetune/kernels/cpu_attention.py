"""Attention of the training step.

On CPUs the backward pass of PyTorch's fused attention is its slow half: in bf16 it takes four to
eight times as long as its forward pass. Plain products over blocks of queries, each against the
keys that it may see at all, take a half to a fifth of the time there
(`python -m tests.benchmarks.attention_kernel`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from vqa_app.torch_internals import softmax_backward

BLOCK = 128
"""Queries at once."""
PLAIN_UP_TO = 128
"""Queries of a call in fp32, whose fused kernel is the faster one beyond."""
KEPT_WEIGHTS = 1 << 25
"""Attention weights of a call that are kept for the backward pass; more are computed again."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None = None
) -> Tensor:
    """Softmax attention.

    Args:
        query: [rows, heads, queries, head width]; key and value have as many rows and heads.
        seen: which keys each query sees, bool, broadcastable to [rows, heads, queries, keys]; at
            least one each. None: as many keys as queries, and each query sees those up to its own.

    Returns:
        [rows, heads, queries, head width]
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if kind != "cpu" or (query.dtype == torch.float32 and query.shape[2] > PLAIN_UP_TO):
        return scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=seen is None, scale=scale
        )
    return _Blocks.apply(query, key, value, scale, seen)  # type: ignore[no-any-return]


class _Blocks(torch.autograd.Function):
    """Softmax attention in blocks of queries. By hand, since autograd would add up the gradients of
    keys and values in a new tensor for every block, and run a block's last product again too.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None
    ) -> Tensor:
        # Products of views with strides take twice as long.
        q, k, v = ((query * scale).contiguous(), key.contiguous(), value.contiguous())
        out = torch.empty_like(q)
        few = query.shape[:3].numel() * key.shape[2] <= KEPT_WEIGHTS
        kept = []
        for block in _blocks(q, k, seen):
            weights = _weights(q, k, seen, *block)
            out[:, :, block[0]] = weights @ v[:, :, block[1]]
            if few:
                kept.append(weights)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, seen, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, seen, *kept = ctx.saved_tensors
        grad = grad.contiguous()
        for_q, for_k, for_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for number, (rows, keys) in enumerate(_blocks(q, k, seen)):
            weights = kept[number] if kept else _weights(q, k, seen, rows, keys)
            for_v[:, :, keys] += weights.transpose(-1, -2) @ grad[:, :, rows]
            for_weights = grad[:, :, rows] @ v[:, :, keys].transpose(-1, -2)
            scores = softmax_backward(for_weights, weights)
            for_q[:, :, rows] = scores @ k[:, :, keys]
            for_k[:, :, keys] += scores.transpose(-1, -2) @ q[:, :, rows]
        return for_q.mul_(ctx.scale), for_k, for_v, None, None


def _blocks(query: Tensor, key: Tensor, seen: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """Queries and the keys that some of them see."""
    for start in range(0, query.shape[2], BLOCK):
        stop = min(start + BLOCK, query.shape[2])
        yield slice(start, stop), slice(0, stop if seen is None else key.shape[2])


def _weights(query: Tensor, key: Tensor, seen: Tensor | None, rows: slice, keys: slice) -> Tensor:
    """[rows, heads, queries of the block, keys of the block] of scaled queries."""
    scores = query[:, :, rows] @ key[:, :, keys].transpose(-1, -2)
    if seen is None:
        size = scores.shape[2]
        scores[..., -size:] += scores.new_full((size, size), float("-inf")).triu(1)
    else:
        scores.masked_fill_(~seen[..., rows, :], float("-inf"))
    return scores.softmax(-1)
