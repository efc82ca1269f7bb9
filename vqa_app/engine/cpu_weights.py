"""Weights on a CPU, laid out once as it multiplies one row by them fastest.

Decoding reads every weight for every token, and `F.linear` on one bf16 row uses less than half of
what the memory gives. The same weights prepacked (what TorchInductor's freezing does) come about as
fast as they can be read; prefill gains a little too. Weights are moved, not copied, but for a head
that is tied to the embedding: that one keeps both.

float32 weights are read faster column by column: turned over in memory, the same tensors to
everybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_app.errors import UsageError
from vqa_app.torch_internals import has_bf16_kernels, pack_linear_weight, packed_linear_kernel


class PackedLinear(nn.Module):
    """`nn.Linear` for inference with a prepacked bf16 weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # The weight is opaque to everything but the kernel, so it is no parameter and no buffer.
        self.packed = pack_linear_weight(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]"""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Multiply.apply(x, self.packed, self.bias)
        return packed_linear_kernel()(x, self.packed, self.bias, "none", [], "")


class _Multiply(torch.autograd.Function):
    """The packed product with a gradient for its input, which attention maps ask for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return packed_linear_kernel()(x, packed, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.packed.to_dense(), None, None


def lay_out(model: Any) -> None:
    """Lays a model's weights out for decoding, in place; leaves alone what it knows no better for.
    What was laid out anew can answer and no more: `save_pretrained` raises.
    """
    if can_pack(model):
        pack(model)
    elif model.device.type == "cpu":
        turn(model.get_decoder())
        turn(model.get_output_embeddings())
    else:
        return
    model.save_pretrained = _refuse_saving


def _refuse_saving(*arguments: Any, **options: Any) -> NoReturn:
    """Packed weights would be missing from the files without a word; turned ones cannot be
    written.
    """
    raise UsageError(
        "A model that was given to a LocalEngine cannot be saved: its weights are laid out anew.",
        "Save it before that, or load it again with load_model.",
    )


def can_pack(model: nn.Module) -> bool:
    """Whether this machine has bf16 kernels and the model is a bf16 one on its CPU."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    return has_bf16_kernels() and all(
        parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16
        for parameter in parameters
    )


def pack(model: nn.Module) -> int:
    """Swaps every `nn.Linear` for its packed self; says how many there were."""
    # Names only: each weight shall be gone before the next one is packed.
    linears = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    for parent, name in linears:
        setattr(parent, name, PackedLinear(getattr(parent, name)))
    return len(linears)


def turn(module: nn.Module) -> None:
    """Stores the float32 weights of every `nn.Linear` by columns; values and shapes stay."""
    for linear in module.modules():
        if type(linear) is nn.Linear and linear.weight.dtype == torch.float32:
            linear.weight.data = linear.weight.data.t().contiguous().t()


def multiplier(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """`linear` as a bare function of [rows, in], without the machinery of modules."""
    if type(linear) is PackedLinear:
        packed, bias = linear.packed, linear.bias
        multiply = packed_linear_kernel()
        return lambda x: multiply(x, packed, bias, "none", [], "")
    return partial(F.linear, weight=linear.weight, bias=linear.bias)


def joint_multiplier(linears: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Several layers of one input as a bare function from [1, in] to their outputs, one behind the
    other.

    `turn`ed float32 weights become slices of one matrix, so that one product does for all.
    """
    if all(_is_turned(linear) for linear in linears):
        # [in, out of all]; the layers' own weights move there.
        joined = torch.cat([linear.weight.data.t() for linear in linears], 1)
        parts = joined.split([linear.out_features for linear in linears], 1)
        for linear, part in zip(linears, parts, strict=True):
            linear.weight.data = part.t()
        biases = [linear.bias.data for linear in linears if linear.bias is not None]
        if len(biases) in (0, len(linears)):
            bias = torch.cat(biases) if biases else None
            return partial(F.linear, weight=joined.t(), bias=bias)
    multipliers = [multiplier(linear) for linear in linears]
    return lambda x: torch.cat([multiply(x) for multiply in multipliers], 1)


def _is_turned(linear: nn.Module) -> bool:
    weight = linear.weight if type(linear) is nn.Linear else None
    return weight is not None and weight.dtype == torch.float32 and weight.t().is_contiguous()
