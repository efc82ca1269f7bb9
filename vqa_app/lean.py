"""One token through a Llama-like decoder with as little between the matrices as possible.

`generate` spends much of a token's time outside the weights: modules, masks, rotary tables made
anew, caches concatenated. This forward pass does the same arithmetic for the layers it knows
(Llama, Mistral, Qwen2, Qwen3 and the text sides of Qwen2-VL and Qwen3-VL) and leaves all else to
the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_app.cache import KVCache
from vqa_app.packing import PackedLinear, multiplier

LAYERS = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2VLDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)
"""transformers classes that differ only in what `_Layer` holds."""
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn", "mrope"})
"""Rotary embeddings whose tables do not depend on the length of the text."""

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    before_attention: Tensor
    query: Linear
    key: Linear
    value: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    before_mlp: Tensor
    gate: Linear
    up: Linear
    down: Linear


class LeanDecoder:
    """Decodes token by token into a `KVCache` with transposed keys.

    Args:
        decoder: the language model without its head.
        head: its head.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module) -> None:
        config = decoder.config
        attention = decoder.layers[0].self_attn
        self._layers = [_layer(layer) for layer in decoder.layers]
        self._embedding = decoder.embed_tokens.weight
        self._norm, self._eps = decoder.norm.weight, decoder.norm.variance_epsilon
        self._head = multiplier(head)
        self._rotary = decoder.rotary_emb
        self._width = (config.hidden_size,)
        self._head_width = attention.head_dim
        self._kv_heads = config.num_key_value_heads
        self._scaling = attention.scaling
        self._cos = self._sin = self._embedding.new_empty((0, self._head_width))

    @classmethod
    def of(cls, model: Any) -> LeanDecoder | None:
        """The decoder of a vision-language model on a CPU; None if it is not of a known kind."""
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        return cls(decoder, head) if model.device.type == "cpu" and _known(decoder, head) else None

    def step(self, token: int, kv: KVCache, position: int) -> Tensor:
        """Appends a token and returns what comes next as logits [vocabulary].

        Args:
            position: its rotary position; its place in the cache except after M-RoPE pictures.
        """
        length = kv.length + 1
        kv.reserve(length)
        if position >= len(self._cos):
            self._extend_tables(position + 1)
        cos, sin = self._cos[position], self._sin[position]
        kv_heads, width, eps, scaling = self._kv_heads, self._width, self._eps, self._scaling
        heads = (-1, self._head_width)
        x = self._embedding[token : token + 1]  # [1, hidden]
        for layer, buffers in zip(self._layers, kv.layers, strict=True):
            y = F.rms_norm(x, width, layer.before_attention, eps)
            query, key = layer.query(y).view(heads), layer.key(y).view(heads)  # [heads, width]
            if layer.query_norm is not None:
                query = F.rms_norm(query, heads[1:], layer.query_norm, eps)
                key = F.rms_norm(key, heads[1:], layer.key_norm, eps)
            keys, values = buffers.keys[0], buffers.values[0]
            keys[:, :, length - 1] = _rotate(key, cos, sin)
            values[:, length - 1] = layer.value(y).view(heads)
            # The query heads that share a key head are the rows of one product: [kv heads, group,
            # width].
            query = _rotate(query, cos, sin).view(kv_heads, -1, heads[1])
            scores = torch.bmm(query, keys[:, :, :length]).mul_(scaling)
            weights = torch.softmax(scores, -1, dtype=torch.float32).to(x.dtype)
            attended = torch.bmm(weights, values[:, :length]).view(1, -1)
            x = x + layer.output(attended)
            y = F.rms_norm(x, width, layer.before_mlp, eps)
            x = x + layer.down(F.silu(layer.gate(y)).mul_(layer.up(y)))
            buffers.length = length
        return self._head(F.rms_norm(x, width, self._norm, eps))[0]

    def _extend_tables(self, length: int) -> None:
        """Rotary tables [positions, head width] from the model's own embedding, rounded as it
        does."""
        length = max(length, 2 * len(self._cos), 512)
        cos, sin = self._rotary(self._embedding[:1], torch.arange(length)[None])
        half = self._head_width // 2
        self._cos = cos[0].contiguous()
        # The sign of `rotate_half` in the table instead of a negation in every layer.
        self._sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat((second, first), -1), sin)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before_attention=layer.input_layernorm.weight,
        query=multiplier(attention.q_proj),
        key=multiplier(attention.k_proj),
        value=multiplier(attention.v_proj),
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        output=multiplier(attention.o_proj),
        before_mlp=layer.post_attention_layernorm.weight,
        gate=multiplier(mlp.gate_proj),
        up=multiplier(mlp.up_proj),
        down=multiplier(mlp.down_proj),
    )


def _known(decoder: Any, head: nn.Module) -> bool:
    """Whether `step` does what this decoder does."""
    layers = getattr(decoder, "layers", None)
    if not layers or {type(layer).__name__ for layer in layers} - LAYERS:
        return False
    config = decoder.config
    limit = config.max_position_embeddings
    matrices = [
        getattr(owner, name, None)
        for layer in layers
        for owner, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (layer.mlp, ("gate_proj", "up_proj", "down_proj")),
        )
        for name in names
    ]
    return (
        all(type(matrix) in (nn.Linear, PackedLinear) for matrix in (*matrices, head))
        and type(decoder.embed_tokens) is nn.Embedding
        and config.hidden_act == "silu"
        and getattr(decoder.rotary_emb, "rope_type", None) in ROPE_TYPES
        and (getattr(config, "sliding_window", None) or limit) >= limit
    )
