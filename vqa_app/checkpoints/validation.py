"""Whether a model's config, weights and processor belong together, before any weight is loaded.

What transformers checks itself is not checked again: names and shapes of weights, value by value of
a config. But it builds whatever a config describes, and that may be far larger than the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vqa_app.checkpoints.weights import StoredTensor
from vqa_app.errors import ModelError
from vqa_app.prompts.prompt import image_token_id
from vqa_app.quiet import quiet

_HINT = "Its files do not belong together; download it again or choose another model."


def skeleton(name: str, config: Any) -> Any:
    """The model without memory for its weights.

    Raises:
        ModelError: no model can be built of this config.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"), quiet():
            return AutoModelForImageTextToText.from_config(config)
    except Exception as error:  # the model's own code, given values that nobody has checked
        reason = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"No model can be built of the config.json of {name}:"
            f" {type(error).__name__}: {reason[0][:200]}",
            _HINT,
        ) from error


def check_size(name: str, config: Any, tensors: Sequence[StoredTensor]) -> None:
    """Refuses a config that describes a far larger model than the files hold: with an empty
    `text_config` that is a Llama of 7 billion parameters, for which no memory was checked.

    Raises:
        ModelError: with both sizes.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # several weights in one stored number
    described = skeleton(name, config).num_parameters()
    stored = sum(tensor.size for tensor in tensors)
    if described > 2 * stored:
        raise ModelError(
            f"The config.json of {name} describes a model of {described:,} parameters; its files"
            f" hold {stored:,}.",
            _HINT,
        )


def check_pictures(name: str, config: Any, processor: Any) -> None:
    """Refuses a config under which no picture could be put in.

    Raises:
        ModelError: another image token than the processor writes, or features of a layer that the
            encoder does not have.
    """
    written = image_token_id(processor)
    for key in ("image_token_id", "image_token_index"):
        known = getattr(config, key, None)
        if isinstance(known, int) and known != written:
            raise ModelError(
                f"The config.json of {name} has the {key} {known}; its processor writes {written}.",
                _HINT,
            )
    layers = getattr(getattr(config, "vision_config", None), "num_hidden_layers", None)
    wanted = getattr(config, "vision_feature_layer", None)
    for layer in wanted if isinstance(wanted, list | tuple) else [wanted]:
        # -1 is the last of the layers' outputs, and in front of them stands the embedding.
        if layers is not None and layer is not None and not -layers - 1 <= layer <= layers:
            raise ModelError(
                f"The config.json of {name} has the vision_feature_layer {layer}; its encoder has"
                f" {layers} layers.",
                _HINT,
            )
