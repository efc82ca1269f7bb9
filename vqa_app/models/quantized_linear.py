"""Linear layers with 4- or 8-bit weights for torch's kernels for CPUs.

4-bit weights are codes of 0 to 15 with a scale and an offset for each 32 neighbouring inputs, which
takes 5 bits a weight; 8-bit ones have a scale for each output. The kernels multiply bfloat16 rows;
with float32 ones torch runs loops that are 10 to 45 times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from vqa_app.torch_internals import (
    has_bf16_instructions,
    has_bf16_kernels,
    int4_product,
    int8_product,
    pack_int4,
    unpack_int4,
)

Bits: TypeAlias = Literal[4, 8]

GROUP = 32
"""Inputs with the same scale in 4 bits. Larger groups are no faster, and less exact."""
KERNEL_ROWS = 32
"""Rows up to which the kernels are faster than unpacking the weight for an ordinary product."""
_SLICE = 1 << 20
"""Weights that are quantised or unpacked at a time, which bounds the memory for that."""
_SAMPLE = 8
"""Rows of which it is found out whether a weight was in 4 bits before."""
_ROWS = 64
"""Slices hold multiples of so many rows, so that no packed block is divided."""


class QuantizedLinear(nn.Linear):
    """`nn.Linear` for inference with a quantised weight, which is no parameter but a buffer.

    Inputs and outputs are rounded to bfloat16, whatever the dtype of the rows. A subclass of
    `nn.Linear` because PEFT adds LoRA to nothing else.

    Args:
        inputs: Width of the rows.
        outputs: Width of the results.
        bits: 4 or 8; see `possible_bits`.
        bias: A bias, which is added in the dtype of the rows.
        device: Where to allocate the weight, which is not initialised.
    """

    def __init__(
        self, inputs: int, outputs: int, bits: Bits, bias: Tensor | None, device: Any = None
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = inputs, outputs, bits
        scales: tuple[int, ...] = (outputs,)
        if bits == 4:
            weight = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device=device)
            scales = (inputs // GROUP, outputs, 2)
        else:
            weight = torch.empty(outputs, inputs, dtype=torch.int8, device=device)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", torch.empty(scales, dtype=torch.bfloat16, device=device))
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias, requires_grad=False)
        )

    scales: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, bits: Bits) -> QuantizedLinear:
        """Return a quantised copy of a layer; the bias is shared."""
        layer = cls(linear.in_features, linear.out_features, bits, linear.bias, device="meta")
        for name, tensor in quantize(linear.weight.data, bits).items():
            setattr(layer, name, tensor)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in] → [..., out]."""
        if torch.is_grad_enabled() and x.requires_grad:
            product: Any = _Product.apply  # untyped in torch
            y = cast(Tensor, product(x, self))
        else:
            y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """Multiply by the weight alone."""
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        if len(rows) > KERNEL_ROWS:
            y = self._product_unpacked(rows)
        elif self.bits == 4:
            y = int4_product(rows, self.weight, GROUP, self.scales)
        else:
            y = int8_product(rows, self.weight, self.scales)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _product_unpacked(self, rows: Tensor) -> Tensor:
        """Compute what the kernels do, slice by slice and except for the order of summation."""
        dtype = _product_dtype()
        rows = rows.to(dtype)
        parts = [(rows @ weight).to(torch.bfloat16) for weight in self.slices(dtype)]
        return torch.cat(parts, 1)

    def slices(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield the weight as numbers, turned and in parts: [in, some of out]."""
        for outputs in _slices(self.out_features, self.in_features):
            if self.bits == 8:
                scales = self.scales[outputs, None].to(dtype)
                yield self.weight[outputs].to(dtype).mul_(scales).t()
                continue
            # [in / group, 1, out] each. Contiguous, or the next lines take most of the time.
            scale, offset = (
                self.scales[:, outputs].movedim(2, 0).unsqueeze(2).to(dtype).contiguous()
            )
            codes = unpack_int4(self.weight[outputs]).view(-1, GROUP, scale.shape[-1])
            yield codes.to(dtype).sub_(8).mul_(scale).add_(offset).flatten(0, 1)

    def whole(self, dtype: torch.dtype) -> nn.Linear:
        """Return an ordinary layer with the same weight and bias."""
        layer = nn.Linear(self.in_features, self.out_features, device="meta")
        weight = torch.cat([*self.slices(dtype)], 1).t().contiguous()
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = self.bias
        return layer

    def extra_repr(self) -> str:
        """Return what `print` shows between the parentheses."""
        return f"{super().extra_repr()}, bits={self.bits}"


class _Product(torch.autograd.Function):
    """The product with a gradient for its input, for attention maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer: QuantizedLinear = ctx.layer
        start, total = 0, None
        for weight in layer.slices(gradient.dtype):
            part = gradient[..., start : start + weight.shape[1]] @ weight.t()
            total = part if total is None else total + part
            start += weight.shape[1]
        return cast(Tensor, total), None


def count_parameters(model: Any) -> int:
    """Return the number of a model's parameters, however many bits they have.

    A quantised head is a copy of the embedding where these share a weight, and is not counted then.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    if model.config.get_text_config(decoder=True).tie_word_embeddings:
        layers = [layer for layer in layers if layer is not model.get_output_embeddings()]
    quantized = sum(layer.in_features * layer.out_features for layer in layers)
    return int(model.num_parameters()) + quantized


def possible_bits(inputs: int, outputs: int, bits: Bits) -> Bits | None:
    """Return with how many bits, at least those wanted, the kernels can multiply such a weight.

    Returns:
        4, 8, or None for a weight to keep whole.
    """
    if bits == 4 and inputs % GROUP == 0 and outputs % 16 == 0:
        return 4
    return 8 if inputs % 16 == 0 else None


def quantized_bytes(inputs: int, outputs: int, bits: Bits) -> int:
    """Return the memory of a quantised weight with its scales."""
    each_output = inputs // 2 + 4 * (inputs // GROUP) if bits == 4 else inputs + 2
    return outputs * each_output


def quantize(weight: Tensor, bits: Bits) -> dict[str, Tensor]:
    """Quantise a weight [out, in].

    Returns:
        The buffers `weight` and `scales` of a `QuantizedLinear`.
    """
    function = _quantize_int4 if bits == 4 else _quantize_int8
    parts = [function(weight[rows].float()) for rows in _slices(*weight.shape)]
    codes, scales = zip(*parts, strict=True)
    return {"weight": torch.cat(codes), "scales": torch.cat(scales, 1 if bits == 4 else 0)}


def _quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Spread 16 levels between the smallest and the largest weight of each group."""
    groups = weight.view(len(weight), -1, GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    steps = torch.full_like(low, 15)
    if _former_steps(groups[:_SAMPLE]).any():
        former = _former_steps(groups)
        steps = torch.where(former > 0, former, steps)
    # Codes are chosen for the scales that the kernel will use, which are rounded.
    scale = ((high - low) / steps).bfloat16()
    offset = (low + 8 * scale.float()).bfloat16()  # the value of code 8
    codes = (groups - offset.float()).div_(_divisor(scale)).round_().add_(8).clamp_(0, 15)
    packed = pack_int4(codes.view_as(weight).int())
    return packed, torch.cat((scale, offset), -1).transpose(0, 1).contiguous()


def _former_steps(groups: Tensor) -> Tensor:
    """Return the number of steps on which a group's weights lie already, or 0.

    A model that was in 4 bits before, as in a GGUF file, loses much if its levels are spread anew.
    """
    low, high = groups.aminmax(dim=-1, keepdim=True)
    found = torch.zeros_like(low)
    for steps in range(1, 16):
        places = (groups - low) * (steps / (high - low))
        # By chance, 32 weights come never all so close to levels.
        fits = (places - places.round()).abs().amax(-1, keepdim=True) < 0.1
        found = torch.where(fits & (found == 0), steps, found)
    return found


def _quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = (weight.abs().amax(1) / 127).bfloat16()
    codes = (weight / _divisor(scales)[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales


def _divisor(scale: Tensor) -> Tensor:
    """Return a scale to divide by: weights that are all the same have none."""
    divisor = scale.float()
    return torch.where(divisor == 0, 1.0, divisor)


def _slices(outputs: int, inputs: int) -> Iterator[slice]:
    rows = max(_ROWS, _SLICE // inputs // _ROWS * _ROWS)
    for start in range(0, outputs, rows):
        yield slice(start, min(start + rows, outputs))


def _product_dtype() -> torch.dtype:
    """Return the dtype in which this CPU multiplies many rows fastest."""
    return torch.bfloat16 if has_bf16_kernels() and has_bf16_instructions() else torch.float32
