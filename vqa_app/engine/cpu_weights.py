"""Weight layouts that make a CPU decode faster.

Decoding reads every weight for every token, and `F.linear` on a single bfloat16 row reaches less
than half of the memory bandwidth. With prepacked weights, as in TorchInductor's freezing, it comes
close to all of it, and prefill gains a little too. Weights are moved, not copied, except for a head
that shares its weight with the embedding: it keeps both.

float32 weights are read faster in column-major order: other code sees the same tensors.

Layers in 4 or 8 bits (`vqa_app.models.quantized_linear`) stay as they are: their kernels read a
third or half of the bytes, which is faster for one reader. For several it is slower, because the
kernels gain little from more rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_app.errors import UsageError
from vqa_app.models.quantized_linear import QuantizedLinear
from vqa_app.torch_internals import has_bf16_kernels, pack_linear_weight, packed_linear_kernel


class PackedLinear(nn.Module):
    """`nn.Linear` for inference with a prepacked bfloat16 weight."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Neither a parameter nor a buffer, because only the kernel can read it.
        self.packed = pack_linear_weight(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in] → [..., out]."""
        if torch.is_grad_enabled() and x.requires_grad:
            product: Any = _PackedProduct.apply  # untyped in torch
            return cast(Tensor, product(x, self.packed, self.bias))
        return packed_linear_kernel()(x, self.packed, self.bias, "none", [], "")


class _PackedProduct(torch.autograd.Function):
    """The packed product with a gradient for its input, for attention maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return packed_linear_kernel()(x, packed, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.packed.to_dense(), None, None


def optimize_layout(model: Any) -> None:
    """Change a model's weights in place to the layout in which this CPU decodes fastest.

    Leaves models on other devices unchanged. A changed model can only be used for inference:
    `save_pretrained` raises.
    """
    if can_pack(model):
        pack_weights(model)
    elif model.device.type == "cpu":
        make_column_major(model.get_decoder())
        make_column_major(model.get_output_embeddings())
    else:
        return
    model.save_pretrained = _refuse_saving


def _refuse_saving(*arguments: Any, **options: Any) -> NoReturn:
    """Raise, since packed weights would be missing and column-major ones cannot be written."""
    raise UsageError(
        "A model inside a LocalEngine cannot be saved, because its weights have another layout.",
        "Save it before, or load it again with load_model.",
    )


def can_pack(model: nn.Module) -> bool:
    """Return whether the model is a bfloat16 one on a CPU that has bfloat16 kernels."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    return has_bf16_kernels() and all(
        parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16
        for parameter in parameters
    )


def pack_weights(model: nn.Module) -> int:
    """Replace every `nn.Linear` by a `PackedLinear` and return their number."""
    # Collect names only, so that each weight is freed before the next one is packed.
    linears = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    for parent, name in linears:
        setattr(parent, name, PackedLinear(getattr(parent, name)))
    return len(linears)


def make_column_major(module: nn.Module) -> None:
    """Store the float32 weights of every `nn.Linear` by columns; values and shapes stay."""
    for linear in module.modules():
        if type(linear) is nn.Linear and linear.weight.dtype == torch.float32:
            linear.weight.data = linear.weight.data.t().contiguous().t()


def linear_function(linear: nn.Linear | PackedLinear) -> Callable[[Tensor], Tensor]:
    """Return a layer as a function of [rows, in], without the overhead of modules."""
    if isinstance(linear, QuantizedLinear):
        return linear.forward
    if isinstance(linear, PackedLinear):
        packed, bias = linear.packed, linear.bias
        kernel = packed_linear_kernel()
        return lambda x: kernel(x, packed, bias, "none", [], "")
    return partial(F.linear, weight=linear.weight, bias=linear.bias)


def joint_linear_function(
    linears: Sequence[nn.Linear | PackedLinear],
) -> Callable[[Tensor], Tensor]:
    """Return several layers of one input as a function from [1, in] to their joined outputs.

    Column-major float32 weights become slices of one matrix, so that one product computes all.
    """
    plain = [linear for linear in linears if _is_column_major(linear)]
    if len(plain) == len(linears):
        # [in, out of all layers]; the layers' own weights become views of it.
        joined = torch.cat([linear.weight.data.t() for linear in plain], 1)
        parts = torch.split(joined, [linear.out_features for linear in plain], 1)
        for linear, part in zip(plain, parts, strict=True):
            linear.weight.data = part.t()
        biases = [linear.bias.data for linear in plain if linear.bias is not None]
        if len(biases) in (0, len(plain)):
            bias = torch.cat(biases) if biases else None
            return partial(F.linear, weight=joined.t(), bias=bias)
    functions = [linear_function(linear) for linear in linears]
    return lambda x: torch.cat([function(x) for function in functions], 1)


def _is_column_major(linear: nn.Module) -> TypeGuard[nn.Linear]:
    if type(linear) is not nn.Linear:
        return False
    return linear.weight.dtype == torch.float32 and linear.weight.t().is_contiguous()
