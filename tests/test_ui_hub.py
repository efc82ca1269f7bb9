"""The models that may answer: leases, and what makes room for what."""

from __future__ import annotations

import threading

import pytest

from tests.fake_engine import FakeEngine
from tests.house import choice
from tests.waiting import PATIENCE, until
from ui.hub import Hub
from vqa_app.errors import ModelError


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
        assert engine is engines["a"] and not engine.closed
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
        assert engine is made[1] and not engine.closed
    hub.close()


def test_a_lease_of_what_is_not_there_in_time_says_so():
    go_on = threading.Event()
    engine = FakeEngine()
    hub = hub_of({"slow": engine}, load=lambda *_: go_on.wait(PATIENCE) and engine)
    with pytest.raises(ModelError, match="still loading"), hub.lease(timeout=0):
        pass
    go_on.set()
    hub.close()
