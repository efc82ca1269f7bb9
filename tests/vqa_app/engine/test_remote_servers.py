"""The engine on servers that others wrote: the same weights answer the same as here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import tiny
from tests.waiting import PATIENCE
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, Engine, GenerationOptions
from vqa_app.engine.remote import RemoteEngine, RemoteServer
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.serving.listener import address_of, listen

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["transformers serve", "vqa-app serve"])
def address(request: pytest.FixtureRequest, tiny_llava_dir: Path) -> Iterator[str]:
    """Run a server with a tiny model; that of transformers needs the package openai."""
    if request.param == "transformers serve":
        pytest.importorskip("openai")
        program = [
            str(Path(sys.executable).with_name("transformers")),
            "serve",
            str(tiny_llava_dir),
        ]
        ready = "health"
    else:
        program = [sys.executable, "-m", "vqa_app", "serve", "--model", str(tiny_llava_dir)]
        ready = "readyz"
    with listen("127.0.0.1", 0) as listener:
        place = address_of(listener).rstrip("/")
    port = place.rpartition(":")[2]
    process = subprocess.Popen(
        [*program, "--port", port, "--device", "cpu", "--host", "127.0.0.1"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server did not start"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{place}/{ready}", trust_env=False).status_code == 200:
                    break
            time.sleep(0.2)
        yield f"{place}/v1"
    finally:
        process.terminate()
        process.wait(20)


def greedy(engine: Engine, conversation: Conversation) -> str:
    *_, last = engine.stream(conversation, GenerationOptions(max_new_tokens=12, temperature=0))
    assert isinstance(last, Answer)
    return last.text


def test_a_server_answers_as_the_model_does_here(address: str, tiny_llava_dir: Path) -> None:
    from vqa_app.checkpoints.loader import load_model

    local = LocalEngine(load_model(str(tiny_llava_dir)))
    remote = RemoteEngine(RemoteServer(address))
    try:
        first = Conversation.ask("What is it?", [tiny.picture(0, (96, 64))])
        second = first.then(Message.assistant("noise"), Message.user("Which colour?"))
        for conversation in (first, second, Conversation.ask("Hello?")):
            assert greedy(remote, conversation) == greedy(local, conversation)
    finally:
        remote.close()
        local.close()
