"""How many prompts fit in memory at once.

A batch takes at most five eighths of the free memory: two eighths for the keys and values of the
prefixes, two for those of the rows selected from them (or for logits), and one for activations.
The rest is for what is not counted, such as the workspaces of kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vqa_app.devices import free_memory
from vqa_app.models.architecture import mlp_width, unwrap
from vqa_app.prompts.prompt import Prompt

MAX_ROWS = 128
"""Largest batch; larger ones are not faster."""
_MAX_CPU_BYTES = 1 << 30
"""Larger batches are no faster on a CPU, whose memory other programs need, too."""
_USUAL_PATCH_EDGE = 14
"""For encoders whose config gives none."""


def memory_budget(device: torch.device) -> int:
    """Return how many bytes the keys and values of a batch, or its logits, may take."""
    share = free_memory(device) // 4
    return min(share, _MAX_CPU_BYTES) if device.type == "cpu" else share


def max_batch_rows(model: Any, tokens: int) -> int:
    """Return for how many sequences of this length there is room for keys and values."""
    config = unwrap(model).config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_row = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * tokens
    return max(1, min(MAX_ROWS, memory_budget(model.device) // max(1, int(bytes_per_row))))


def max_rows_read(model: Any, tokens: int) -> int:
    """Return how many sequences of this length, without pictures, may be read at once."""
    return _rows_of(model, _decoder_bytes(model, tokens))


def max_prompts_read(model: Any, prompts: Sequence[Prompt], tokens: int) -> int:
    """Return how many of these prompts, cut to a number of tokens, may be read at once.

    The encoder reads all their pictures before the language model reads any token, so the larger
    of the two counts.
    """
    encoder = max((_encoder_bytes(model, prompt) for prompt in prompts), default=0)
    return _rows_of(model, max(encoder, _decoder_bytes(model, tokens)))


def _rows_of(model: Any, bytes_per_row: int) -> int:
    return max(1, min(MAX_ROWS, memory_budget(model.device) // 2 // max(1, bytes_per_row)))


def _decoder_bytes(model: Any, tokens: int) -> int:
    """Return about how many bytes one layer takes: gate, up and product, and some hidden states."""
    config = unwrap(model).config.get_text_config()
    numbers = tokens * (3 * mlp_width(config) + 8 * config.hidden_size)
    return int(numbers * model.dtype.itemsize)


def _encoder_bytes(model: Any, prompt: Prompt) -> int:
    """Return about how many bytes a prompt's pictures take; LLaVA keeps each layer's output."""
    config = getattr(unwrap(model).config, "vision_config", None)
    pixels = prompt.inputs.get("pixel_values")
    if config is None or pixels is None:
        return 0
    edge = getattr(config, "patch_size", None) or _USUAL_PATCH_EDGE
    edges = edge if isinstance(edge, Sequence) else (edge, edge)
    colours = 3 * getattr(config, "temporal_patch_size", 1)
    patches = pixels.numel() // (colours * edges[0] * edges[-1])
    # In Qwen-VL `hidden_size` may be the language model's.
    width = getattr(config, "embed_dim", None) or config.hidden_size
    layers = getattr(config, "num_hidden_layers", None) or getattr(config, "depth", None) or 0
    numbers = 3 * mlp_width(config) + (8 + layers) * width
    return int(patches * numbers * model.dtype.itemsize)
