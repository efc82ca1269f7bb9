"""Decode one token with as little overhead between the matrix products as possible.

`generate` spends much of a token's time outside the products: in modules, masks, rotary tables
computed again and caches concatenated. This forward pass does the same arithmetic for the layers
that it supports (Llama, Mistral, Qwen2, Qwen3 and the language models of Qwen2-VL and Qwen3-VL).
Other models use their own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_app.engine.cpu_weights import PackedLinear, joint_linear_function, linear_function
from vqa_app.engine.kv_cache import BufferLayer, KVCache
from vqa_app.models.quantized_linear import QuantizedLinear

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
"""transformers classes that differ only in the fields of `_Layer`."""
MAX_ROWS = 8
"""Sequences decoded at once. With more, attention takes most of the time, which grows with them."""
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn", "mrope"})
"""Rotary embeddings whose tables do not depend on the length of the text."""


@dataclass(frozen=True)
class _Layer:
    """Weights of a decoder layer."""

    attention_norm: Tensor
    project: Callable[[Tensor], Tensor]
    """To queries, keys and values, in this order."""
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Callable[[Tensor], Tensor]
    mlp_norm: Tensor
    gate: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class CpuDecoder:
    """Decode token by token into a `KVCache`.

    Args:
        decoder: Language model without its head; `supports` must be true of both.
        head: Its output embedding.
    """

    def __init__(self, decoder: Any, head: Any) -> None:
        config = decoder.config
        attention = decoder.layers[0].self_attn
        self._layers = [_layer(layer) for layer in decoder.layers]
        self._embedding: Tensor = decoder.embed_tokens.weight
        self._norm: Tensor = decoder.norm.weight
        self._eps: float = decoder.norm.variance_epsilon
        self._head = linear_function(head)
        self._rotary = decoder.rotary_emb
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_width: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._cos = self._sin = self._embedding.new_empty((0, self._head_width))
        self._swapped = torch.arange(self._head_width).roll(self._head_width // 2)
        self._padding = _row_padding(self._layers[0], self._head, config, attention.head_dim)

    @classmethod
    def of(cls, model: Any) -> CpuDecoder | None:
        """Return the decoder of a vision-language model on a CPU; None if it is not supported."""
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        on_cpu = model.device.type == "cpu"
        return cls(decoder, head) if on_cpu and supports(decoder, head) else None

    @property
    def transposes_keys(self) -> bool:
        """Whether its `KVCache` must store keys transposed; see `_attend`."""
        return self._embedding.dtype == torch.float32

    def step(
        self, tokens: Sequence[int], caches: Sequence[KVCache], positions: Sequence[int]
    ) -> Tensor:
        """Append a token to each of several sequences; return the next logits, [rows, vocabulary].

        A row's logits are the same, bit for bit, whatever the other rows are; see `_padding`.

        Args:
            tokens: A token id for each sequence.
            caches: Caches of the tokens before them.
            positions: Their rotary positions: the index in the cache, except after M-RoPE pictures.
        """
        rows = len(tokens)
        for kv in caches:
            kv.reserve(kv.length + 1)
        if max(positions) >= len(self._cos):
            self._extend_tables(max(positions) + 1)
        spare = -rows % self._padding
        place = torch.tensor([*positions, *[0] * spare])
        cos, sin = self._cos[place, None], self._sin[place, None]  # [rows, 1, width]
        heads, rotated, width = self._heads, self._heads + self._kv_heads, self._head_width
        attended = cos.new_zeros(rows + spare, heads * width)
        x = self._embedding[torch.tensor([*tokens, *[0] * spare])]  # [rows, hidden]
        for index, layer in enumerate(self._layers):
            # [rows; query heads, key heads and value heads; width]
            projected = layer.project(self._normalize(x, layer.attention_norm))
            projected = projected.view(rows + spare, -1, width)
            turned = projected[:, :rotated]
            if layer.query_norm is not None:
                query = F.rms_norm(turned[:, :heads], (width,), layer.query_norm, self._eps)
                key = F.rms_norm(turned[:, heads:], (width,), layer.key_norm, self._eps)
                turned = torch.cat((query, key), 1)
            turned = torch.addcmul(turned * cos, turned.index_select(2, self._swapped), sin)
            for row, kv in enumerate(caches):
                buffers = kv.layers[index]
                buffers.append(turned[row, heads:], projected[row, rotated:])
                attended[row] = self._attend(turned[row, :heads], buffers)
            x = x + layer.output(attended)
            y = self._normalize(x, layer.mlp_norm)
            x = x + layer.down(F.silu(layer.gate(y)).mul_(layer.up(y)))
        return self._head(self._normalize(x, self._norm))[:rows]

    def _normalize(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply RMSNorm in float32 to rows [rows, hidden]."""
        y = F.rms_norm(x.float(), x.shape[-1:], None, self._eps)
        return y.to(x.dtype).mul_(weight)

    def _attend(self, query: Tensor, buffers: BufferLayer) -> Tensor:
        """Attend with one token's query heads [heads, width] to a layer's cache.

        float32 products can read part of a buffer in place. bfloat16 products would copy that part
        first, so they read the whole buffer and mask what is unused.

        Returns:
            [heads x width]
        """
        length = buffers.length
        keys, values = buffers.keys[0], buffers.values[0]  # [kv heads, ...]
        # Query heads that share a key head are the rows of one product: [kv heads, group, width].
        query = query.view(self._kv_heads, -1, self._head_width)
        if buffers.transposed:
            scores = torch.bmm(query, keys.narrow(2, 0, length)).mul_(self._scaling)
            weights = torch.softmax(scores, -1)
            return torch.bmm(weights, values.narrow(1, 0, length)).view(-1)
        scores = torch.bmm(query, keys.mT).mul_(self._scaling)  # [kv heads, group, capacity]
        scores[..., length:] = -torch.inf
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
        return torch.bmm(weights, values).view(-1)

    def _extend_tables(self, length: int) -> None:
        """Compute rotary tables [positions, head width] with the model's own embedding."""
        length = max(length, 2 * len(self._cos), 512)
        cos, sin = self._rotary(self._embedding[:1], torch.arange(length)[None])
        half = self._head_width // 2
        self._cos = cos[0].contiguous()
        # The sign of `rotate_half` is part of the table, which saves a negation in every layer.
        self._sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        attention_norm=layer.input_layernorm.weight,
        project=joint_linear_function([attention.q_proj, attention.k_proj, attention.v_proj]),
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        output=linear_function(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=linear_function(mlp.gate_proj),
        up=linear_function(mlp.up_proj),
        down=linear_function(mlp.down_proj),
    )


