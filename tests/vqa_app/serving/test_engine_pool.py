"""The engine pool: loading, leases, eviction."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from tests.fake_engine import FakeEngine
from tests.ui.harness import choice, make_downloading_pool
from tests.waiting import PATIENCE, until
from vqa_app.errors import InsufficientMemoryError, ModelError
from vqa_app.serving import engine_pool
from vqa_app.serving.engine_pool import MAX_NAMED_MODELS, EnginePool


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch):
    """Keep caches that other tests have left from being dropped for a model of these tests."""
    monkeypatch.setattr(engine_pool, "reclaim_memory", lambda: False)


def make_pool(engines, keep=2, load=None):
    """Return a pool whose default is the first of `engines`."""
    return EnginePool(
        load or (lambda chosen, _: engines[chosen.key]),
        lambda: [choice(key) for key in engines],
        next(iter(engines)),
        keep,
    )


def test_a_leased_engine_is_not_evicted():
    engines = {key: FakeEngine() for key in ("default", "a", "b", "c")}
    pool = make_pool(engines, keep=1)
    with pool.lease("a", PATIENCE) as engine:
        for key in "bc":
            pool.start_loading(key)
            pool.wait(key, PATIENCE)
        until(lambda: engines["b"].closed)
        assert engine is engines["a"]
        assert not engine.closed
    pool.start_loading("b")
    until(lambda: engines["a"].closed)
    pool.close()


def test_leasing_a_model_that_was_just_evicted_loads_it_again(monkeypatch):
    made = []

    def load(chosen, progress):
        made.append(FakeEngine())
        return made[-1]

    pool = make_pool({"default": None, "a": None}, load=load)
    wait = pool.wait

    def evict_after_waiting(key=None, timeout=None):
        engine = wait(key, timeout)
        if len(made) == 1:  # as another thread may do before the lease
            pool._slots.pop("a")
            engine.close()
        return engine

    monkeypatch.setattr(pool, "wait", evict_after_waiting)
    with pool.lease("a", PATIENCE) as engine:
        assert engine is made[1]
        assert not engine.closed
    pool.close()


def test_a_lease_reports_that_the_model_is_still_loading():
    release = threading.Event()
    engine = FakeEngine()
    pool = make_pool({"slow": engine}, load=lambda *_: release.wait(PATIENCE) and engine)
    with pytest.raises(ModelError, match="still loading"), pool.lease(timeout=0):
        pass
    release.set()
    pool.close()


ENDING = """
import sys, threading, time
from tests.ui.harness import choice
from ui.cli import _report_load_failure
from vqa_app.errors import ModelError
from vqa_app.serving.engine_pool import EnginePool

def load(chosen, progress):
    time.sleep(0.2)
    if sys.argv[1] == "before":
        raise ModelError("Could not load it.", "Its files do not match.")
    main.join()  # the interpreter waits for this thread, but starts no more work
    from concurrent.futures import ThreadPoolExecutor
    try:
        ThreadPoolExecutor(1).submit(print)
    except RuntimeError as error:
        raise ModelError(f"Could not load it: {error}", "Its files do not match.") from error

