"""Caches of picture features and of key-value prefixes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vqa_app.engine.feature_cache import FeatureCache, Features
from vqa_app.engine.kv_cache import KVCache, PrefixCache, common_length

LAYERS, HEADS, WIDTH = 2, 2, 4


def states(tokens: range) -> torch.Tensor:
    """[1, heads, tokens, width], the value of each token its number."""
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
def test_keys_and_values_come_back_in_order_whatever_the_pieces(transposed: bool) -> None:
    kv = filled(5, transposed)
    keys, values = kv.update(states(range(5, 700)), -states(range(5, 700)), 0)
    assert torch.equal(keys, states(range(700)))
    assert torch.equal(values, -states(range(700)))


@pytest.mark.parametrize("transposed", [False, True])
def test_what_was_cut_off_is_overwritten(transposed: bool) -> None:
    kv = filled(10, transposed)
    kv.keep(4)
    assert kv.length == kv.get_seq_length() == 4
    keys, _ = kv.update(states(range(100, 102)), states(range(2)), 1)
    assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 100, 101]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_copy_does_not_see_what_happens_to_its_origin(transposed: bool) -> None:
    kv = filled(10, transposed)
    twin = kv.copy(6)
    kv.keep(0)
    for layer in range(LAYERS):
        kv.update(states(range(50, 60)), states(range(50, 60)), layer)
    keys, _ = twin.update(states(range(6, 7)), states(range(6, 7)), 0)
    assert torch.equal(keys, states(range(7)))


def test_prefixes_end_before_a_picture_that_differs_later_on() -> None:
    one, other = ids(1, 2, -7, -7, -7, 3), ids(1, 2, -7, -7, -9, 3)
    assert common_length(one, other, [], 6) == 4
    assert common_length(one, other, [(2, 5)], 6) == 2
    assert common_length(one, one, [(2, 5)], 4) == 2, "a limit does not cut pictures either"
    assert common_length(one, one, [(2, 5)], 5) == 5


def test_the_longest_prefix_is_taken() -> None:
    cache = PrefixCache(1 << 20)
    cache.put(ids(1, 2, 9), filled(3))
    cache.put(ids(1, 2, 3, 4), filled(4))
    kv = cache.take(ids(1, 2, 3, 4, 5, 6), [], 5)
    assert kv is not None
    assert kv.length == 4
    assert len(cache) == 1, "it is handed over, not shared"
    assert cache.take(ids(8, 8), [], 1) is None


def test_a_short_tail_is_cut_and_a_long_one_spared() -> None:
    cache = PrefixCache(1 << 20)
    whole = ids(*range(20))
    cache.put(whole, filled(20))
    regenerated = cache.take(ids(*range(18), 70, 71), [], 19)
    assert regenerated is not None
    assert regenerated.length == 18
    cache.put(whole[:18], regenerated)
    branched = cache.take(ids(0, 1, 2, 80, 81), [], 4)
    assert branched is not None
    assert branched.length == 3
    assert cache.known(whole, [], 20) == 18, "the other conversation keeps its own"


def test_the_longer_of_two_entries_on_one_path_replaces_the_shorter() -> None:
    cache = PrefixCache(1 << 20)
    cache.put(ids(1, 2), filled(2))
    cache.put(ids(1, 2, 3), filled(3))
    assert len(cache) == 1


def test_the_oldest_prefix_makes_room() -> None:
    one = filled(4)
    cache = PrefixCache(2 * one.nbytes)
    cache.put(ids(1, 1, 1, 1), one)
    cache.put(ids(2, 2, 2, 2), filled(4))
    cache.put(ids(3, 3, 3, 3), filled(4))
    assert cache.nbytes <= cache.budget
    assert [cache.known(ids(n, n, n, n), [], 4) for n in (1, 2, 3)] == [0, 4, 4]


def test_nothing_is_kept_without_a_budget() -> None:
    cache = PrefixCache(0)
    cache.put(ids(1, 2), filled(2))
    assert len(cache) == 0


def test_features_seen_last_stay() -> None:
    def rows() -> Features:
        return Features(torch.zeros(4, 8))

    cache = FeatureCache(2 * rows().nbytes)
    cache.put("a", rows())
    cache.put("b", rows())
    assert cache.get("a", 4) is not None
    cache.put("c", rows())
    assert cache.get("b", 4) is None
    assert cache.get("a", 4) is not None
    assert cache.get("a", 5) is None, "another tiling is another entry"
    assert cache.nbytes <= cache.budget
