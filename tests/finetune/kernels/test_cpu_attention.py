"""Attention for training on CPUs: outputs and gradients equal those of torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from finetune.kernels import cpu_attention
from finetune.kernels.cpu_attention import attend


def both(
    dtype: torch.dtype, queries: int, keys: int, mask: torch.Tensor | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Compute output and gradients of query, key and value: ours, and torch's in float32."""
    random = torch.Generator().manual_seed(0)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    given = [torch.randn(shape, generator=random).to(dtype) for shape in shapes]
    direction = torch.randn(shapes[0], generator=random)
    found = []
    for ours, kind in ((True, dtype), (False, torch.float32)):
        parts = [part.clone().to(kind).requires_grad_() for part in given]
        out = (
            attend(*parts, 0.3, mask)
            if ours
            else scaled_dot_product_attention(
                *parts, attn_mask=mask, is_causal=mask is None, scale=0.3
            )
        )
        out.backward(direction.to(kind))
        found.append([out.detach().float(), *(part.grad.float() for part in parts)])
    return found[0], found[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved", [0, 1 << 24])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_gradients_equal_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, saved: int, masked: bool
) -> None:
    """In several blocks, the last one smaller, with saved and with recomputed weights."""
    monkeypatch.setattr(cpu_attention, "BLOCK", 16)
    monkeypatch.setattr(cpu_attention, "MAX_SAVED_WEIGHTS", saved)
    mask = None
    keys = 40
    if masked:
        keys = 50
        mask = torch.rand(2, 1, 40, keys, generator=torch.Generator().manual_seed(1)) < 0.4
        mask[..., 0] = True
    ours, theirs = both(dtype, 40, keys, mask)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_long_float32_sequences_use_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "MAX_FP32_QUERIES", 8)
    ours, theirs = both(torch.float32, 20, 20, None)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