pool = EnginePool(load, lambda: [choice("model")], "model")
main = threading.main_thread()
pool.start_loading()
threading.Thread(target=_report_load_failure, args=(pool,), daemon=False).start()
time.sleep(1 if sys.argv[1] == "before" else 0)
"""


@pytest.mark.parametrize(("when", "printed"), [("before", "Could not load it"), ("after", "")])
def test_a_load_that_fails_because_the_process_ends_prints_nothing(when, printed):
    command = [sys.executable, "-c", ENDING, when]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert printed in ended.stderr
    assert bool(ended.stderr) == bool(printed)


def test_a_load_that_fails_after_the_pool_was_closed_counts_as_cancelled():
    closed = threading.Event()

    def load(chosen, progress):
        closed.wait(PATIENCE)
        raise RuntimeError("cannot schedule new futures after shutdown")

    pool = make_pool({"slow": None}, load=load)
    pool.start_loading()
    pool.close()
    closed.set()
    with pytest.raises(ModelError, match="cancelled"):
        pool.wait(timeout=PATIENCE)
    assert pool.status().phase == "absent"


def make_small_pool(engines, capacity, refusal=None):
    """Return a pool with memory for `capacity` models, and the list of keys it tries to load."""
    tried = []

    def load(chosen, _):
        tried.append(chosen.key)
        if sum(not engines[key].closed for key in set(tried) - {chosen.key}) >= capacity:
            raise refusal or InsufficientMemoryError(
                "It needs 17 GB; 9 are free.", "Close other programs."
            )
        return engines[chosen.key]

    return make_pool(engines, load=load), tried


@pytest.mark.parametrize("refusal", [None, RuntimeError("CUDA out of memory."), MemoryError()])
def test_idle_models_are_evicted_if_memory_is_insufficient(refusal):
    engines = {key: FakeEngine() for key in ("default", "a")}
    pool, tried = make_small_pool(engines, 1, refusal)
    pool.start_loading()
    pool.wait(timeout=PATIENCE)
    pool.start_loading("a")
    assert pool.wait("a", PATIENCE) is engines["a"]
    assert tried == ["default", "a", "a"]
    assert engines["default"].closed
    pool.close()


def test_a_model_in_use_is_not_evicted():
    engines = {key: FakeEngine() for key in ("default", "a", "b")}
    pool, tried = make_small_pool(engines, 2)
    with pool.lease(timeout=PATIENCE) as default, pool.lease("a", PATIENCE):
        pool.start_loading("b")
        with pytest.raises(ModelError, match="17 GB"):
            pool.wait("b", PATIENCE)
        assert tried == ["default", "a", "b"]
        assert not default.closed
    pool.close()


@pytest.mark.parametrize("held", [True, False])
def test_caches_of_a_model_in_use_are_dropped_if_memory_runs_out(held, monkeypatch):
    """The model itself stays; without caches there is nothing to gain from another attempt."""
    engines = {key: FakeEngine() for key in ("default", "a")}
    tried, caches = [], ["keys and values"] if held else []

    def load(chosen, _):
        tried.append(chosen.key)
        if chosen.key == "a" and (caches or not held):
            raise RuntimeError("CUDA out of memory.")
        return engines[chosen.key]

    def reclaim():
        return bool(caches and caches.pop())

    monkeypatch.setattr(engine_pool, "reclaim_memory", reclaim)
    pool = make_pool(engines, load=load)
    with pool.lease(timeout=PATIENCE) as default:
        pool.start_loading("a")
        if held:
            assert pool.wait("a", PATIENCE) is engines["a"]
        else:
            with pytest.raises(ModelError, match="out of memory"):
                pool.wait("a", PATIENCE)
        assert tried == ["default", "a", *["a"] * held]
        assert not default.closed
    pool.close()


def test_other_failures_evict_no_model():
    engines = {key: FakeEngine() for key in ("default", "a")}
    pool, tried = make_small_pool(engines, 1, ModelError("It is damaged.", "Download it again."))
    pool.start_loading()
    pool.wait(timeout=PATIENCE)
    pool.start_loading("a")
    with pytest.raises(ModelError, match="damaged"):
        pool.wait("a", PATIENCE)
    assert tried == ["default", "a"]
    assert pool.get_loaded() is engines["default"]
    pool.close()


def test_insufficient_memory_is_reported_in_words():
    engines = {key: FakeEngine() for key in ("default", "a")}
    pool, _ = make_small_pool(
        engines, 0, RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")
    )
    pool.start_loading()
    with pytest.raises(ModelError, match="Default could not be loaded: out of memory"):
        pool.wait(timeout=PATIENCE)
    pool.close()


def test_time_spent_loading_does_not_count_as_idle():
    engines = {key: FakeEngine() for key in ("default", "slow", "a")}
    release = threading.Event()

    def load(chosen, _):
        assert chosen.key != "slow" or release.wait(PATIENCE)
        return engines[chosen.key]

    pool = make_pool(engines, keep=1, load=load)
    pool.start_loading("slow")
    pool.start_loading("a")
    pool.wait("a", PATIENCE)
    release.set()
    until(lambda: engines["a"].closed)
    assert pool.get_loaded("slow") is engines["slow"]
    assert not engines["slow"].closed
    pool.close()


def test_the_list_keeps_the_latest_models_that_people_added():
    engine = FakeEngine()

    def load(chosen, _):
        if chosen.key == "typo":
            raise ModelError("There is no such model.", "Look at its name.")
        return engine

    pool = make_pool({"default": None}, load=load)
    for key in ("typo", "loaded", "unused"):
        pool.add_choice(choice(key))
    with pytest.raises(ModelError, match="no such"), pool.lease("typo", PATIENCE):
        pass
    pool.start_loading("loaded")
    pool.wait("loaded", PATIENCE)
    for number in range(MAX_NAMED_MODELS):
        pool.add_choice(choice(f"later-{number}"))
    pool.add_choice(choice("later-0"))
    offered = [one.key for one in pool.choices()]
    assert offered[:3] == ["default", "loaded", "later-1"]
    assert offered[-1] == "later-0"
    assert len(offered) == MAX_NAMED_MODELS + 2
    pool.close()


def test_waiting_for_an_evicted_model_loads_it_again():
    engine = FakeEngine()
    pool = EnginePool(lambda *_: engine, lambda: [choice("a")], "a")
    assert pool.wait("a", PATIENCE) is engine
    pool.close()
    closed = EnginePool(lambda *_: engine, lambda: [choice("a")], "a")
    closed.close()
    with pytest.raises(ModelError, match="shutting down"):
        closed.wait("a", PATIENCE)


def test_a_load_can_be_cancelled():
    pool, started = make_downloading_pool("slow")
    pool.start_loading()
    assert started.wait(PATIENCE)
    assert pool.status().phase == "loading"
    pool.cancel_loading("slow")
    with pytest.raises(ModelError, match="cancelled"):
        pool.wait(timeout=PATIENCE)
    assert pool.status().phase == "absent"


def test_the_least_recently_used_models_are_evicted():
    engines = {key: FakeEngine() for key in ("default", "a", "b", "c")}
    pool = EnginePool(
        lambda c, _: engines[c.key], lambda: [choice(key) for key in engines], "default", 2
    )
    for key in engines:
        pool.start_loading(key)
        pool.wait(key, PATIENCE)
    until(lambda: engines["a"].closed)  # after the last one has loaded
    assert [engine.closed for engine in engines.values()] == [False, True, False, False]
    pool.close()
    assert all(engine.closed for engine in engines.values())


def test_the_status_is_reported_until_a_model_is_loaded():
    release, engine = threading.Event(), FakeEngine()
    pool = make_pool({"slow": engine}, load=lambda *_: release.wait(PATIENCE) and engine)
    phases = []
    for status in pool.load_with_status("slow"):
        phases.append(status.phase)
        release.set()
    assert set(phases) == {"loading"}
    assert pool.get_loaded("slow") is engine
    pool.close()


def test_waiting_for_a_model_can_be_cancelled_while_it_goes_on_loading():
    release, cancel, engine = threading.Event(), threading.Event(), FakeEngine()
    pool = make_pool({"slow": engine}, load=lambda *_: release.wait(PATIENCE) and engine)
    for _ in pool.load_with_status("slow", cancel=cancel):
        cancel.set()
    assert pool.status("slow").phase == "loading"
    release.set()
    assert pool.wait("slow", PATIENCE) is engine
    pool.close()
