"""An idle server unloads its models, loads them again, and ends."""

from __future__ import annotations

import gc
import threading
import weakref

from tests.fake_engine import FakeEngine
from tests.ui.harness import choice
from tests.waiting import PATIENCE, until
from vqa_app.serving.engine_pool import EnginePool
from vqa_app.serving.idle import watch_idle


def make_pool() -> tuple[EnginePool, list[FakeEngine]]:
    made: list[FakeEngine] = []

    def load(chosen: object, progress: object) -> FakeEngine:
        made.append(FakeEngine())
        return made[-1]

    return EnginePool(load, lambda: [choice("a")], "a"), made


def test_an_idle_model_is_unloaded_and_loaded_again() -> None:
    pool, made = make_pool()
    watch_idle(pool, unload_after=0.05, end=lambda: None)
    pool.wait()
    until(lambda: made[0].closed)
    assert pool.status().phase == "absent"
    with pool.lease() as engine:
        assert engine is made[1]
    until(lambda: made[1].closed)
    pool.close()


def test_the_memory_of_an_unloaded_model_is_free_at_once() -> None:
    def load(chosen: object, progress: object) -> FakeEngine:
        engine = FakeEngine()
        engine.cycle = engine  # type: ignore[attr-defined]
        return engine

    pool = EnginePool(load, lambda: [choice("a")], "a")
    with pool.lease() as engine:
        found = weakref.ref(engine)
    del engine
    gc.disable()
    try:
        assert pool.release_idle()
        until(lambda: found() is None)
    finally:
        gc.enable()
    pool.close()


def test_a_model_in_use_stays() -> None:
    pool, made = make_pool()
    watch_idle(pool, unload_after=0.01, end=lambda: None)
    with pool.lease():
        assert pool.idle_seconds() == 0.0
        threading.Event().wait(0.1)
        assert not made[0].closed
    until(lambda: made[0].closed)
    pool.close()


def test_an_idle_server_ends() -> None:
    pool, _ = make_pool()
    pool.wait()
    ended = threading.Event()
    watch_idle(pool, end_after=0.05, end=ended.set)
    assert ended.wait(PATIENCE)
    pool.close()
