"""All calls of this project into private parts of torch.

Tried with torch 2.13. Check every function here when the upper bound in `pyproject.toml` moves.
Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import Store

PackedLinearKernel = Callable[[Tensor, Tensor, Tensor | None, str, Sequence[float], str], Tensor]
"""Arguments: input, packed weight, bias, fused operation, its scalars and its algorithm."""


def has_bf16_kernels() -> bool:
    """Return whether oneDNN is built in and has bfloat16 kernels for this CPU."""
    # Without oneDNN, as on Macs, the operator does not exist.
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_bf16_instructions() -> bool:
    """Return whether this CPU has bfloat16 instructions (AVX-512, AMX or Arm)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Reorder a bfloat16 weight [out, in] for oneDNN's product with a single row.

    Returns:
        An opaque tensor that only `packed_linear_kernel` and `Tensor.to_dense` understand.
    """
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1))


def packed_linear_kernel() -> PackedLinearKernel:
    """Return oneDNN's linear layer for weights from `pack_linear_weight`."""
    return cast(PackedLinearKernel, torch.ops.mkldnn._linear_pointwise.default)


def softmax_backward(gradient: Tensor, output: Tensor) -> Tensor:
    """Return the gradient of the input of a softmax over the last dimension."""
    return torch._softmax_backward_data(gradient, output, -1, output.dtype)


def process_group_store() -> Store:
    """Return another connection to the key-value store through which the processes met."""
    from torch.distributed.distributed_c10d import _get_default_store

    store: Any = _get_default_store()
    return cast("Store", store.clone())