def _row_padding(layer: _Layer, head: Callable[[Tensor], Tensor], config: Any, width: int) -> int:
    """Return the number to whose multiples rows are padded to make each independent of the others.

    Kernels sum up in another order for one row than for several, or for a last few of them. Which
    numbers of rows agree depends on the processor, so it is tried with random rows, once.
    """
    generator = torch.Generator().manual_seed(0)
    dtype, hidden = layer.attention_norm.dtype, config.hidden_size
    functions = [
        (layer.project, hidden),
        (layer.output, config.num_attention_heads * width),
        (layer.gate, hidden),
        (layer.up, hidden),
        (layer.down, config.intermediate_size),
        (head, hidden),
    ]
    padding = 1
    for function, inputs in functions:
        x = torch.randn(MAX_ROWS, inputs, generator=generator).to(dtype)
        expected = function(x)
        while padding < MAX_ROWS and not all(
            torch.equal(function(x[:rows]), expected[:rows])
            for rows in range(padding, MAX_ROWS, padding)
        ):
            padding *= 2
    return padding


def supports(decoder: Any, head: nn.Module) -> bool:
    """Return whether `CpuDecoder` computes the same as this decoder and head."""
    layers = getattr(decoder, "layers", None)
    if not layers or {type(layer).__name__ for layer in layers} - LAYERS:
        return False
    config = decoder.config
    limit = config.max_position_embeddings
    linears = [
        getattr(owner, name, None)
        for layer in layers
        for owner, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (layer.mlp, ("gate_proj", "up_proj", "down_proj")),
        )
        for name in names
    ]
    return (
        all(
            type(linear) in (nn.Linear, PackedLinear, QuantizedLinear)
            for linear in (*linears, head)
        )
        and type(decoder.embed_tokens) is nn.Embedding
        and config.hidden_act == "silu"
        and getattr(decoder.rotary_emb, "rope_type", None) in ROPE_TYPES
        and (getattr(config, "sliding_window", None) or limit) >= limit
    )
