"""The caches of all engines on a device share one budget, taken from the free memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import picture
from vqa_app.checkpoints import memory
from vqa_app.checkpoints.loader import load_model
from vqa_app.devices import reclaim_memory
from vqa_app.engine import cache_budget
from vqa_app.engine.cache_budget import CacheBudget, cache_limit, shared_budget
from vqa_app.engine.feature_cache import FeatureCache, ImageFeatures
from vqa_app.engine.kv_cache import KVCache, PrefixCache
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, Delta, GenerationOptions
from vqa_app.errors import InsufficientMemoryError, ModelError
from vqa_app.prompts.conversation import Conversation

GIB = 1 << 30
GREEDY = GenerationOptions(max_new_tokens=3, temperature=0.0)


@pytest.mark.parametrize(
    ("kind", "free", "limit"),
    [
        ("cuda", 72 * GIB, 18 * GIB),  # an A100 beside a 3B model
        ("cuda", 2 * GIB, GIB // 2),  # a laptop's RTX beside a 7B model in 4 bits
        ("mps", 40 * GIB, 2 * GIB),
        ("mps", 4 * GIB, GIB),
        ("cpu", 40 * GIB, 2 * GIB),
        ("cpu", GIB, GIB // 4),
        ("cuda", 0, 0),
    ],
)
def test_caches_take_a_quarter_of_the_free_memory(kind: str, free: int, limit: int) -> None:
    assert cache_limit(kind, free) == limit


def filled(tokens: int) -> KVCache:
    kv, states = KVCache.empty(1), torch.zeros(1, 1, tokens, 4)
    kv.update(states, states, 0)
    return kv


def test_what_any_engine_used_least_recently_is_dropped_first() -> None:
    kv, features = filled(4), ImageFeatures(torch.zeros(4, 8))
    budget = CacheBudget.fixed(2 * kv.nbytes + features.nbytes)
    one, other, pictures = PrefixCache(budget), PrefixCache(budget), FeatureCache(budget)
    key = np.arange(4)
    one.put(key, kv)
    pictures.put("cat", features)
    other.put(key, filled(4))
    assert budget.nbytes == 2 * kv.nbytes + features.nbytes
    other.put(key + 10, filled(4))
    assert (len(one), len(pictures), len(other)) == (0, 1, 2)
    assert pictures.get("cat", 4) is features
    one.put(key, filled(4))
    assert (len(one), len(pictures), len(other)) == (1, 1, 1)
    assert other.match_length(key, [], 4) == 0


def test_a_cache_that_is_gone_counts_no_longer() -> None:
    budget = CacheBudget.fixed(1 << 20)
    cache = PrefixCache(budget)
    cache.put(np.arange(4), filled(4))
    assert budget.nbytes
    del cache
    gc.collect()
    assert budget.nbytes == 0


def test_what_the_caches_hold_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the limit would shrink while they fill, and they would never reach it."""
    device, kv = torch.device("meta"), filled(4)
    cache = PrefixCache(shared_budget(device))
    free = 8 * kv.nbytes
    monkeypatch.setattr(cache_budget, "free_memory", lambda _: free - cache.nbytes)
    for number in range(5):
        cache.put(np.arange(4) + 10 * number, filled(4))
    assert len(cache) == 2


def test_the_caches_of_two_engines_fit_together(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [LocalEngine(load_model(str(tiny_llava_dir))) for _ in range(2)]
    budget = shared_budget(torch.device("cpu"))
    budget.clear()

    def ask(engine: LocalEngine, number: int) -> None:
        list(engine.stream(Conversation.ask(f"What is {number}?", [picture(number)]), GREEDY))

    ask(engines[0], 0)
    once = budget.nbytes
    assert once
    monkeypatch.setattr(cache_budget, "free_memory", lambda _: 4 * 2 * once - budget.nbytes)
    for number in range(6):
        ask(engines[number % 2], number)
        assert budget.nbytes <= 2 * once
    assert all(len(engine._runtime.prefixes) for engine in engines)

    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engines[0]._runtime, "prefill", run_out)
    with pytest.raises(ModelError, match="not enough memory"):
        ask(engines[0], 7)
    assert budget.nbytes == 0, "those of the other engine are freed, too"
    for engine in engines:
        engine.close()


def test_a_model_is_refused_only_after_the_caches_of_engines_in_use_were_dropped(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    budget = shared_budget(torch.device("cpu"))
    budget.clear()
    question = Conversation.ask("What is it?", [picture(1)])
    list(engine.stream(question, GREEDY))
    held = budget.nbytes
    weights = sum(file.stat().st_size for file in tiny_llava_dir.glob("*.safetensors"))
    free = weights + held // 2
    monkeypatch.setattr(memory, "free_memory", lambda _: free - budget.nbytes)
    load_model(str(tiny_llava_dir))
    assert held > 0
    assert budget.nbytes == 0
    list(engine.stream(question, GREEDY))
    assert budget.nbytes == held, "the engine fills its caches again"
    free = weights // 2
    with pytest.raises(InsufficientMemoryError):
        load_model(str(tiny_llava_dir))
    engine.close()


def test_answers_go_on_unchanged_while_all_caches_are_dropped(tiny_llava_dir: Path) -> None:
    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    options = GenerationOptions(max_new_tokens=12, temperature=0.0, repetition_penalty=1.3)
    question = Conversation.ask("What is it?", [picture(1)])
    *_, expected = engine.stream(question, options)
    assert isinstance(expected, Answer)
    reclaim_memory()
    dropped = 0
    for event in engine.stream(question, options):
        if isinstance(event, Delta):
            reclaim_memory()
            dropped += 1
    assert dropped
    assert isinstance(event, Answer)
    assert event.text == expected.text
    engine.close()
