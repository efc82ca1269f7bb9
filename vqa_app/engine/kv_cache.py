"""What is computed once: picture features by content, keys and values by token prefix.

Both stores are least-recently-used within a byte budget and belong to one engine, so the encoder
and the model need no place in their keys. Neither is thread-safe: the engine's worker alone uses
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

Identity: TypeAlias = "np.ndarray"
"""[tokens] int64: token ids, the tokens of a picture replaced by a number from its digest. Two
prompts agree up to where their identities do."""

CAPACITY_STEP = 64
"""Buffers grow by an eighth, in such steps: `cpu_decoder` reads what is not filled, too."""


def _buffer(like: Tensor, capacity: int, transposed: bool) -> Tensor:
    """Room for that many tokens, all zeros; `like` is [1, heads, tokens, width]."""
    batch, heads, _, width = like.shape
    shape = (width, capacity) if transposed else (capacity, width)
    return like.new_zeros((batch, heads, *shape))


class BufferLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers with room: appending copies only what is new,
    cropping nothing.

    With `transposed`, keys lie as [1, heads, width, capacity]: what a CPU multiplies one query with
    fastest.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = _buffer(key_states, 0, self.transposed)
        self.values = _buffer(value_states, 0, False)
        self.is_initialized = True

    @property
    def capacity(self) -> int:
        return self.values.shape[2] if self.is_initialized else 0

    def keys_view(self, length: int) -> Tensor:
        """The first keys as [1, heads, length, width]."""
        return self.keys[..., :length].mT if self.transposed else self.keys[:, :, :length]

    def reserve(self, length: int) -> None:
        """Makes room for that many tokens; called once the layer holds something."""
        if length <= self.capacity:
            return
        capacity = -(-max(length, self.capacity * 9 // 8) // CAPACITY_STEP) * CAPACITY_STEP
        keys, values = self.keys_view(self.length), self.values[:, :, : self.length]
        self.keys = _buffer(keys, capacity, self.transposed)
        self.values = _buffer(values, capacity, False)
        self.keys_view(self.length).copy_(keys)
        self.values[:, :, : self.length].copy_(values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends [1, heads, new, width] and returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        self.reserve(end)
        self.length = end
        self.keys_view(end)[:, :, start:].copy_(key_states)
        self.values[:, :, start:end].copy_(value_states)
        if start == 0:
            return key_states, value_states
        keys = self.keys_view(end)
        return keys.contiguous() if self.transposed else keys, self.values[:, :, :end]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """One token's keys and values [heads, width], behind the others; there is room for it."""
        end = self.length
        self.keys[0].select(2 if self.transposed else 1, end).copy_(keys)
        self.values[0].select(1, end).copy_(values)
        self.length = end + 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def copy(self, length: int) -> BufferLayer:
        """A layer of its own with the first `length` tokens."""
        twin = BufferLayer(self.transposed)
        if self.is_initialized:
            keys, values = self.keys_view(length), self.values[:, :, :length]
            twin.lazy_initialization(keys, values)
            twin.update(keys, values)
        return twin


class KVCache(Cache):
    """A transformers cache of `BufferLayer`s, for a batch of one."""

    def __init__(self, layers: Sequence[BufferLayer]) -> None:
        super().__init__(layers=list(layers))

    @classmethod
    def empty(cls, layers: int, transposed: bool = False) -> KVCache:
        return cls([BufferLayer(transposed) for _ in range(layers)])

    @property
    def length(self) -> int:
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        return sum(
            layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized
        )

    def reserve(self, length: int) -> None:
        for layer in self.layers:
            if layer.is_initialized:
                layer.reserve(length)

    def keep(self, length: int) -> None:
        """Forgets everything after the first `length` tokens; the buffers stay."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def differentiable(self, length: int) -> DynamicCache:
        """A copy of the first `length` tokens behind which autograd may go on."""
        twin = DynamicCache()
        for index, layer in enumerate(self.layers):
            keys, values = layer.keys_view(length).clone(), layer.values[:, :, :length].clone()
            twin.update(keys, values, index)
        return twin

    def copy(self, length: int) -> KVCache:
        return KVCache([layer.copy(length) for layer in self.layers])


def common_length(
    one: Identity, other: Identity, spans: Iterable[tuple[int, int]], limit: int
) -> int:
    """How many leading tokens two prompts share, at most `limit` and never part of a picture."""
    size = min(len(one), len(other), limit)
    differing = np.flatnonzero(one[:size] != other[:size])
    length = int(differing[0]) if len(differing) else size
    for start, end in spans:
        if start < length < end:
            return start
    return length


@dataclass(eq=False)
class _Entry:
    identity: Identity
    kv: KVCache


class PrefixCache:
    """Keys and values of the prompts that were read last.

    `take` hands a cache over for exclusive use, `put` brings it back with what it holds by then.
    Where a prompt leaves an entry's path, the smaller part is given up: a short tail is cut off,
    while of an entry whose tail is longer than what is shared the shared part is copied, so that
    the other conversation keeps its own.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.kv.nbytes for entry in self._entries)

    def take(
        self, identity: Identity, spans: Sequence[tuple[int, int]], limit: int
    ) -> KVCache | None:
        """The cache of the longest known prefix of a prompt, holding exactly that prefix; None
        without one.

        Args:
            spans: the prompt's pictures as [start, end); none is ever cut.
            limit: longest prefix wanted.
        """
        shared = self._shared(identity, spans, limit)
        if not any(shared):
            return None
        longest = max(range(len(shared)), key=lambda index: (shared[index], index))
        entry, length = self._entries[longest], shared[longest]
        if len(entry.identity) - length > length:
            return entry.kv.copy(length)
        del self._entries[longest]
        entry.kv.keep(length)
        return entry.kv

    def known(self, identity: Identity, spans: Sequence[tuple[int, int]], limit: int) -> int:
        """Length of the prefix that `take` would give."""
        return max(self._shared(identity, spans, limit), default=0)

    def _shared(
        self, identity: Identity, spans: Sequence[tuple[int, int]], limit: int
    ) -> list[int]:
        return [common_length(entry.identity, identity, spans, limit) for entry in self._entries]

    def put(self, identity: Identity, kv: KVCache) -> None:
        """Keeps a cache that holds exactly the tokens of `identity`, and forgets what no longer
        fits.
        """
        if len(identity) == 0:
            return
        assert kv.length == len(identity)
        self._entries = [
            entry
            for entry in self._entries
            if common_length(entry.identity, identity, (), len(identity)) < len(entry.identity)
        ]
        self._entries.append(_Entry(identity, kv))
        while self._entries and self.nbytes > self.budget:
            del self._entries[0]

    def clear(self) -> None:
        self._entries.clear()
