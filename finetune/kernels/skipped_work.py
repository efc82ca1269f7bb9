"""Redundant work that a training step skips without changing its loss."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad


def cast_inputs_once(model: nn.Module) -> None:
    """Share the cast input among linear layers that have the same one.

    Under autocast every linear layer casts its own input: the query, key and value layers cast the
    same tensor three times, and each LoRA branch once more. Here the first layer's result is used
    by the others.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    lora_layer: Any = BaseTunerLayer  # its subclasses are modules
    cast = _CastOnce()
    inside: set[int] = set()
    module: Any
    for module in model.modules():
        layer = module
        if isinstance(module, lora_layer):
            module.cast_input_dtype_enabled = False
            inside |= {id(part) for part in module.modules()}
            layer = module.get_base_layer()
        elif id(module) in inside:
            continue
        if type(layer) is nn.Linear:  # 4- and 8-bit layers cast in their own way
            module.register_forward_pre_hook(cast)


class _CastOnce:
    """Forward pre-hook that casts a float32 input to autocast's dtype once for several layers."""

    def __init__(self) -> None:
        self.latest: tuple[weakref.ref[Tensor], Tensor] | None = None

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        given = inputs[0]
        kind = given.device.type
        if given.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
            return None
        if self.latest is None or self.latest[0]() is not given:
            self.latest = weakref.ref(given), given.to(torch.get_autocast_dtype(kind))
        return (self.latest[1], *inputs[1:])


def cast_weights_once(model: nn.Module) -> None:
    """Keep bfloat16 copies of frozen float32 weights on CPUs.

    Autocast would cast them in every forward pass. Models with float32 weights on CPUs are small,
    so there is memory for both.
    """
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.requires_grad:
            continue
        if module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            weight = module.weight.detach().bfloat16()
            bias = None if module.bias is None else module.bias.detach().bfloat16()
            forward = partial(_cast_linear, module.forward, weight, bias)
            setattr(module, "forward", forward)  # noqa: B010  # mypy rejects assigning to a method


def _cast_linear(
    forward: Callable[[Tensor], Tensor], weight: Tensor, bias: Tensor | None, x: Tensor
) -> Tensor:
    """Apply a linear layer with its cast weight under autocast, else its own `forward`."""
    if x.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu"):
        return linear(x, weight, bias)
    return forward(x)


def pad_rows(rows: Tensor, value: float = 0) -> Tensor:
    """Append up to fifteen rows, or an eighth, to a tensor [n, ...].

    CPU kernels are prepared and kept for every size that occurs, and the number of trained tokens
    differs from batch to batch; padding leaves few sizes.
    """
    count = len(rows)
    step = max(16, 1 << count.bit_length() >> 4)
    more = -count % step
    return torch.cat([rows, rows.new_full((more, *rows.shape[1:]), value)]) if more else rows


class TrainedTokensMlp:
    """Compute the last layer's MLP only for tokens whose successors are trained.

    Its output at other tokens is never used.

    Args:
        llm: Language model without its head; one whose layers have another structure is left as it
            is.
    """

    def __init__(self, llm: Any) -> None:
        self._trained: tuple[Tensor, Tensor] | None = None
        layers = getattr(llm, "layers", None)
        mlp = getattr(layers[-1], "mlp", None) if layers else None
        if mlp is not None and type(mlp).__name__.endswith("MLP"):  # no mixture of experts
            mlp.register_forward_pre_hook(self._select)
            mlp.register_forward_hook(self._scatter)

    @contextmanager
    def only(self, trained: Tensor) -> Iterator[None]:
        """Restrict the MLP to trained tokens inside a `with` block.

        Args:
            trained: Which tokens' successors are trained, [batch, tokens - 1] bool.
        """
        mask = pad(trained, (0, 1))  # [batch, tokens]
        self._trained = mask, mask.flatten().nonzero()[:, 0]  # and the indices of its true values
        try:
            yield
        finally:
            self._trained = None

    def _select(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._trained is None:
            return None
        selected = pad_rows(inputs[0].flatten(0, 1)[self._trained[1]])
        return (selected[None], *inputs[1:])  # [1, trained tokens and padding, width]

    def _scatter(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._trained is None:
            return None
        trained, indices = self._trained
        whole = output.new_zeros(trained.numel(), output.shape[-1])
        whole = whole.index_copy(0, indices, output[0, : len(indices)])
        return whole.view(*trained.shape, -1)  # [batch, tokens, width]
