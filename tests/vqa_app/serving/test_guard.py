"""The guard, on a small application of its own."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from vqa_app.serving.guard import COOKIE, MAX_WRONG_PASSWORDS, AccessRules, Guard


def application(rules: AccessRules) -> Guard:
    async def page(request: Request):
        return HTMLResponse(request.query_params.get("say") or f"owner={request.state.owner}")

    async def echo(request: Request):
        return PlainTextResponse(f"{len(await request.body())} bytes")

    routes = [
        Route("/", page),
        Route("/foreign", page),
        Route("/healthz", page),
        Route("/echo", echo, methods=["GET", "POST"]),
    ]
    return Guard(Starlette(routes=routes), rules)


def client(base_url: str = "http://localhost:7860", **rules) -> TestClient:
    return TestClient(application(AccessRules(**rules)), base_url=base_url)


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1:7860", "[::1]:7860", "10.0.0.7"])
def test_local_names_and_addresses_are_answered(host):
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[bad"])
def test_a_rebound_host_name_is_refused(host):
    assert client().get("/", headers={"host": host}).status_code == 421


def test_a_host_can_be_allowed():
    assert (
        client(hosts=frozenset({"vqa.example"}))
        .get("/", headers={"host": "vqa.example"})
        .is_success
    )


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:9999", "http://[", "http://[x]"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_origins_are_refused_for_every_method(origin, method):
    response = client().request(method, "/echo", headers={"origin": origin})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_a_cross_site_form_without_an_origin_is_refused():
    assert client().post("/echo", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_link_from_another_site_opens_the_page():
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client().get("/", headers=headers).status_code == 200


def test_the_page_and_programs_may_post():
    assert client().post("/echo", headers={"origin": "http://localhost:7860"}).is_success
    assert client().post("/echo").is_success


def test_each_browser_is_its_own_owner_identified_by_a_cookie():
    ann, bob = client(), client()
    ann.get("/")
    cookie = ann.cookies[COOKIE]
    first, again = ann.get("/").text, ann.get("/").text
    bob.get("/")
    assert first == again != bob.get("/").text
    assert first.startswith("owner=browser:")
    assert cookie not in first


def test_the_cookie_is_hidden_from_scripts_and_other_sites():
    header = client().get("/").headers["set-cookie"]
    assert "HttpOnly" in header
    assert "SameSite=Lax" in header


def test_a_forged_cookie_has_no_owner():
    page = client()
    page.cookies.set(COOKIE, "admin")
    assert page.get("/").text == "owner="


def test_only_health_is_served_without_a_password():
    page = client(users={"ann": "pass:word"})
    assert page.get("/").status_code == 401
    assert page.get("/healthz").is_success
    assert page.get("/", auth=("ann", "wrong")).status_code == 401
    assert page.get("/", auth=("bob", "")).status_code == 401
    assert page.get("/", auth=("ann", "pass:word")).text == "owner=user:ann"
    assert page.get("/", headers={"authorization": "Basic %%%"}).status_code == 401


def test_guessing_passwords_is_slowed_without_delaying_others(monkeypatch, caplog):
    release = asyncio.Event()
    monkeypatch.setattr("vqa_app.serving.guard.sleep", lambda _: release.wait())
    guard = application(AccessRules(users={"ann": "right"}))

    async def ask(password: str, address: str, **headers: str) -> int:
        transport = httpx.ASGITransport(guard, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/", auth=("ann", password), headers=headers)).status_code

    async def tried() -> None:
        guesses = [asyncio.create_task(ask(str(n), "10.0.0.1")) for n in range(40)]
        while sum(task.done() for task in guesses) < 40 - MAX_WRONG_PASSWORDS:
            await asyncio.sleep(0)
        assert {task.result() for task in guesses if task.done()} == {429}
        assert await ask("right", "10.0.0.1") == 429, (
            "expected a refusal without checking the password"
        )
        assert await ask("right", "10.0.0.2") == 200
        assert await ask("right", "127.0.0.1", **{"x-forwarded-for": "x, 10.0.0.2"}) == 200
        assert await ask("right", "127.0.0.1", **{"x-forwarded-for": "x, 10.0.0.1"}) == 429
        assert await ask("right", "10.0.0.2", **{"x-forwarded-for": "10.0.0.1"}) == 200
        own = [asyncio.create_task(ask("wrong", "127.0.0.1")) for _ in range(40)]
        assert await ask("right", "127.0.0.1") == 200, (
            "expected no delay for clients of a proxy that does not name them"
        )
        release.set()
        assert set(await asyncio.gather(*own)) == {401}
        assert (await asyncio.gather(*guesses)).count(401) == MAX_WRONG_PASSWORDS
        assert await ask("right", "10.0.0.1") == 200
        assert not guard._wrong

    with ThreadPoolExecutor(1) as aside:  # Playwright has an event loop in the main thread
        aside.submit(asyncio.run, tried()).result()
    assert caplog.text.count("Wrong password or key from 10.0.0.1") == MAX_WRONG_PASSWORDS


def test_large_bodies_are_refused_with_and_without_a_declared_length():
    page = client(max_body=1000)
    assert page.post("/echo", content=b"x" * 1001).status_code == 413
    assert page.post("/echo", content=iter([b"x" * 600] * 2)).status_code == 413
    assert page.post("/echo", content=iter([b"x" * 400] * 2)).text == "800 bytes"


def test_no_inline_script_runs():
    answer = client().get("/", params={"say": "<script>evil()</script>"})
    assert answer.text == "<script>evil()</script>"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_paths_that_are_not_allowed_are_not_found():
    page = client(reachable=re.compile("/|/echo"))
    assert page.get("/echo").is_success
    for path in ("/foreign", "/echo/x", "/echo/", "/echo%0a", "/ECHO"):
        assert page.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/missing", "/echo"])
def test_every_answer_carries_the_policy(path):
    headers = client().get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http:" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/vqa/", 200),
        ("/vqa/healthz", 200),
        ("/healthz", 200),
        ("/vqa/echo", 200),
        ("/vqa/vqa/echo", 200),
        ("/vqa/elsewhere", 404),
        ("/vqa/vqa/", 404),
        ("/vqax/", 404),
        ("/other/", 404),
    ],
)
def test_paths_are_answered_with_and_without_the_root_path(path, status):
    """`/vqa/echo` is a path of the application, and also its `/echo` under the root path."""

    async def answer(request: Request):
        return PlainTextResponse(request.url.path)

    routes = [Route(path, answer) for path in ("/", "/healthz", "/vqa/echo")]
    rules = AccessRules(root_path="/vqa", reachable=re.compile("/|/healthz|/vqa/echo"))
    found = TestClient(Guard(Starlette(routes=routes), rules), "http://localhost").get(path)
    assert found.status_code == status
    if status == 200 and path != "/":
        assert "Path=/vqa" in found.headers.get("set-cookie", "Path=/vqa")
