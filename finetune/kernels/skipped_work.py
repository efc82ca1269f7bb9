"""Work that a training step leaves out without changing its loss."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad


def cast_inputs_once(model: nn.Module) -> None:
    """Under autocast every linear layer casts its input for itself: that of the query, key and
    value layers three times, and twice more in each layer's LoRA branch. Here the first one's is
    taken by the others.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    cast = _CastOnce()
    inside: set[int] = set()
    for module in model.modules():
        layer = module
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False
            inside |= {id(part) for part in module.modules()}
            layer = module.get_base_layer()
        elif id(module) in inside:
            continue
        if type(layer) is nn.Linear:  # 4- and 8-bit layers have a way of their own
            module.register_forward_pre_hook(cast)


class _CastOnce:
    """A forward pre-hook: an fp32 input becomes autocast's dtype, once for all who take it."""

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
    """Autocast casts frozen fp32 weights at every forward pass. On CPUs, where the models whose
    weights are fp32 are small, the cast ones are kept beside them.
    """
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.requires_grad:
            continue
        if module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            weight = module.weight.detach().bfloat16()
            bias = None if module.bias is None else module.bias.detach().bfloat16()
            module.forward = partial(_cast_linear, module.forward, weight, bias)


def _cast_linear(plain: Any, weight: Tensor, bias: Tensor | None, given: Tensor) -> Tensor:
    if given.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu"):
        return linear(given, weight, bias)
    return plain(given)


def pad_rows(rows: Tensor, value: float = 0) -> Tensor:
    """[n, ...] with up to an eighth or fifteen rows more: a CPU's kernels are prepared, and kept,
    once for every size that occurs, and how many tokens are trained is another in every batch.
    """
    count = len(rows)
    step = max(16, 1 << count.bit_length() >> 4)
    more = -count % step
    return torch.cat([rows, rows.new_full((more, *rows.shape[1:]), value)]) if more else rows


class TrainedTokensMlp:
    """What the last layer's MLP gives for tokens that predict nothing trained is never looked at:
    it computes the others only.
    """

    def __init__(self, llm: nn.Module) -> None:
        """Args:
        llm: without its head; one whose layers are built otherwise is left as it is.
        """
        self._wanted: Tensor | None = None
        self._places: Tensor | None = None
        layers = getattr(llm, "layers", None)
        mlp = getattr(layers[-1], "mlp", None) if layers else None
        if type(mlp).__name__.endswith("MLP"):  # no mixture of experts
            mlp.register_forward_pre_hook(self._take)
            mlp.register_forward_hook(self._put_back)

    @contextmanager
    def only(self, trained: Tensor) -> Iterator[None]:
        """Within this, the MLP computes what is trained and nothing else.

        Args:
            trained: [batch, tokens - 1] bool, which tokens' successors are trained.
        """
        self._wanted = pad(trained, (0, 1))  # [batch, tokens]
        self._places = self._wanted.flatten().nonzero()[:, 0]  # [trained tokens]
        try:
            yield
        finally:
            self._wanted = None

    def _take(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._wanted is None:
            return None
        taken = pad_rows(inputs[0].flatten(0, 1)[self._places])
        return (taken[None], *inputs[1:])  # [1, trained tokens and some more, width]

    def _put_back(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._wanted is None:
            return None
        whole = output.new_zeros(self._wanted.numel(), output.shape[-1])
        whole = whole.index_copy(0, self._places, output[0, : len(self._places)])
        return whole.view(*self._wanted.shape, -1)  # [batch, tokens, width]
