"""Compare the attention of the training step with PyTorch's fused attention on a CPU.

Times are medians of a forward and a backward pass; both sides take turns.

    python -m tests.benchmarks.attention_kernel --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from finetune.kernels.cpu_attention import attend

SHAPES = ((16, 6, 84, 32), (4, 6, 330, 32), (2, 16, 384, 64), (2, 16, 750, 64), (1, 16, 1500, 64))
"""Rows, heads, tokens, head width."""


def step(attention: Callable[..., Tensor], parts: tuple[Tensor, ...]) -> float:
    """Return the milliseconds of a forward and a backward pass."""
    began = time.perf_counter()
    attention(*parts).sum().backward()
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        "| rows × heads × tokens × width | | fused, ms | ours, ms | ratio |\n|---|---|---|---|---|"
    )
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            parts = tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            scale = shape[-1] ** -0.5
            fused = partial(scaled_dot_product_attention, is_causal=True, scale=scale)
            ours = partial(attend, scale=scale)
            step(fused, parts), step(ours, parts)  # warm-up
            times = [(step(fused, parts), step(ours, parts)) for _ in range(options.rounds)]
            theirs, own = (statistics.median(column) for column in zip(*times, strict=True))
            name = str(dtype).removeprefix("torch.")
            sizes = " × ".join(map(str, shape))
            print(f"| {sizes} | {name} | {theirs:.1f} | {own:.1f} | {own / theirs:.2f}× |")


if __name__ == "__main__":
    main()
