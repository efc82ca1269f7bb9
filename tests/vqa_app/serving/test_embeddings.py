"""`/v1/embeddings` with OpenAI's client and the built-in towers."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.fake_engine import FakeEngine
from tests.vqa_app.serving.api_server import ApiServer, asking, picture_uri, serving
from tests.waiting import PATIENCE
from vqa_app.retrieval.towers import Towers, load_towers
from vqa_app.serving.embeddings import Embedder
from vqa_app.serving.model_choices import BUILTIN

TEXTS = ["The picture shows a red circle.", "The picture shows a tree."]


@pytest.fixture(scope="module")
def towers() -> Towers:
    return load_towers(device="cpu")


@pytest.fixture(scope="module")
def server(towers: Towers) -> Iterator[ApiServer]:
    engine = FakeEngine()
    embedder = Embedder(lambda: towers)
    with serving(engine, listed=[BUILTIN], embedder=embedder) as server:
        yield server
    engine.close()


@pytest.fixture
def client(server: ApiServer) -> Iterator[openai.OpenAI]:
    options: Any = {"max_retries": 0, "timeout": PATIENCE}
    with openai.OpenAI(base_url=server.address, api_key="any", **options) as client:
        yield client


def part(uri: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri, **more}}


def post(server: ApiServer, **body: Any) -> httpx.Response:
    body = {"model": "builtin", **body}
    return httpx.post(f"{server.address}/embeddings", json=body, timeout=PATIENCE)


def test_texts_are_embedded_in_their_order(client: openai.OpenAI, towers: Towers) -> None:
    """By default, OpenAI's client asks for base64."""
    found = client.embeddings.create(model="builtin", input=TEXTS)
    assert [entry.index for entry in found.data] == [0, 1]
    vectors = np.array([entry.embedding for entry in found.data])
    assert vectors == pytest.approx(towers.texts(TEXTS), abs=1e-6)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert found.usage.prompt_tokens == sum(map(towers.checked_length, TEXTS))
    assert found.model == "builtin"
    floats = client.embeddings.create(model="builtin", input=TEXTS[1], encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(vectors[1].tolist(), abs=1e-6)


def test_pictures_are_embedded_in_both_forms(server: ApiServer, towers: Towers) -> None:
    uri = picture_uri("red", (64, 48))
    image = Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))
    (expected,) = towers.pictures([image.convert("RGB")])
    mixed = post(server, input=[TEXTS[0], part(uri), TEXTS[1]]).json()["data"]
    assert mixed[1]["embedding"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert mixed[2]["embedding"] == pytest.approx(towers.texts(TEXTS)[1].tolist(), abs=1e-6)
    message = [{"role": "user", "content": [part(uri)]}]
    (alone,) = post(server, messages=message, encoding_format="base64").json()["data"]
    decoded = np.frombuffer(base64.b64decode(alone["embedding"]), "<f4")
    assert decoded == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "input", "missing"),
        ({"input": []}, "input", ""),
        ({"input": ""}, "input[0]", "empty"),
        ({"input": ["fine", " "]}, "input[1]", "empty"),
        ({"input": [1, 2]}, "input", "tokens are not supported"),
        ({"input": [[1, 2]]}, "input", "tokens are not supported"),
        ({"input": ["x"] * 257}, "input", "256"),
        ({"input": ["fine", "zebra " * 60]}, "input[1]", "reads 48"),
        ({"input": "x", "messages": asking("x")}, "input", "either"),
        ({"messages": asking("x", picture_uri())}, "messages", "apart"),
        ({"messages": asking("x") * 2}, "messages", ""),
        ({"input": "x", "dimensions": 64}, "dimensions", "192"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", ""),
        ({"input": "x", "truncate_prompt_tokens": 4}, "truncate_prompt_tokens", "not supported"),
        ({"input": [part("/etc/passwd")]}, "input[0].image_url.url", "data:"),
        ({"input": [part("data:image/png;base64,QUJD")]}, "input[0].image_url.url", ""),
        ({"input": [part(picture_uri(), detail="low")]}, "input[0].image_url.detail", "low"),
        ({"input": [part(picture_uri())] * 17}, "input", "17 pictures"),
        ({"input": "x", "model": "gpt-4o"}, "model", "gpt-4o"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_embedded_is_named(
    server: ApiServer, body: dict[str, Any], field: str, words: str
) -> None:
    response = post(server, **body)
    error = response.json()["error"]
    assert response.status_code == (404 if field == "model" else 400)
    assert error["param"] == field
    assert words in error["message"]
    assert server.api.answers_in_progress == 0


def test_the_width_may_be_named(server: ApiServer, towers: Towers) -> None:
    (entry,) = post(server, input="x", dimensions=towers.width).json()["data"]
    assert len(entry["embedding"]) == towers.width == 192


def test_a_model_without_towers_says_so() -> None:
    engine = FakeEngine()
    with serving(engine) as server:
        response = post(server, model="fake", input="x")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "model"
        assert "fake has no towers" in response.json()["error"]["message"]
    engine.close()


def test_chats_do_not_wait_for_embeddings(towers: Towers) -> None:
    """More of them than asyncio has threads."""
    loaded = threading.Event()

    def load() -> Towers:
        assert loaded.wait(PATIENCE)
        return towers

    engine = FakeEngine()
    with (
        serving(engine, listed=[BUILTIN], embedder=Embedder(load)) as server,
        ThreadPoolExecutor(40) as pool,
    ):
        waiting = [pool.submit(post, server, input="A tree.") for _ in range(40)]
        try:
            body = {"model": "builtin", "messages": asking("Why?")}
            answer = httpx.post(f"{server.address}/chat/completions", json=body, timeout=PATIENCE)
            assert answer.status_code == 200, answer.text
            assert not any(request.done() for request in waiting)
        finally:
            loaded.set()
        assert {request.result().status_code for request in waiting} == {200}
    engine.close()
