"""What a model's architecture allows, and a few values of its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig

from vqa_app.transformers_internals import (
    accepts_image_features,
    attends_to_all_previous_tokens,
    attention_implementation,
    has_croppable_cache,
)

FALLBACK_CONTEXT = 4096
"""Context length, in tokens, where neither the config nor the tokenizer gives one."""
_MAX_CONTEXT = 1 << 30
"""Tokenizers without a limit give a huge number instead."""

SQUARE_GRIDS = frozenset({"llava", "gemma3"})
"""Model types whose image tokens are one square grid in reading order."""
SIZED_GRIDS = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
"""Model types whose processor gives the size of the grid of image tokens."""

_OVERFLOWS_IN_FLOAT16 = frozenset(
    {"gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "glm4", "glm4v_text"}
)
"""Language models whose hidden states exceed 65,504. vLLM keeps such a list, too; Gemma 2, Gemma 3
and GLM-4 are on it."""


@dataclass(frozen=True)
class Capabilities:
    """What a model's architecture allows. Computed once, when the model is loaded."""

    context_length: int
    """Longest sequence, in tokens."""
    caches_features: bool
    """Image features computed earlier can be passed to `forward` and `generate`."""
    reuses_prefixes: bool
    """Keys and values of a prefix stay valid whatever follows, and can be cut at any token."""
    shares_prefixes: bool
    """Several continuations of one prefix can be computed in a batch from its keys and values."""
    trains_shared_prefixes: bool
    """Several questions behind one prefix can be trained as a single sequence."""
    stores_features: bool
    """The encoder gives every image the same number of features, ready for the projector."""
    maps_attention: bool
    """Images are a prefix of tokens on a known grid, so attention to them can be drawn."""

    @classmethod
    def of(cls, model: nn.Module, processor: Any) -> Capabilities:
        """Examine a model; one on the meta device is enough."""
        base = unwrap(model)
        config = base.config
        text = config.get_text_config(decoder=True)
        caches_features = accepts_image_features(base)
        reuses_prefixes = (
            caches_features
            and not config.is_encoder_decoder
            and has_croppable_cache(config)
            and getattr(text, "use_bidirectional_attention", None) in (None, False, "vision")
        )
        shares_prefixes = isinstance(config, LlavaConfig) and attends_to_all_previous_tokens(config)
        pads_images = getattr(getattr(processor, "image_processor", None), "do_pad", False)
        # LLaVA's processor pads to a square around the picture: the grid stays known.
        hides_grid = pads_images and not isinstance(config, LlavaConfig)
        return cls(
            context_length=context_length(config, processor.tokenizer),
            caches_features=caches_features,
            reuses_prefixes=reuses_prefixes,
            shares_prefixes=shares_prefixes,
            trains_shared_prefixes=shares_prefixes and attention_implementation(text) == "sdpa",
            stores_features=isinstance(base, LlavaForConditionalGeneration),
            maps_attention=reuses_prefixes
            and config.model_type in SQUARE_GRIDS | SIZED_GRIDS
            and not hides_grid,
        )


def context_length(config: PreTrainedConfig, tokenizer: Any) -> int:
    """Return the longest sequence that a model reads, in tokens."""
    text = config.get_text_config(decoder=True)
    length = getattr(text, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(length) if length < _MAX_CONTEXT else FALLBACK_CONTEXT


def unwrap(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper; its adapters stay active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]  # torch types attributes as tensors


def text_config(model: nn.Module) -> Any:
    """Return the language model's part of a model's config."""
    return unwrap(model).config.get_text_config()


def overflows_in_float16(config: PreTrainedConfig) -> bool:
    """Return whether a model is known to compute no numbers in float16."""
    return config.get_text_config().model_type in _OVERFLOWS_IN_FLOAT16


def mlp_width(config: Any) -> int:
    """Return the inner width of an encoder's or a language model's MLPs, the largest of them."""
    inner = getattr(config, "intermediate_size", None)
    if inner is None:
        width = getattr(config, "embed_dim", None) or config.hidden_size
        return int(width * getattr(config, "mlp_ratio", 4))
    return int(max(inner)) if isinstance(inner, list | tuple) else int(inner)  # Gemma 3n: a list


def feature_width(model: LlavaForConditionalGeneration) -> int:
    """Return the width of each image feature that goes into the projector."""
    config: Any = model.config
    layers = config.vision_feature_layer
    return int(config.vision_config.hidden_size) * (1 if isinstance(layers, int) else len(layers))
