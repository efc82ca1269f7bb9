"""Attention for training on CPUs.

On CPUs the backward pass of torch's fused attention is slow: in bfloat16 it takes four to eight
times as long as its forward pass. Plain products over blocks of queries, each with the keys that
it can attend to, take a half to a fifth of the time
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
"""Queries per block."""
MAX_FP32_QUERIES = 128
"""With more queries in float32 the fused kernel is faster."""
MAX_SAVED_WEIGHTS = 1 << 25
"""Attention weights of one call that are saved for the backward pass; more are recomputed."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Compute softmax attention.

    Args:
        query: [rows, heads, queries, head width].
        key: [rows, heads, keys, head width].
        value: The shape of `key`.
        scale: Factor of the scores.
        mask: bool, broadcastable to [rows, heads, queries, keys]: which keys each query attends
            to, at least one each. None is causal attention with as many keys as queries.

    Returns:
        [rows, heads, queries, head width]
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if kind != "cpu" or (query.dtype == torch.float32 and query.shape[2] > MAX_FP32_QUERIES):
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
        )
    out: Tensor = _BlockAttention.apply(query, key, value, scale, mask)
    return out


class _BlockAttention(torch.autograd.Function):
    """Softmax attention in blocks of queries.

    With its own backward pass, because autograd would sum the gradients of keys and values into a
    new tensor for every block, and repeat each block's last product.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
    ) -> Tensor:
        # Products of strided views take twice as long.
        q, k, v = ((query * scale).contiguous(), key.contiguous(), value.contiguous())
        out = torch.empty_like(q)
        saves_weights = query.shape[:3].numel() * key.shape[2] <= MAX_SAVED_WEIGHTS
        saved = []
        for block in _blocks(q, k, mask):
            weights = _weights(q, k, mask, *block)
            out[:, :, block[0]] = weights @ v[:, :, block[1]]
            if saves_weights:
                saved.append(weights)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, mask, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, *saved = ctx.saved_tensors
        grad = grad.contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for number, (rows, keys) in enumerate(_blocks(q, k, mask)):
            weights = saved[number] if saved else _weights(q, k, mask, rows, keys)
            grad_v[:, :, keys] += weights.transpose(-1, -2) @ grad[:, :, rows]
            grad_weights = grad[:, :, rows] @ v[:, :, keys].transpose(-1, -2)
            scores = softmax_backward(grad_weights, weights)
            grad_q[:, :, rows] = scores @ k[:, :, keys]
            grad_k[:, :, keys] += scores.transpose(-1, -2) @ q[:, :, rows]
        return grad_q.mul_(ctx.scale), grad_k, grad_v, None, None


def _blocks(query: Tensor, key: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """Yield slices of queries and of the keys that they can attend to."""
    for start in range(0, query.shape[2], BLOCK):
        stop = min(start + BLOCK, query.shape[2])
        yield slice(start, stop), slice(0, stop if mask is None else key.shape[2])


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, rows: slice, keys: slice) -> Tensor:
    """Return the weights of scaled queries: [rows, heads, queries and keys of the block]."""
    scores = query[:, :, rows] @ key[:, :, keys].transpose(-1, -2)
    if mask is None:
        size = scores.shape[2]
        scores[..., -size:] += scores.new_full((size, size), float("-inf")).triu(1)
    else:
        scores.masked_fill_(~mask[..., rows, :], float("-inf"))
    return scores.softmax(-1)
