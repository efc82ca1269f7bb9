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

from vqa_app.engine.cpu_weights import PackedLinear, joint_multiplier, multiplier
from vqa_app.engine.kv_cache import BufferLayer, KVCache

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
    project: Linear
    """To queries, keys and values, one behind the other."""
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    before_mlp: Tensor
    gate: Linear
    up: Linear
    down: Linear


class LeanDecoder:
    """Decodes token by token into a `KVCache`.

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
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._head_width = attention.head_dim
        self._scaling = attention.scaling
        self._cos = self._sin = self._embedding.new_empty((0, self._head_width))
        self._swapped = torch.arange(self._head_width).roll(self._head_width // 2)
        self._eps_row = torch.full((1,), self._eps)
        self._per_width = 1 / config.hidden_size

    @classmethod
    def of(cls, model: Any) -> LeanDecoder | None:
        """The decoder of a vision-language model on a CPU; None if it is not of a known kind."""
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        return cls(decoder, head) if model.device.type == "cpu" and _known(decoder, head) else None

    @property
    def transposes_keys(self) -> bool:
        """How the keys must lie in its `KVCache`: see `_attend`."""
        return self._embedding.dtype == torch.float32

    def step(self, token: int, kv: KVCache, position: int) -> Tensor:
        """Appends a token and returns what comes next as logits [vocabulary].

        Args:
            position: its rotary position; its place in the cache except after M-RoPE pictures.
        """
        length = kv.length + 1
        kv.reserve(length)
        if position >= len(self._cos):
            self._extend_tables(position + 1)
        cos, sin, swapped = self._cos[position], self._sin[position], self._swapped
        heads, turned, width = self._heads, self._heads + self._kv_heads, self._head_width
        x = self._embedding[token : token + 1]  # [1, hidden]
        for layer, buffers in zip(self._layers, kv.layers, strict=True):
            # [query heads, then key heads, then value heads; width]
            projected = layer.project(self._normalize(x, layer.before_attention)).view(-1, width)
            rows = projected[:turned]
            if layer.query_norm is not None:
                query = F.rms_norm(rows[:heads], (width,), layer.query_norm, self._eps)
                key = F.rms_norm(rows[heads:], (width,), layer.key_norm, self._eps)
                rows = torch.cat((query, key))
            rows = torch.addcmul(rows * cos, rows.index_select(1, swapped), sin)
            buffers.append(rows[heads:], projected[turned:])
            x = x + layer.output(self._attend(rows[:heads], buffers))
            y = self._normalize(x, layer.before_mlp)
            x = x + layer.down(F.silu(layer.gate(y)).mul_(layer.up(y)))
        return self._head(self._normalize(x, self._norm))[0]

    def _normalize(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm of one row [1, hidden], in float32: its length is a product with itself."""
        y = x.float()
        scale = torch.addmv(self._eps_row, y, y[0], alpha=self._per_width).rsqrt_()
        return (y * scale).to(x.dtype).mul_(weight)

    def _attend(self, query: Tensor, buffers: BufferLayer) -> Tensor:
        """What one token's query heads [heads, width] find in a layer's cache: [1, heads x width].

        float32 products read part of a buffer where it lies. Those in bf16 would copy it first, so
        they take the whole of it, and what is not filled yet gets no weight.
        """
        length = buffers.length
        keys, values = buffers.keys[0], buffers.values[0]  # [kv heads, ...]
        # The query heads that share a key head are the rows of one product: [kv heads, group,
        # width].
        query = query.view(self._kv_heads, -1, self._head_width)
        if buffers.transposed:
            scores = torch.bmm(query, keys.narrow(2, 0, length)).mul_(self._scaling)
            weights = torch.softmax(scores, -1)
            return torch.bmm(weights, values.narrow(1, 0, length)).view(1, -1)
        scores = torch.bmm(query, keys.mT).mul_(self._scaling)  # [kv heads, group, capacity]
        scores[..., length:] = -torch.inf
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
        return torch.bmm(weights, values).view(1, -1)

    def _extend_tables(self, length: int) -> None:
        """Rotary tables [positions, head width] from the model's own embedding, rounded as it
        does.
        """
        length = max(length, 2 * len(self._cos), 512)
        cos, sin = self._rotary(self._embedding[:1], torch.arange(length)[None])
        half = self._head_width // 2
        self._cos = cos[0].contiguous()
        # The sign of `rotate_half` in the table instead of a negation in every layer.
        self._sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before_attention=layer.input_layernorm.weight,
        project=joint_multiplier([attention.q_proj, attention.k_proj, attention.v_proj]),
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
