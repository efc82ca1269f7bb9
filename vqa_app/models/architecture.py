"""What training asks of a model's architecture."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
)

FALLBACK_CONTEXT = 4096
"""Of models whose config names none."""


def plain(model: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper; adapters stay active in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: nn.Module) -> Any:
    """The LLM's part of the model's config."""
    return plain(model).config.get_text_config()


def context_length(config: Any) -> int:
    """Tokens that a model of this config reads at most."""
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    return known or FALLBACK_CONTEXT


def feature_width(base: LlavaForConditionalGeneration) -> int:
    """How wide each image feature is that the projector is given."""
    layers = base.config.vision_feature_layer
    return base.config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))


def shares_prefixes(model: nn.Module) -> bool:
    """Whether several continuations of one prefix can be computed from its keys and values."""
    return config_shares_prefixes(plain(model).config)


def config_shares_prefixes(config: PretrainedConfig) -> bool:
    """`shares_prefixes` of a model that isn't loaded."""
    if not isinstance(config, LlavaConfig):
        return False
    cache = DynamicCache(config=config)
    return not any(cache.is_sliding) and not any(cache.is_linear)
