"""Asking while the picture is still being encoded, with the built-in model."""

from __future__ import annotations

import threading

import pytest

from finetune.pretrain.world import sample_scene
from tests.fake_engine import FakeEngine
from tests.ui.harness import ChatHarness
from tests.waiting import PATIENCE, until
from ui.chat.warmup import Warmup
from vqa_app import LocalEngine, load_model


@pytest.fixture
def harness(tmp_path):
    harness = ChatHarness(tmp_path, {"builtin": LocalEngine(load_model("builtin"))})
    harness.pool.start_loading()
    assert harness.pool.wait(timeout=PATIENCE), "the model was not loaded in time"
    yield harness
    harness.close()


def test_a_model_that_warms_up_is_not_unloaded(tmp_path, monkeypatch):
    engine, started, release = FakeEngine(), threading.Event(), threading.Event()

    def warm(conversation, cancel):
        started.set()
        assert release.wait(PATIENCE)

    monkeypatch.setattr(engine, "warm", warm)
    harness = ChatHarness(tmp_path, {"fake": engine})
    harness.pool.start_loading()
    assert harness.pool.wait(timeout=PATIENCE)
    Warmup(harness.service).start("ann", {"pictures": [harness.picture()]})
    assert started.wait(PATIENCE)
    harness.pool._evict(0)
    assert not engine.closed
    release.set()
    until(lambda: harness.pool._evict(0))
    assert engine.closed
    harness.close()


def test_a_question_waits_for_the_encoding_in_progress(harness, monkeypatch):
    """And uses its result: no picture is encoded twice."""
    encoder = harness.engines["builtin"]._runtime.encoder
    run, runs, started, release = encoder.run, [], threading.Event(), threading.Event()

    def held(inputs):
        runs.append(inputs)
        started.set()
        assert release.wait(PATIENCE)
        return run(inputs)

    monkeypatch.setattr(encoder, "run", held)
    picture = harness.picture_store.add(sample_scene(3, "shapes")[0], "scene.png")
    harness.store.add_picture("ann", picture.digest, "scene.png", {"changes": []})
    Warmup(harness.service).start("ann", {"pictures": [picture.digest]})
    assert started.wait(PATIENCE)
    updates = harness.service.ask("ann", {"question": "What is it?", "pictures": [picture.digest]})
    next(updates)
    until(lambda: harness.engines["builtin"]._scheduler.in_demand)
    release.set()
    (turn,) = list(updates)[-1]["view"]["turns"]
    assert turn["state"] == "answered"
    assert len(runs) == 1
