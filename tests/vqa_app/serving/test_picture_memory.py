"""Requests wait with decoding their pictures while others hold too many pixels."""

from __future__ import annotations

import threading

import pytest

from tests.waiting import PATIENCE
from vqa_app.serving.openai_errors import AnswerStopped
from vqa_app.serving.picture_memory import PictureMemory


def test_a_request_waits_until_there_is_room() -> None:
    memory, entered = PictureMemory(1000), threading.Event()

    def enter() -> None:
        memory.wait(threading.Event())
        entered.set()

    with memory.hold(600):
        memory.wait(threading.Event())
        with memory.hold(600):
            thread = threading.Thread(target=enter)
            thread.start()
            assert not entered.wait(0.05)
        thread.join(PATIENCE)
        assert entered.is_set(), "600 of 1000 are held"


def test_a_cancelled_request_waits_no_longer() -> None:
    memory, cancel = PictureMemory(1000), threading.Event()
    with memory.hold(1001):
        threading.Timer(0.05, cancel.set).start()
        with pytest.raises(AnswerStopped):
            memory.wait(cancel)
    memory.wait(cancel)
