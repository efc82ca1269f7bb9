"""KV caches: growing buffers for one sequence, and a store of them by token prefix.

The store keeps the most recently used caches within a memory budget. It belongs to one engine, so
its keys need neither the encoder nor the model. Only the engine's worker uses it, but other engines
with the same budget may drop its entries.

Tried with transformers 5.23.0 and 5.24.0, whose cache classes are subclassed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from vqa_app.engine.cache_budget import CacheBudget

if TYPE_CHECKING:
    from numpy.typing import NDArray

CacheKey: TypeAlias = "NDArray[np.int64]"
"""[tokens]: token ids, with the tokens of a picture replaced by a number from its digest. Two
prompts share a prefix as far as their keys are equal."""

CAPACITY_STEP = 64
"""Buffers grow by an eighth, rounded up to this: `cpu_decoder` also reads the unused part."""


def _buffer(like: Tensor, capacity: int, transposed: bool) -> Tensor:
    """Return zeros with room for `capacity` tokens; `like` is [1, heads, tokens, width]."""
    batch, heads, _, width = like.shape
    shape = (width, capacity) if transposed else (capacity, width)
    return like.new_zeros((batch, heads, *shape))


class BufferLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' own
    """Keys and values of one layer in buffers with spare room.

    Appending copies only the new tokens, and cropping copies nothing.

    Args:
        transposed: Store keys as [1, heads, width, capacity], the layout in which a CPU multiplies
            a single query fastest.
    """

    keys: Tensor
    values: Tensor
    is_sliding = False
    is_croppable = True

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' own
        self.transposed = transposed
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Create empty buffers for states of this shape, dtype and device."""
        self.keys = _buffer(key_states, 0, self.transposed)
        self.values = _buffer(value_states, 0, False)
        self.is_initialized = True

    @property
    def capacity(self) -> int:
        """Number of tokens that fit into the buffers."""
        return self.values.shape[2] if self.is_initialized else 0

    def keys_view(self, length: int) -> Tensor:
        """Return the first keys as [1, heads, length, width]."""
        return self.keys[..., :length].mT if self.transposed else self.keys[:, :, :length]

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in an initialised layer."""
        if length <= self.capacity:
            return
        capacity = -(-max(length, self.capacity * 9 // 8) // CAPACITY_STEP) * CAPACITY_STEP
        keys, values = self.keys_view(self.length), self.values[:, :, : self.length]
        # Both before either is replaced: without memory for the second, nothing has changed.
        larger = _buffer(keys, capacity, self.transposed), _buffer(values, capacity, False)
        self.keys, self.values = larger
        self.keys_view(self.length).copy_(keys)
        self.values[:, :, : self.length].copy_(values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states [1, heads, new, width] and return all keys and values."""
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
        """Append one token's keys and values [heads, width]; there must be room for it."""
        end = self.length
        self.keys[0].select(2 if self.transposed else 1, end).copy_(keys)
        self.values[0].select(1, end).copy_(values)
        self.length = end + 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that a mask covers, and its offset."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def copy(self, length: int) -> BufferLayer:
        """Return an independent layer with the first `length` tokens."""
        twin = BufferLayer(self.transposed)
        if self.is_initialized:
            keys, values = self.keys_view(length), self.values[:, :, :length]
            twin.lazy_initialization(keys, values)
            twin.update(keys, values)
        return twin


