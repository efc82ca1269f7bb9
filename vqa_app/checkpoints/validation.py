"""Check that a model's config, weights and processor match before any weight is loaded.

Transformers itself checks names and shapes of weights and the values of a config. But it builds
whatever model a config describes, which may be far larger than the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vqa_app.checkpoints.weights import StoredTensor
from vqa_app.errors import ModelError, library_reason
from vqa_app.prompts.prompt import image_token_id
from vqa_app.quiet import quiet

_HINT = "Its files do not match; download it again or choose another model."


def skeleton(name: str, config: Any) -> Any:
    """Build the model on the meta device, without memory for its weights.

    Raises:
        ModelError: No model can be built from this config.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    from vqa_app.transformers_internals import without_sharding

    try:
        with torch.device("meta"), without_sharding(), quiet():
            return AutoModelForImageTextToText.from_config(config)
    except Exception as error:  # the model's code may raise anything for unchecked values
        raise ModelError(
            f"Could not build a model from the config.json of {name}{library_reason(error, 200)}",
            _HINT,
        ) from error


def check_size(name: str, config: Any, tensors: Sequence[StoredTensor]) -> None:
    """Check that a config does not describe a far larger model than is in the files.

    An empty `text_config`, for example, describes a Llama with 7 billion parameters, for which the
    memory was not checked.

    Raises:
        ModelError: The described model is more than twice as large.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # a stored number then holds several weights
    described = skeleton(name, config).num_parameters()
    stored = sum(tensor.size for tensor in tensors)
    if described > 2 * stored:
        raise ModelError(
            f"The config.json of {name} describes {described:,} parameters, but its files contain"
            f" {stored:,}.",
            _HINT,
        )


def check_pictures(name: str, config: Any, processor: Any) -> None:
    """Check that pictures can be used with a config.

    Raises:
        ModelError: The image token differs from the processor's, or the features are taken from a
            layer that the encoder does not have.
    """
    expected = image_token_id(processor)
    for key in ("image_token_id", "image_token_index"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value != expected:
            raise ModelError(
                f"The config.json of {name} has the {key} {value}, but its processor uses"
                f" {expected}.",
                _HINT,
            )
    layers = getattr(getattr(config, "vision_config", None), "num_hidden_layers", None)
    selected = getattr(config, "vision_feature_layer", None)
    for layer in selected if isinstance(selected, list | tuple) else [selected]:
        # The hidden states are the embedding's output, followed by those of the layers.
        if layers is not None and layer is not None and not -layers - 1 <= layer <= layers:
            raise ModelError(
                f"The config.json of {name} has the vision_feature_layer {layer}, but its encoder"
                f" has {layers} layers.",
                _HINT,
            )
