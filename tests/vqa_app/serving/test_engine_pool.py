"""The models that may answer: leases, and what makes room for what."""

from __future__ import annotations

import threading

import pytest

from tests.fake_engine import FakeEngine
from tests.ui.desk import choice
from tests.waiting import PATIENCE, until
from vqa_app.errors import InsufficientMemoryError, ModelError
from vqa_app.serving.engine_pool import OFFERED, Hub


def hub_of(engines, keep=2, load=None):
    """A hub whose default is the first of `engines`."""
    return Hub(
        load or (lambda chosen, _: engines[chosen.key]),
        lambda: [choice(key) for key in engines],
        next(iter(engines)),
        keep,
    )


def test_an_engine_that_is_leased_is_not_let_go_until_the_lease_ends():
    engines = {key: FakeEngine() for key in ("default", "a", "b", "c")}
    hub = hub_of(engines, keep=1)
    with hub.lease("a", PATIENCE) as engine:
        for key in "bc":
            hub.start(key)
            hub.wait(key, PATIENCE)
        until(lambda: engines["b"].closed)
        assert engine is engines["a"]
        assert not engine.closed
    hub.start("b")
    until(lambda: engines["a"].closed)
    hub.close()


def test_a_lease_of_what_made_room_just_before_loads_it_again(monkeypatch):
    made = []

    def load(chosen, progress):
        made.append(FakeEngine())
        return made[-1]

    hub = hub_of({"default": None, "a": None}, load=load)
    wait = hub.wait

    def late(key=None, timeout=None):
        engine = wait(key, timeout)
        if len(made) == 1:  # as another thread does between the two
            hub._slots.pop("a")
            engine.close()
        return engine

    monkeypatch.setattr(hub, "wait", late)
    with hub.lease("a", PATIENCE) as engine:
        assert engine is made[1]
        assert not engine.closed
    hub.close()


def test_a_lease_of_what_is_not_there_in_time_says_so():
    go_on = threading.Event()
    engine = FakeEngine()
    hub = hub_of({"slow": engine}, load=lambda *_: go_on.wait(PATIENCE) and engine)
    with pytest.raises(ModelError, match="still loading"), hub.lease(timeout=0):
        pass
    go_on.set()
    hub.close()


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
    hub, tried = crowded(engines, 1, refusal)
    hub.start()
    hub.wait(timeout=PATIENCE)
    hub.start("a")
    assert hub.wait("a", PATIENCE) is engines["a"]
    assert tried == ["default", "a", "a"]
    assert engines["default"].closed
    hub.close()


def test_a_model_that_is_at_work_makes_no_room():
    engines = {key: FakeEngine() for key in ("default", "a", "b")}
    hub, tried = crowded(engines, 2)
    with hub.lease(timeout=PATIENCE) as default, hub.lease("a", PATIENCE):
        hub.start("b")
        with pytest.raises(ModelError, match="17 GB"):
            hub.wait("b", PATIENCE)
        assert tried == ["default", "a", "b"]
        assert not default.closed
    hub.close()


def test_no_model_goes_for_one_that_fails_for_another_reason():
    engines = {key: FakeEngine() for key in ("default", "a")}
    hub, tried = crowded(engines, 1, ModelError("It is damaged.", "Download it again."))
    hub.start()
    hub.wait(timeout=PATIENCE)
    hub.start("a")
    with pytest.raises(ModelError, match="damaged"):
        hub.wait("a", PATIENCE)
    assert tried == ["default", "a"]
    assert hub.ready() is engines["default"]
    hub.close()


def test_a_full_memory_is_told_in_words():
    engines = {key: FakeEngine() for key in ("default", "a")}
    hub, _ = crowded(engines, 0, RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    hub.start()
    with pytest.raises(ModelError, match="Default could not be loaded: the memory is full"):
        hub.wait(timeout=PATIENCE)
    hub.close()


def test_a_model_that_took_long_to_load_is_not_the_first_to_go():
    engines = {key: FakeEngine() for key in ("default", "slow", "a")}
    go_on = threading.Event()

    def load(chosen, _):
        assert chosen.key != "slow" or go_on.wait(PATIENCE)
        return engines[chosen.key]

    hub = hub_of(engines, keep=1, load=load)
    hub.start("slow")
    hub.start("a")
    hub.wait("a", PATIENCE)
    go_on.set()
    until(lambda: engines["a"].closed)
    assert hub.ready("slow") is engines["slow"]
    assert not engines["slow"].closed
    hub.close()


def test_the_list_keeps_the_latest_of_the_models_that_people_name():
    engine = FakeEngine()

    def load(chosen, _):
        if chosen.key == "typo":
            raise ModelError("There is no such model.", "Look at its name.")
        return engine

    hub = hub_of({"default": None}, load=load)
    for key in ("typo", "loaded", "unused"):
        hub.offer(choice(key))
    with pytest.raises(ModelError, match="no such"), hub.lease("typo", PATIENCE):
        pass
    hub.start("loaded")
    hub.wait("loaded", PATIENCE)
    for number in range(OFFERED):
        hub.offer(choice(f"later-{number}"))
    hub.offer(choice("later-0"))
    offered = [one.key for one in hub.choices()]
    assert offered[:3] == ["default", "loaded", "later-1"]
    assert offered[-1] == "later-0"
    assert len(offered) == OFFERED + 2
    hub.close()
