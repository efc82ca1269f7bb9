"""Attention of the training step.

On CPUs the backward pass of PyTorch's fused attention is its slow half: in bf16 it takes four to
eight times as long as its forward pass. Plain products over blocks of queries, each against the
keys that it may see at all, take a half to a fifth of the time there
(`python -m tests.benchmarks.attention`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

BLOCK = 256
"""Queries at once."""
PLAIN_UP_TO = 128
"""Queries of a call in fp32, whose fused kernel is the faster one beyond."""
KEPT_WEIGHTS = 1 << 24
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
    queries = query.shape[2]
    if query.device.type != "cpu" or (query.dtype == torch.float32 and queries > PLAIN_UP_TO):
        return scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=seen is None, scale=scale
        )
    weights = query.shape[0] * query.shape[1] * queries * key.shape[2]
    again = torch.is_grad_enabled() and weights > KEPT_WEIGHTS
    blocks = []
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        if seen is None:
            size = stop - start
            hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
            inputs = (query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], hidden, scale)
        else:
            inputs = (query[:, :, start:stop], key, value, ~seen[..., start:stop, :], scale)
        blocks.append(
            checkpoint(_products, *inputs, use_reentrant=False, preserve_rng_state=False)
            if again
            else _products(*inputs)
        )
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)


def _products(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """Softmax attention of one block of queries.

    Args:
        hidden: the opposite of `seen`, for the last keys.
    """
    scores = (query * scale) @ key.transpose(-1, -2)
    # Hidden scores get no gradient from the softmax as it is, so autograd need not know.
    scores.detach()[..., -hidden.shape[-1] :].masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1).to(value.dtype) @ value
