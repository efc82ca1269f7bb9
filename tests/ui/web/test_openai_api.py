"""OpenAI's API on the page's port: the page's models and passwords, OpenAI's client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fake_engine import FakeEngine
from tests.ui.server import RunningServer, running
from tests.vqa_app.serving.api_server import asking, picture_uri
from tests.waiting import PATIENCE


def client_of(server: RunningServer, key: str = "any", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.address}v1", api_key=key, max_retries=0, timeout=PATIENCE, **options
    )


def text_of(client: openai.OpenAI, model: str) -> str:
    messages: Any = asking("What is it?", picture_uri())
    stream = client.chat.completions.create(model=model, messages=messages, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_every_model_of_the_page_answers(tmp_path: Path) -> None:
    engines = {"first": FakeEngine(), "second": FakeEngine("Second.")}
    with running(dict(engines), tmp_path) as server, client_of(server) as client:
        assert [model.id for model in client.models.list()] == ["First", "Second"]
        assert text_of(client, "First") == "You asked 'What is it?' about one picture."
        assert text_of(client, "Second") == "Second."
        with pytest.raises(openai.BadRequestError, match="First has no towers"):
            client.embeddings.create(model="First", input="x")
        evil = {"origin": "https://evil.example"}
        refused = httpx.post(f"{server.address}v1/chat/completions", json={}, headers=evil)
        assert refused.status_code == 403
        assert refused.json()["error"]["type"] == "permission_error"


def test_the_counters_need_the_same_key_as_the_api(tmp_path: Path) -> None:
    with running({"first": FakeEngine()}, tmp_path, users={"ann": "secret"}) as server:
        with client_of(server, "ann:secret") as client:
            text_of(client, "First")
        metrics = f"{server.address}metrics"
        found = httpx.get(metrics, headers={"authorization": "Bearer ann:secret"})
        assert 'vqa_requests_total{status="200"} 1' in found.text.splitlines()
        assert httpx.get(metrics, auth=("ann", "secret")).status_code == 200
        assert httpx.get(metrics).status_code == 401
        assert httpx.get(metrics, headers={"authorization": "Bearer x"}).status_code == 401


def test_a_password_is_wanted_as_key_or_as_basic_authentication(tmp_path: Path) -> None:
    with running({"first": FakeEngine()}, tmp_path, users={"ann": "secret"}) as server:
        with client_of(server, "ann:secret") as client:
            assert text_of(client, "First").startswith("You asked")
        basic = {"Authorization": "Basic YW5uOnNlY3JldA=="}
        with client_of(server, default_headers=basic) as client:
            assert text_of(client, "First").startswith("You asked")
        for key in ("secret", "ann", "ann:wrong", "bob:secret"):
            with client_of(server, key) as client, pytest.raises(openai.AuthenticationError):
                client.models.list()
        page = httpx.get(server.address, headers={"authorization": "Bearer ann:secret"})
        assert page.status_code == 401, "keys are for the API alone"
        assert page.headers["www-authenticate"].startswith("Basic")
