"""All calls of this project into private parts of torch.

Tried with torch 2.13. Check every function here when the upper bound in `pyproject.toml` moves.
Importing this module imports torch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache
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


def pack_int4(codes: Tensor) -> Tensor:
    """Pack codes of 0 to 15, int32 [out, in], for `int4_product`; `out` is a multiple of 16.

    Returns:
        uint8 [out, in / 2], whose layout depends on the processor; see `unpack_int4`.
    """
    return cast(Tensor, torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))


def int4_product(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """Multiply bfloat16 rows [rows, in] by a weight from `pack_int4`.

    Args:
        x: Contiguous rows.
        packed: Result of `pack_int4`.
        group: Neighbouring inputs with the same scale: 32, 64, 128 or 256.
        scales: bfloat16 [in / group, out, 2]: the difference of two neighbouring codes, and the
            value of code 8.
    """
    return cast(Tensor, torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scales))


def unpack_int4(packed: Tensor) -> Tensor:
    """Return the codes that `pack_int4` packed, but turned: uint8 [in, out]."""
    outputs = len(packed)
    block = _int4_block()
    whole = outputs - outputs % block
    parts = [_unpack_int4_blocks(packed[:whole], block)] if whole else []
    if rest := outputs - whole:
        parts.append(_unpack_int4_blocks(packed[whole:], rest))
    return torch.cat(parts, 1)


def int4_layout() -> str:
    """Return a name for the layout of `pack_int4` on this processor."""
    block = _int4_block()
    order = ".".join(str(row) for row in (*_int4_order(block), *_int4_order(16)))
    return f"{block}-{zlib.crc32(order.encode()):08x}"


def _unpack_int4_blocks(packed: Tensor, rows: int) -> Tensor:
    """Unpack whole blocks of outputs, in each of which the bytes of an input lie together."""
    packed = packed.view(-1, 2 * packed.shape[1], rows // 2).transpose(0, 1)
    codes = torch.cat((packed & 15, packed >> 4), 2)  # [in, blocks, rows]
    order = _int4_order(rows)
    if order != tuple(range(rows)):
        codes = codes[..., torch.tensor(order).argsort()]
    return codes.flatten(1)


@cache
def _int4_block() -> int:
    """Return how many rows of a weight lie together in the packed layout."""
    codes = torch.zeros(128, 2, dtype=torch.int32)
    codes[0, 1] = 1  # the second input of a block follows the first inputs of all its rows
    return 2 * int(pack_int4(codes).flatten().nonzero()[0])


@cache
def _int4_order(rows: int) -> tuple[int, ...]:
    """Return which rows the nibbles of one input of a block are: first the low ones, then the high.

    The layout is not documented, so numbered rows are packed and looked for.
    """
    numbers = torch.arange(rows, dtype=torch.int32)[:, None].expand(rows, 2)
    order = torch.zeros(rows, dtype=torch.int64)
    for shift in (0, 4):
        packed = pack_int4((numbers >> shift & 15).contiguous()).flatten()[: rows // 2]
        order += torch.cat((packed & 15, packed >> 4)).long() << shift
    return tuple(order.tolist())


def int8_product(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """Multiply bfloat16 rows [rows, in] by an int8 weight [out, in] with bfloat16 scales [out].

    Args:
        x: Contiguous rows. `in` must be a multiple of 16: the kernel does not check that, and reads
            past the end.
        weight: Codes.
        scales: The value of code 1 in each row.
    """
    if x.shape[1] % 16:
        raise ValueError(f"expected a multiple of 16 inputs, got {x.shape[1]}")
    return cast(Tensor, torch.ops.aten._weight_int8pack_mm(x, weight, scales))


def softmax_backward(gradient: Tensor, output: Tensor) -> Tensor:
    """Return the gradient of the input of a softmax over the last dimension."""
    return torch._softmax_backward_data(gradient, output, -1, output.dtype)


def process_group_store() -> Store:
    """Return another connection to the key-value store through which the processes met."""
    from torch.distributed.distributed_c10d import _get_default_store

    store: Any = _get_default_store()
    return cast("Store", store.clone())
