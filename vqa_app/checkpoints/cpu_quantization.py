"""Quantise a model for a CPU while it is loaded, and keep the result on disk.

Layers of the language model get 4 or 8 bits, its head 8; encoder, projector and embeddings stay
whole. Each weight is quantised as soon as it is read, so that never more than one of them is whole.
That takes a core about 12 seconds for a billion weights, so the result of a large model is kept in
the user's cache, under the fingerprint of its weights.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vqa_app.checkpoints.weights import model_files, stored_tensors
from vqa_app.errors import InsufficientMemoryError, ModelError, UsageError
from vqa_app.files import atomic_directory, remove_unused, write_error_reason
from vqa_app.models.anatomy import Anatomy, anatomy
from vqa_app.models.quantized_linear import (
    Bits,
    QuantizedLinear,
    possible_bits,
    quantize,
    quantized_bytes,
)
from vqa_app.torch_internals import int4_layout
from vqa_app.transformers_internals import (
    ConversionOps,
    HfQuantizer,
    QuantizationConfigMixin,
    register_quantization_config,
    register_quantizer,
)
from vqa_app.user_folders import user_cache

log = logging.getLogger(__name__)

KEPT_WEIGHTS = 500_000_000
"""Quantised weights from which on they are kept on disk; fewer are made again in a few seconds."""
_METHOD = "vqa-app-cpu"
_VERSION = 1
"""Of what is kept on disk; another one is not read."""
_NOTABLE_SHARE = 0.1
"""Share of the language model's weights that cannot be quantised without a warning."""


@register_quantization_config(_METHOD)
class CpuQuantizationConfig(QuantizationConfigMixin):
    """The argument for `from_pretrained`; transformers keeps it in the model's config.

    Args:
        bits: 4 or 8.
        others: What other versions have written.
    """

    def __init__(self, bits: Bits, **others: Any) -> None:
        self.quant_method: Any = _METHOD
        self.bits: Bits = bits


@register_quantizer(_METHOD)
class CpuQuantizer(HfQuantizer):
    """Replaces layers before the weights are read, and quantises each weight on the way."""

    quantization_config: CpuQuantizationConfig

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Return whether a tensor of a checkpoint is to be quantised."""
        owner, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(owner), QuantizedLinear)

    def get_quantize_ops(self) -> ConversionOps:
        """Return what is done to such a tensor."""
        return _Quantize()

    def is_serializable(self) -> bool:
        """Return whether the model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether it can be trained."""
        return False

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        for name, bits in layers_to_quantize(model, self.quantization_config.bits).items():
            layer = model.get_submodule(name)
            replacement = QuantizedLinear(
                layer.in_features, layer.out_features, bits, layer.bias, device="meta"
            )
            model.set_submodule(name, replacement)


class _Quantize(ConversionOps):
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        """Turn a weight into the tensors of its `QuantizedLinear`."""
        found: dict[str, list[Tensor]] = {}
        for name, value in input_dict.items():
            owner = name.rpartition(".")[0]
            weight = value[0] if isinstance(value, list) else value
            tensors = quantize(weight, kwargs["model"].get_submodule(owner).bits)
            found |= {f"{owner}.{part}": [tensor] for part, tensor in tensors.items()}
        return found


def load_quantized(
    load: Callable[[Path, Any, dict[str, Any]], Any],
    name: str,
    directory: Path,
    config: Any,
    dtype: torch.dtype,
    bits: Bits,
    fingerprint: str,
) -> Any:
    """Load a model with quantised layers, from the copy on disk if there is one.

    Args:
        load: Calls `from_pretrained` with a folder, a config and further options.
        name: The model's name in messages.
        directory: Its folder.
        config: Its config.
        dtype: Precision of what is not quantised.
        bits: 4 or 8.
        fingerprint: Identifies its weights.

    Raises:
        ModelError: `load` fails, or no layer can be quantised.
    """
    try:
        kept = kept_folder(fingerprint, dtype, bits)
    except UsageError:  # this user has no home folder
        kept = None
    model = None if kept is None else _load_kept(load, name, kept, config, dtype, bits)
    if model is None:
        options = {"dtype": dtype, "quantization_config": CpuQuantizationConfig(bits)}
        model = load(directory, config, options)
        weights = _count_quantized(model, name)
        if kept is not None and weights >= KEPT_WEIGHTS:
            _keep(model, name, kept)
    _quantize_head(model)
    return model


def kept_folder(fingerprint: str, dtype: torch.dtype, bits: Bits) -> Path:
    """Return where the quantised weights of a model are kept."""
    precision = str(dtype).removeprefix("torch.")
    layout = int4_layout() if bits == 4 else "rows"
    return user_cache("quantized") / f"{fingerprint}-{bits}bit-{precision}-{layout}-v{_VERSION}"


def layers_to_quantize(model: Any, bits: Bits) -> dict[str, Bits]:
    """Return the names of the language model's layers that can be quantised, with their bits."""
    return {
        name: possible
        for name, layer in _language_layers(model, anatomy(model))
        if (possible := possible_bits(layer.in_features, layer.out_features, bits))
    }


