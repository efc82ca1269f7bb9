"""The models that may answer: leases, and what makes room for what."""

from __future__ import annotations

import threading

import pytest

from tests.fake_engine import FakeEngine
from tests.ui.harness import choice
from tests.waiting import PATIENCE, until
from vqa_app.errors import InsufficientMemoryError, ModelError
from vqa_app.serving.engine_pool import MAX_NAMED_MODELS, EnginePool


def hub_of(engines, keep=2, load=None):
    """A hub whose default is the first of `engines`."""
    return EnginePool(
        load or (lambda chosen, _: engines[chosen.key]),
        lambda: [choice(key) for key in engines],
        next(iter(engines)),
        keep,
    )


def test_an_engine_that_is_leased_is_not_let_go_until_the_lease_ends():
    engines = {key: FakeEngine() for key in ("default", "a", "b", "c")}
    pool = hub_of(engines, keep=1)
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


def test_a_lease_of_what_made_room_just_before_loads_it_again(monkeypatch):
    made = []

    def load(chosen, progress):
        made.append(FakeEngine())
        return made[-1]

    pool = hub_of({"default": None, "a": None}, load=load)
    wait = pool.wait

    def late(key=None, timeout=None):
        engine = wait(key, timeout)
        if len(made) == 1:  # as another thread does between the two
            pool._slots.pop("a")
            engine.close()
        return engine

    monkeypatch.setattr(pool, "wait", late)
    with pool.lease("a", PATIENCE) as engine:
        assert engine is made[1]
        assert not engine.closed
    pool.close()


def test_a_lease_of_what_is_not_there_in_time_says_so():
    go_on = threading.Event()
    engine = FakeEngine()
    pool = hub_of({"slow": engine}, load=lambda *_: go_on.wait(PATIENCE) and engine)
    with pytest.raises(ModelError, match="still loading"), pool.lease(timeout=0):
        pass
    go_on.set()
    pool.close()


def crowded(engines, room, refusal=None):
    """A hub in whose memory so many models fit at once, and what was tried to load."""
    tried = []

    def load(chosen, _):
        tried.append(chosen.key)
        if sum(not engines[key].closed for key in set(tried) - {chosen.key}) >= room:
            raise refusal or InsufficientMemoryError(
                "It needs 17 GB; 9 are free.", "Close other programs."
            )
        return engines[chosen.key]

    return hub_of(engines, load=load), tried


@pytest.mark.parametrize("refusal", [None, RuntimeError("CUDA out of memory."), MemoryError()])
def test_models_that_nobody_uses_make_room_where_the_memory_refuses_the_next(refusal):
    engines = {key: FakeEngine() for key in ("default", "a")}
    pool, tried = crowded(engines, 1, refusal)
    pool.start_loading()
    pool.wait(timeout=PATIENCE)
    pool.start_loading("a")
    assert pool.wait("a", PATIENCE) is engines["a"]
    assert tried == ["default", "a", "a"]
    assert engines["default"].closed
    pool.close()


def test_a_model_that_is_at_work_makes_no_room():
    engines = {key: FakeEngine() for key in ("default", "a", "b")}
    pool, tried = crowded(engines, 2)
    with pool.lease(timeout=PATIENCE) as default, pool.lease("a", PATIENCE):
        pool.start_loading("b")
        with pytest.raises(ModelError, match="17 GB"):
            pool.wait("b", PATIENCE)
        assert tried == ["default", "a", "b"]
        assert not default.closed
    pool.close()


def test_no_model_goes_for_one_that_fails_for_another_reason():
    engines = {key: FakeEngine() for key in ("default", "a")}
    pool, tried = crowded(engines, 1, ModelError("It is damaged.", "Download it again."))
    pool.start_loading()
    pool.wait(timeout=PATIENCE)
    pool.start_loading("a")
    with pytest.raises(ModelError, match="damaged"):
        pool.wait("a", PATIENCE)
    assert tried == ["default", "a"]
    assert pool.get_loaded() is engines["default"]
    pool.close()


def test_a_full_memory_is_told_in_words():
    engines = {key: FakeEngine() for key in ("default", "a")}
    pool, _ = crowded(engines, 0, RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    pool.start_loading()
    with pytest.raises(ModelError, match="Default could not be loaded: out of memory"):
        pool.wait(timeout=PATIENCE)
    pool.close()


def test_a_model_that_took_long_to_load_is_not_the_first_to_go():
    engines = {key: FakeEngine() for key in ("default", "slow", "a")}
    go_on = threading.Event()

    def load(chosen, _):
        assert chosen.key != "slow" or go_on.wait(PATIENCE)
        return engines[chosen.key]

    pool = hub_of(engines, keep=1, load=load)
    pool.start_loading("slow")
    pool.start_loading("a")
    pool.wait("a", PATIENCE)
    go_on.set()
    until(lambda: engines["a"].closed)
    assert pool.get_loaded("slow") is engines["slow"]
    assert not engines["slow"].closed
    pool.close()


def test_the_list_keeps_the_latest_of_the_models_that_people_name():
    engine = FakeEngine()

    def load(chosen, _):
        if chosen.key == "typo":
            raise ModelError("There is no such model.", "Look at its name.")
        return engine

    pool = hub_of({"default": None}, load=load)
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
