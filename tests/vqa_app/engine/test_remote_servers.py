"""The engine on servers that others wrote: the same weights answer the same as here."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def transformers_serve(tiny_llava_dir: Path) -> Iterator[str]:
    """Run `transformers serve` with a tiny model; it needs the package openai."""
    pytest.importorskip("openai")
    with listen("127.0.0.1", 0) as listener:
        address = address_of(listener).rstrip("/")
    port = address.rpartition(":")[2]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(tiny_llava_dir), "--port", port, "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server did not start"
            try:
                httpx.get(f"{address}/health", trust_env=False)
            except httpx.TransportError:
                time.sleep(0.2)
            else:
                break
        yield f"{address}/v1"
    finally:
        process.terminate()
        process.wait(20)


def greedy(engine: Engine, conversation: Conversation) -> str:
    *_, last = engine.stream(conversation, GenerationOptions(max_new_tokens=12, temperature=0))
    assert isinstance(last, Answer)
    return last.text


def test_transformers_serve_answers_as_the_model_does_here(
    transformers_serve: str, tiny_llava_dir: Path
) -> None:
    from vqa_app.checkpoints.loader import load_model

    local = LocalEngine(load_model(str(tiny_llava_dir)))
    remote = RemoteEngine(RemoteServer(transformers_serve))
    try:
        first = Conversation.ask("What is it?", [tiny.picture(0, (96, 64))])
        second = first.then(Message.assistant("noise"), Message.user("Which colour?"))
        for conversation in (first, second, Conversation.ask("Hello?")):
            assert greedy(remote, conversation) == greedy(local, conversation)
    finally:
        remote.close()
        local.close()