def quantized_model_bytes(model: Any, dtype: torch.dtype, bits: Bits) -> int:
    """Return the memory that a model takes up after quantisation.

    Args:
        model: The whole model; its skeleton on the meta device is enough.
        dtype: Precision of what is not quantised.
        bits: 4 or 8.
    """
    layers = layers_to_quantize(model, bits)
    head = anatomy(model).head
    if head and _head_can_be_quantized(model.get_submodule(head)):
        layers[head] = 8
    total: int = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    embedding = model.get_input_embeddings().weight
    for name, its_bits in layers.items():
        layer = model.get_submodule(name)
        total += quantized_bytes(layer.in_features, layer.out_features, its_bits)
        if layer.weight is not embedding:  # a shared weight stays, as the embedding's
            total -= layer.weight.numel() * dtype.itemsize
    return total


def _language_layers(model: Any, parts: Anatomy) -> list[tuple[str, nn.Linear]]:
    whole = tuple(f"{name}." for name in parts.never_quantized)
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear
        and name.startswith(f"{parts.language_model}.")
        and not f"{name}.".startswith(whole)
    ]


def _count_quantized(model: Any, name: str) -> int:
    """Return the number of quantised weights; warn if it is much less than there are.

    Raises:
        ModelError: There are none.
    """
    whole = _language_layers(model, anatomy(model))
    found = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    count = sum(layer.in_features * layer.out_features for layer in found)
    if not count:
        raise ModelError(
            f"No layer of {name} can be quantised: their inputs are no multiples of 16.",
            "Leave out --quantize.",
        )
    left = sum(layer.weight.numel() for _, layer in whole)
    if left > _NOTABLE_SHARE * (count + left):
        share = left / (count + left)
        log.warning("%.0f %% of the weights of %s cannot be quantised.", 100 * share, name)
    return count


def _head_can_be_quantized(head: nn.Module) -> bool:
    return type(head) is nn.Linear and possible_bits(head.in_features, head.out_features, 8) == 8


def _quantize_head(model: Any) -> None:
    """Replace the output embedding, after the weights that it may share have been tied."""
    name = anatomy(model).head
    if name and _head_can_be_quantized(head := model.get_submodule(name)):
        model.set_submodule(name, QuantizedLinear.of(head, 8))


def _load_kept(
    load: Callable[[Path, Any, dict[str, Any]], Any],
    name: str,
    folder: Path,
    config: Any,
    dtype: torch.dtype,
    bits: Bits,
) -> Any | None:
    """Load the copy on disk; None if there is none, or it is damaged and was deleted."""
    if not folder.is_dir():
        return None
    config = copy.deepcopy(config)
    config.quantization_config = CpuQuantizationConfig(bits).to_dict()
    try:
        for _ in stored_tensors(model_files(folder)):
            pass  # raises for a file that was cut off or overwritten
        model = load(folder, config, {"dtype": dtype})
        os.utime(folder)  # see `remove_unused`
    except InsufficientMemoryError:
        raise
    except (ModelError, OSError) as error:
        log.warning("The quantised copy of %s is damaged and is made again: %s", name, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return model


def _keep(model: Any, name: str, folder: Path) -> None:
    """Save a quantised model on disk, if there is room for it."""
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    try:
        remove_unused(folder.parent)
        if shutil.disk_usage(folder.parent).free < 2 * size:
            log.info("Too little space in %s to keep the quantised %s.", folder.parent, name)
            return
        with atomic_directory(folder) as unfinished:
            model.save_pretrained(unfinished)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = write_error_reason(error) or str(error)
        log.warning("The quantised copy of %s is not kept in %s: %s.", name, folder, reason)
