"""Caches of image features and of prefixes' keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vqa_app.engine import kv_cache
from vqa_app.engine.cache_budget import CacheBudget
from vqa_app.engine.feature_cache import FeatureCache, ImageFeatures
from vqa_app.engine.kv_cache import KVCache, PrefixCache, common_length

LAYERS, HEADS, WIDTH = 2, 2, 4


def states(tokens: range) -> torch.Tensor:
    """States [1, heads, tokens, width] whose values are the tokens' numbers."""
    numbers = torch.tensor(list(tokens), dtype=torch.float32)
    return numbers.view(1, 1, -1, 1).expand(1, HEADS, -1, WIDTH).clone()


def filled(length: int, transposed: bool = False, start: int = 0) -> KVCache:
    kv = KVCache.empty(LAYERS, transposed)
    for layer in range(LAYERS):
        kv.update(
            states(range(start, start + length)), -states(range(start, start + length)), layer
        )
    return kv


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize("transposed", [False, True])
def test_keys_and_values_keep_their_order_when_they_are_appended(transposed: bool) -> None:
    kv = filled(5, transposed)
    keys, values = kv.update(states(range(5, 700)), -states(range(5, 700)), 0)
    assert torch.equal(keys, states(range(700)))
    assert torch.equal(values, -states(range(700)))


@pytest.mark.parametrize("transposed", [False, True])
def test_truncated_tokens_are_overwritten(transposed: bool) -> None:
    kv = filled(10, transposed)
    kv.truncate(4)
    assert kv.length == kv.get_seq_length() == 4
    keys, _ = kv.update(states(range(100, 102)), states(range(2)), 1)
    assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 100, 101]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_copy_is_independent_of_the_original(transposed: bool) -> None:
    kv = filled(10, transposed)
    twin = kv.copy(6)
    kv.truncate(0)
    for layer in range(LAYERS):
        kv.update(states(range(50, 60)), states(range(50, 60)), layer)
    keys, _ = twin.update(states(range(6, 7)), states(range(6, 7)), 0)
    assert torch.equal(keys, states(range(7)))


def test_buffers_without_memory_to_grow_keep_their_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kv = filled(4)
    layer = kv.layers[0]
    keys, values, buffer = layer.keys, layer.values, kv_cache._buffer
    made: list[Any] = []

    def room_for_one(*given: Any) -> Any:
        if made:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        made.append(buffer(*given))
        return made[0]

    monkeypatch.setattr(kv_cache, "_buffer", room_for_one)
    with pytest.raises(torch.OutOfMemoryError):
        kv.reserve(10 * layer.capacity)
    assert layer.keys is keys
    assert layer.values is values


def test_a_common_prefix_never_ends_inside_a_picture() -> None:
    one, other = ids(1, 2, -7, -7, -7, 3), ids(1, 2, -7, -7, -9, 3)
    assert common_length(one, other, [], 6) == 4
    assert common_length(one, other, [(2, 5)], 6) == 2
    assert common_length(one, one, [(2, 5)], 4) == 2, "a limit does not cut pictures either"
    assert common_length(one, one, [(2, 5)], 5) == 5


def test_take_returns_the_longest_prefix() -> None:
    cache = PrefixCache(CacheBudget.fixed(1 << 20))
    cache.put(ids(1, 2, 9), filled(3))
    cache.put(ids(1, 2, 3, 4), filled(4))
    kv = cache.take(ids(1, 2, 3, 4, 5, 6), [], 5)
    assert kv is not None
    assert kv.length == 4
    assert len(cache) == 1, "it is handed over, not shared"
    assert cache.take(ids(8, 8), [], 1) is None


def test_a_short_tail_is_cut_off_and_a_long_one_is_kept() -> None:
    cache = PrefixCache(CacheBudget.fixed(1 << 20))
    whole = ids(*range(20))
    cache.put(whole, filled(20))
    regenerated = cache.take(ids(*range(18), 70, 71), [], 19)
    assert regenerated is not None
    assert regenerated.length == 18
    cache.put(whole[:18], regenerated)
    branched = cache.take(ids(0, 1, 2, 80, 81), [], 4)
    assert branched is not None
    assert branched.length == 3
    assert cache.match_length(whole, [], 20) == 18, "the other conversation keeps its own"


def test_a_longer_entry_replaces_its_own_prefix() -> None:
    cache = PrefixCache(CacheBudget.fixed(1 << 20))
    cache.put(ids(1, 2), filled(2))
    cache.put(ids(1, 2, 3), filled(3))
    assert len(cache) == 1


def test_the_oldest_prefix_is_dropped_over_the_budget() -> None:
    one = filled(4)
    cache = PrefixCache(CacheBudget.fixed(2 * one.nbytes))
    cache.put(ids(1, 1, 1, 1), one)
    cache.put(ids(2, 2, 2, 2), filled(4))
    cache.put(ids(3, 3, 3, 3), filled(4))
    assert cache.nbytes == 2 * one.nbytes
    assert [cache.match_length(ids(n, n, n, n), [], 4) for n in (1, 2, 3)] == [0, 4, 4]


def test_a_budget_of_zero_keeps_nothing() -> None:
    cache = PrefixCache(CacheBudget.fixed(0))
    cache.put(ids(1, 2), filled(2))
    assert len(cache) == 0


def test_the_least_recently_used_features_are_dropped() -> None:
    def features() -> ImageFeatures:
        return ImageFeatures(torch.zeros(4, 8))

    cache = FeatureCache(CacheBudget.fixed(2 * features().nbytes))
    cache.put("a", features())
    cache.put("b", features())
    assert cache.get("a", 4) is not None
    cache.put("c", features())
    assert cache.get("b", 4) is None
    assert cache.get("a", 4) is not None
    assert cache.get("a", 5) is None, "another tiling is another entry"
    assert cache.nbytes == 2 * features().nbytes
