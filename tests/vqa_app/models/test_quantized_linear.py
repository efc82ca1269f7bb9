"""Quantised layers compute what their codes say, in every shape that they accept."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from vqa_app import torch_internals
from vqa_app.models.quantized_linear import (
    GROUP,
    KERNEL_ROWS,
    Bits,
    QuantizedLinear,
    possible_bits,
    quantize,
    quantized_bytes,
)

SHAPES = [(32, 16), (96, 80), (192, 48), (160, 1040)]
"""Inputs and outputs, with and without a remainder after whole packed blocks."""


def layer_of(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def numbers(layer: QuantizedLinear) -> torch.Tensor:
    """Return the weight that the codes stand for, [out, in]."""
    return torch.cat([*layer.slices(torch.float32)], 1).t()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_that_of_the_numbers_that_the_codes_stand_for(
    shape: tuple[int, int], bits: Bits
) -> None:
    layer = QuantizedLinear.of(layer_of(*shape, bias=True), bits)
    for rows in (1, 3, KERNEL_ROWS, KERNEL_ROWS + 1, 100):
        x = torch.randn(rows, shape[0])
        expected = x.bfloat16().float() @ numbers(layer).t() + layer.bias
        torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("bits", "error"), [(4, 0.07), (8, 0.006)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_errors_are_those_of_so_many_bits(
    shape: tuple[int, int], bits: Bits, error: float
) -> None:
    linear = layer_of(*shape)
    difference = numbers(QuantizedLinear.of(linear, bits)) - linear.weight
    assert difference.norm() / linear.weight.norm() < error


@pytest.mark.parametrize("most", [15, 13, 8])
def test_weights_that_were_in_4_bits_before_keep_their_codes(most: int) -> None:
    """As in a GGUF file, of which most groups do not use all of the 16 levels."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, most + 1, (48, 64), generator=generator)
    codes[:, ::GROUP], codes[:, 1::GROUP] = 0, most
    scales = torch.rand(48, 2, 1, generator=generator) + 0.1
    linear = layer_of(64, 48)
    weight = (codes.view(48, 2, GROUP) - 8) * scales
    linear.weight = nn.Parameter(weight.view(48, 64).bfloat16().float(), requires_grad=False)
    difference = numbers(QuantizedLinear.of(linear, 4)) - linear.weight
    assert difference.abs().max() < 0.03  # half a step would be 0.05 to 0.55
    assert difference.norm() / linear.weight.norm() < 0.01


@pytest.mark.parametrize("bits", [4, 8])
def test_constant_and_zero_weights_stay_what_they_are(bits: Bits) -> None:
    linear = layer_of(64, 32)
    linear.weight.data[:16] = 0.0
    linear.weight.data[16:] = 0.5
    torch.testing.assert_close(
        numbers(QuantizedLinear.of(linear, bits)), linear.weight.data, rtol=4e-3, atol=0
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_are_no_numbers_give_results_that_are_none(bits: Bits) -> None:
    """So that the engine reports damaged weights as without quantisation."""
    linear = layer_of(64, 32)
    linear.weight.data[3, 5] = torch.nan
    assert QuantizedLinear.of(linear, bits)(torch.ones(1, 64))[0, 3].isnan()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_is_the_same_bits_alone_and_beside_others(bits: Bits) -> None:
    layer = QuantizedLinear.of(layer_of(160, 1040), bits)
    x = torch.randn(8, 160)
    together = layer(x)
    for rows in range(1, 8):
        assert torch.equal(layer(x[:rows]), together[:rows])
        assert torch.equal(layer(x[rows:]), together[rows:])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_are_computed_as_precisely_as_few(bits: Bits, dtype: torch.dtype) -> None:
    """Which product is used depends on the number of rows, and must not show in answers."""
    layer = QuantizedLinear.of(layer_of(160, 1040), bits)
    x = torch.randn(2 * KERNEL_ROWS, 160).to(dtype)
    many = layer(x)
    few = torch.cat([layer(x[:KERNEL_ROWS]), layer(x[KERNEL_ROWS:])])
    assert many.dtype == dtype
    torch.testing.assert_close(many, few, rtol=2**-7, atol=1e-5)  # one rounding to bfloat16
    assert (many != few).float().mean() < 0.02


def test_shapes_that_the_kernels_cannot_read_are_recognised() -> None:
    assert possible_bits(64, 32, 4) == 4
    assert possible_bits(64, 40, 4) == 8  # no multiple of 16 outputs
    assert possible_bits(48, 32, 4) == 8  # no whole groups
    assert possible_bits(40, 32, 4) is None
    assert possible_bits(40, 32, 8) is None  # the kernel would read past the end
    assert possible_bits(16, 5121, 8) == 8


def test_the_8_bit_kernel_is_never_called_with_inputs_that_it_reads_past_the_end_of() -> None:
    x, weight = torch.ones(1, 24).bfloat16(), torch.ones(8, 24, dtype=torch.int8)
    with pytest.raises(ValueError, match="multiple of 16"):
        torch_internals.int8_product(x, weight, torch.ones(8).bfloat16())


@pytest.mark.parametrize(("bits", "shape"), [*itertools.product((4, 8), SHAPES), (8, (16, 5121))])
def test_the_memory_is_what_was_predicted(bits: Bits, shape: tuple[int, int]) -> None:
    tensors = quantize(layer_of(*shape).weight, bits).values()
    assert sum(one.numel() * one.itemsize for one in tensors) == quantized_bytes(*shape, bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_of_the_input_is_that_of_an_ordinary_layer(bits: Bits) -> None:
    layer = QuantizedLinear.of(layer_of(96, 80, bias=True), bits)
    whole = layer.whole(torch.float32)
    x = torch.randn(2, 5, 96, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    (layer(x) ** 2).sum().backward()
    (whole(y) ** 2).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad, rtol=2e-2, atol=2e-2)


def test_the_order_of_packed_codes_is_found_out_for_every_size_of_block() -> None:
    generator = torch.Generator().manual_seed(0)
    for outputs in (16, 32, 48, 64, 80, 144, 208):
        codes = torch.randint(0, 16, (outputs, 64), generator=generator, dtype=torch.int32)
        packed = torch_internals.pack_int4(codes)
        assert torch.equal(torch_internals.unpack_int4(packed).t().int(), codes)