class KVCache(Cache):
    """A transformers cache of `BufferLayer`s, for a batch of one."""

    layers: list[BufferLayer]  # type: ignore[assignment]  # never another kind

    def __init__(self, layers: Sequence[BufferLayer]) -> None:
        super().__init__(layers=list(layers))

    @classmethod
    def empty(cls, layers: int, transposed: bool = False) -> KVCache:
        """Create a cache without tokens; see `BufferLayer` for `transposed`."""
        return cls([BufferLayer(transposed) for _ in range(layers)])

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        """Memory, in bytes, spare room included."""
        return sum(
            layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized
        )

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.reserve(length)

    def truncate(self, length: int) -> None:
        """Drop everything after the first `length` tokens; the buffers stay."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def to_dynamic(self, length: int) -> DynamicCache:
        """Return the first `length` tokens as a copy through which autograd can go."""
        twin = DynamicCache()
        for index, layer in enumerate(self.layers):
            keys, values = layer.keys_view(length).clone(), layer.values[:, :, :length].clone()
            twin.update(keys, values, index)
        return twin

    def copy(self, length: int) -> KVCache:
        """Return an independent cache with the first `length` tokens."""
        return KVCache([layer.copy(length) for layer in self.layers])


def bytes_per_token(config: Any, itemsize: int) -> int:
    """Return the memory of one token's keys and values in all layers, in bytes.

    Args:
        config: The model's config.
        itemsize: Size of a number, in bytes.
    """
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width * itemsize)


def common_length(
    one: CacheKey, other: CacheKey, spans: Iterable[tuple[int, int]], limit: int
) -> int:
    """Return how many leading tokens two prompts share, never ending inside a picture.

    Args:
        one: Key of a prompt.
        other: Key of another prompt.
        spans: The pictures' tokens as [start, end).
        limit: Longest prefix to return.
    """
    size = min(len(one), len(other), limit)
    differing = np.flatnonzero(one[:size] != other[:size])
    length = int(differing[0]) if len(differing) else size
    for start, end in spans:
        if start < length < end:
            return start
    return length


@dataclass(eq=False)
class _Entry:
    key: CacheKey
    kv: KVCache
    nbytes: int = 0
    used: int = 0


class PrefixCache:
    """KV caches of the most recent prompts.

    `take` hands a cache over for exclusive use, `put` returns it with its new content. If a prompt
    follows only part of an entry, the smaller part is lost: a short tail is cut off, but if the
    tail is longer than the shared part, the shared part is copied, so that the other conversation
    keeps its cache. The prompt of a sequence that is being decoded can be copied too, after `lend`.

    Args:
        budget: Memory that may be used, lent caches included; the oldest entries are dropped.
    """

    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self._entries: list[_Entry] = []
        self._lent: WeakKeyDictionary[KVCache, CacheKey] = WeakKeyDictionary()
        budget.register(self)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Memory of all entries and of caches that are lent, in bytes."""
        lent = sum(kv.nbytes for kv in self._lent)
        return lent + sum(entry.nbytes for entry in self._entries)

    @property
    def oldest(self) -> int | None:
        """See `vqa_app.engine.cache_budget.Cache`."""
        return self._entries[0].used if self._entries else None

    def take(self, key: CacheKey, spans: Sequence[tuple[int, int]], limit: int) -> KVCache | None:
        """Return a cache that holds exactly the longest cached prefix of a prompt; None if none.

        Args:
            key: The prompt's key.
            spans: The prompt's pictures as [start, end), which are never cut.
            limit: Longest prefix to return.
        """
        with self._budget.lock:
            lent = [_Entry(own_key, kv) for kv, own_key in self._lent.items()]
            entries = [*lent, *self._entries]  # of equally good ones the latest entry
            shared = [common_length(entry.key, key, spans, limit) for entry in entries]
            if not any(shared):
                return None
            longest = max(range(len(shared)), key=lambda index: (shared[index], index))
            entry, length = entries[longest], shared[longest]
            copied = longest < len(lent) or len(entry.key) - length > length
            if not copied:
                self._entries.remove(entry)
        if copied:
            return entry.kv.copy(length)
        entry.kv.truncate(length)
        return entry.kv

    def match_length(self, key: CacheKey, spans: Sequence[tuple[int, int]], limit: int) -> int:
        """Return the length of the prefix that `take` would return."""
        with self._budget.lock:
            keys = [*self._lent.values(), *(entry.key for entry in self._entries)]
            return max((common_length(one, key, spans, limit) for one in keys), default=0)

    def lend(self, key: CacheKey, kv: KVCache) -> None:
        """Let others copy the first tokens of a cache, those of `key`, while it is being used."""
        with self._budget.lock:
            self._lent[kv] = key
            self._budget.trim()

    def take_back(self, kv: KVCache) -> None:
        """End what `lend` began."""
        with self._budget.lock:
            self._lent.pop(kv, None)

    def put(self, key: CacheKey, kv: KVCache) -> None:
        """Add a cache that holds exactly the tokens of `key`, and drop entries over the budget."""
        if len(key) == 0:
            return
        assert kv.length == len(key)
        with self._budget.lock:
            self._entries = [
                entry
                for entry in self._entries
                if common_length(entry.key, key, (), len(key)) < len(entry.key)
            ]
            self._entries.append(_Entry(key, kv, kv.nbytes, self._budget.now()))
            self._budget.trim()

    def drop_oldest(self) -> None:
        """Drop the entry that was put first."""
        del self._entries[0]

    def clear(self) -> None:
        """Drop all entries; caches that are being used stay."""
        with self._budget.lock:
            self._entries.clear()
