"""The server without a browser: routes, security, the endpoint for programs."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

from tests.fake_engine import FakeEngine
from tests.ui.server import running
from tests.waiting import PATIENCE, until
from ui.app import Application, create_application
from ui.cli import _lock
from vqa_app.errors import ModelError, UsageError
from vqa_app.pictures.picture import ImageLimits
from vqa_app.serving.guard import COOKIE
from vqa_app.serving.listener import GRACE, _should_log, address_for_others, is_loopback, listen


@pytest.fixture(scope="module")
def engine():
    return FakeEngine()


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    with running({"fake": engine}, tmp_path_factory.mktemp("data")) as found:
        yield found


def png(colour="red", size=(32, 24)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def owner_of(server, client) -> str:
    from vqa_app.serving.guard import _digest

    return f"browser:{_digest(client.cookies[COOKIE])}"


def talk(server, client, question="What is it?", **request) -> dict:
    service = server.application.service
    return list(service.ask(owner_of(server, client), {"question": question, **request}))[-1][
        "view"
    ]


def test_health_and_readiness(server, person):
    assert person.get("/healthz").json() == {"status": "ok"}
    assert person.get("/readyz").json() == {"status": "ready"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/vqa/page.js", "/vqa/taught.zip"])
def test_head_requests_return_no_content(person, path):
    answer = person.head(path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert person.head("/vqa/pictures").status_code in (404, 405), "expected no HEAD for uploads"


def test_the_server_is_not_ready_while_the_model_loads(tmp_path):
    with running({"fake": FakeEngine()}, tmp_path, preload=False) as found:
        assert httpx.get(f"{found.address}readyz").status_code == 503
        assert httpx.get(f"{found.address}healthz").status_code == 200


@pytest.mark.parametrize("path", ["", "vqa/"])
def test_the_address_with_the_root_path_works_on_this_machine(tmp_path, path):
    from gradio_client import Client

    with running({"fake": FakeEngine()}, tmp_path, root_path="/vqa") as found:
        address = found.address + path
        with httpx.Client(timeout=PATIENCE) as client:
            page = client.get(address)
            assert page.status_code == 200
            for file in ("vqa/page.js", "vqa/page.css", "vqa/taught.zip", "healthz"):
                assert client.get(address + file).status_code == 200, file
            if path:
                assert client.cookies.get(COOKIE, path="/vqa")
                uploaded = client.post(f"{address}vqa/pictures?name=a.png", content=png())
                assert uploaded.json()["digest"]
                picture = client.get(f"{address}vqa/pictures/{uploaded.json()['digest']}")
                assert picture.headers["content-type"].startswith("image/")
        program = Client(address, verbose=False)
        answer = program.predict({"text": "What is it?", "files": []}, api_name="/chat")
        assert answer == "You asked 'What is it?' about no picture."


def test_the_page_refers_to_no_other_host(person):
    page = person.get("/").text
    remote = {
        url for url in re.findall(r'(?:src|href)="(https?://[^"]+)"', page)
        if not url.startswith(str(person.base_url))
    }  # fmt: skip
    assert "default-src 'self'" in person.get("/").headers["content-security-policy"]
    assert not remote


def test_taught_rows_can_be_exported_and_imported(server, person, other):
    found = person.post("/vqa/pictures?name=cat.png", content=png("cyan")).json()
    taught_rows, picture_store = (
        server.application.taught_rows,
        server.application.service.picture_store,
    )
    picture = picture_store.get(found["digest"])
    taught_rows.add(owner_of(server, person), "What is it?", "a cat", [picture])
    file = person.get("/vqa/taught.zip")
    assert file.headers["content-type"] == "application/zip"
    assert other.post("/vqa/taught", content=file.content).json() == {"count": 1, "problems": []}
    assert [row.answer for row in taught_rows.rows(owner_of(server, other))] == ["a cat"]
    answer = other.post("/vqa/datasets?name=cats.zip", content=file.content)
    assert answer.json() == {"done": True, "replaced": False, "unshared": False}
    assert other.post("/vqa/taught", content=b"no zip").status_code == 400


@pytest.mark.parametrize("name", ["page.js", "theme.js", "page.css", "icon.svg"])
def test_scripts_and_styles_are_served(person, name):
    assert person.get(f"/vqa/{name}").status_code == 200


@pytest.mark.parametrize(
    "path", ["/vqa/page.html", "/vqa/..%2fapp.py", "/vqa/nothing.js", "/vqa/pictures/..%2f..%2fx"]
)
def test_no_other_file_is_served(person, path):
    assert person.get(path).status_code == 404


def test_a_picture_is_re_encoded_and_visible_to_its_owner_only(person, other):
    payload = png() + b"<script>alert(1)</script>"
    found = person.post("/vqa/pictures?name=cat.png", content=payload).json()
    assert found["size"] == [32, 24]
    mine = person.get(f"/vqa/pictures/{found['digest']}")
    assert mine.headers["content-type"] == "image/png"
    assert b"<script>" not in mine.content
    for size in ("small", "large"):
        assert person.get(f"/vqa/pictures/{found['digest']}?size={size}").content == mine.content
    assert other.get(f"/vqa/pictures/{found['digest']}").status_code == 404


def test_large_pictures_are_served_in_smaller_sizes(person):
    payload = png("red", (3000, 40))
    found = person.post("/vqa/pictures?name=long.png", content=payload).json()
    for size, longest in (("small", 480), ("large", 2048)):
        answer = person.get(f"/vqa/pictures/{found['digest']}?size={size}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).width == longest


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"not a picture", ""),
        (png()[:40], ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'", ""),
    ],
)
def test_a_bad_picture_gets_a_clear_message(person, data, words):
    answer = person.post("/vqa/pictures?name=odd.png", content=data)
    assert answer.status_code == 400
    assert "odd.png" in answer.json()["error"]
    assert "/" not in answer.json()["error"].replace("and/or", "")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(person):
    answer = person.post("/vqa/pictures?name=big.png", content=b"x" * (21 * 2**20))
    assert answer.status_code == 413
    assert "20 MB" in answer.json()["error"]


@pytest.mark.parametrize(
    "claims",
    [
        {"meta": {"_type": "gradio.FileData"}}, {}, {"meta": {}}, {"is_stream": True},
        {"is_stream": True, "meta": {"_type": "gradio.FileData"}},
        {"url": "http://127.0.0.1/x.png", "meta": {"_type": "gradio.FileData"}},
    ],
)  # fmt: skip
def test_forged_paths_expose_no_files(person, tmp_path, claims):
    picture = tmp_path / "secret.png"
    Image.new("RGB", (20, 20)).save(picture)
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    for path in (str(picture), f"{folder}/../{picture.relative_to('/')}", "/etc/passwd"):
        started = person.post(
            "/gradio_api/call/chat",
            json={"data": [{"text": "x", "files": [{"path": path, **claims}]}]},
        )
        events = person.get(f"/gradio_api/call/chat/{started.json()['event_id']}").text
        assert "event: error" in events
        assert person.get(f"/gradio_api/file={path}").status_code in (403, 404)
    assert picture.exists()
    assert not list(folder.rglob("secret.png")), "Gradio has published a copy"


def test_a_visitor_without_a_cookie_is_refused(server):
    answer = httpx.post(f"{server.address}vqa/requests/act", json={"do": "hello"})
    assert answer.status_code == 400
    assert "cookies" in answer.json()["error"]


def test_a_request_of_another_name_is_not_found(person):
    assert person.post("/vqa/requests/nothing", content=b"{}").status_code == 404


def test_an_unknown_request_is_not_found(person):
    answer = person.post("/vqa/requests/act", json={"do": "nothing"})
    assert "Unknown request 'nothing'" in json.loads(answer.text)["error"]


def test_an_answer_is_streamed_as_lines(person):
    question = b'{"question": "What \\ud800 is it?"}'
    with person.stream("POST", "/vqa/requests/ask", content=question) as answer:
        lines = [json.loads(line) for line in answer.iter_lines() if line]
    assert lines[0]["view"]["busy"]
    assert any("live" in line for line in lines)
    assert lines[-1]["view"]["turns"][0]["answer"].startswith("You asked")


def test_the_page_runs_only_its_own_scripts(person):
    answer = person.get("/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src" not in policy, "default-src 'self' covers scripts"
    assert not re.search(r"<script(?![^>]*src=)|\son[a-z]+=|\sstyle=", answer.text)


def test_requests_from_other_origins_are_refused(person):
    for path in ("/", "/gradio_api/upload", "/gradio_api/queue/join", "/vqa/requests/act"):
        for method in ("POST", "OPTIONS", "GET"):
            answer = person.request(method, path, headers={"origin": "http://evil.example"})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers


def test_a_chat_exported_as_json_can_be_imported(server, person, other):
    found = person.post("/vqa/pictures?name=cat.png", content=png("blue")).json()
    view = talk(server, person, pictures=[found["digest"]])
    view = talk(server, person, "And now?", conversation=view["conversation"])
    chat = view["conversation"]
    file = person.get(f"/vqa/conversations/{chat}.json")
    assert "attachment" in file.headers["content-disposition"]
    assert other.get(f"/vqa/conversations/{chat}.json").status_code == 404
    taken = other.post("/vqa/conversations", content=file.content).json()
    copy = server.application.service.view(owner_of(server, other), taken["conversation"])
    copied = [(t["question"], t["answer"], len(t["pictures"])) for t in copy["turns"]]
    assert copied == [(t["question"], t["answer"], len(t["pictures"])) for t in view["turns"]]
    assert other.get(f"/vqa/pictures/{found['digest']}").status_code == 200


def test_a_chat_exported_as_html_is_self_contained(server, person):
    found = person.post("/vqa/pictures?name=cat.png", content=png("green")).json()
    view = talk(server, person, "<b>bold?</b>", pictures=[found["digest"]])
    page = person.get(f"/vqa/conversations/{view['conversation']}.html").text
    assert "data:image/jpeg;base64," in page
    assert "&lt;b&gt;bold?" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    address = f"/vqa/conversations/{view['conversation']}.html"
    german = person.get(address, headers={"accept-language": "de"}).text
    assert '<html lang="de">' in german
    assert "Bild 1 · cat.png" in german


def test_a_chat_exported_as_markdown_can_be_read(server, person, other):
    found = person.post("/vqa/pictures?name=cat.png", content=png("navy")).json()
    view = talk(server, person, "Two\nlines?", pictures=[found["digest"]])
    address = f"/vqa/conversations/{view['conversation']}.md"
    text = person.get(address).text
    answer = view["turns"][0]["answer"]
    assert text.startswith(f"# {view['title']}\n\n*Picture 1: cat.png*\n\n> Two\n> lines?\n\n")
    assert text.endswith(f"{answer}\n\n*{view['turns'][0]['facts']['model']}*\n")
    assert other.get(address).status_code == 404


def test_all_chats_of_an_owner_are_exported_together(server, person, other):
    found = person.post("/vqa/pictures?name=cat.png", content=png("olive")).json()
    for question in ("Same?", "Same?", "../../../etc: passwd?"):
        talk(server, person, question, pictures=[found["digest"]])
    answer = person.get("/vqa/chats.zip")
    assert "chats.zip" in answer.headers["content-disposition"]
    none = other.get("/vqa/chats.zip").content
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    names = sorted(archive.namelist())
    picture = f"pictures/{found['digest'][:16]}.png"
    assert names == [
        "001 etc passwd.json", "001 etc passwd.md", "002 Same.json", "002 Same.md",
        "003 Same.json", "003 Same.md", picture,
    ]  # fmt: skip
    assert f"]({picture})" in archive.read("002 Same.md").decode()
    assert Image.open(io.BytesIO(archive.read(picture))).size == (32, 24)
    assert zipfile.ZipFile(io.BytesIO(none)).namelist() == []


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[1]", b"[" * 100_000,
        json.dumps({"format": "vqa-app conversation", "version": 1, "turns": [3]}).encode(),
        json.dumps({"format": "vqa-app conversation", "version": 99, "turns": []}).encode(),
        json.dumps({"format": "vqa-app conversation", "version": 1,
                    "turns": [{"id": "a", "question": "q", "answer": "a", "facts": []}],
                    "pictures": {"x": {"name": "n", "data": "!!"}}}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_a_reason(person, data):
    answer = person.post("/vqa/conversations", content=data)
    assert answer.status_code == 400
    assert len(answer.json()["error"]) > 10


def forged(**changes) -> bytes:
    turns = [{"id": "a", "question": "q", "answer": "a"},
             {"id": "b", "question": "q", "answer": "a", **changes}]  # fmt: skip
    return json.dumps({"format": "vqa-app conversation", "version": 1, "turns": turns}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"pictures": 5}, {"pictures": [[1]]}, {"pictures": ["x"] * 9}, {"facts": 3}, {"id": 5},
        {"question": "x" * 20_001}, {"answer": "x" * 40_961}, {"question": "\ud800"},
    ],
)  # fmt: skip
def test_a_refused_import_stores_nothing(server, person, changes):
    answer = person.post("/vqa/conversations", content=forged(**changes))
    assert answer.status_code == 400
    assert "Question 2" in answer.json()["error"]
    assert server.application.service.store.conversations(owner_of(server, person)) == []


def test_imported_facts_are_validated(server, person):
    facts = {"gain": "x", "confidence": float("nan"), "new_tokens": 2.5, "prompt_tokens": 10**400,
             "model": "m" * 300, "style": "short", "finish": True, "cached_tokens": 3}  # fmt: skip
    taken = person.post("/vqa/conversations", content=forged(facts=facts)).json()
    store = server.application.service.store
    (*_, turn) = store.path(owner_of(server, person), taken["conversation"])
    assert turn.facts == {"style": "short", "cached_tokens": 3}


def test_imports_need_a_cookie(server):
    for path in ("/vqa/conversations", "/vqa/taught", "/vqa/datasets", "/vqa/pictures"):
        answer = httpx.post(server.address.rstrip("/") + path, content=png())
        assert answer.status_code == 400
        assert "cookies" in answer.json()["error"]


@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_the_endpoint_downloads_nothing(person, monkeypatch, scheme):
    fetched = []

    async def fetch(url, cache_dir):
        fetched.append(url)
        raise AssertionError

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    file = {"path": f"{scheme}://192.0.2.1/x.png", "meta": {"_type": "gradio.FileData"}}
    started = person.post(
        "/gradio_api/call/chat", json={"data": [{"text": "x", "files": [file]}]}
    ).json()
    events = person.get(f"/gradio_api/call/chat/{started['event_id']}").text
    assert "event: error" in events
    assert not fetched
    assert "paths and addresses are not accepted" in events


@pytest.mark.parametrize(
    "message",
    [None, "What?", {"text": None}, {"text": "x", "files": "cat.png"}, {"files": []},
     {"text": "x", "files": ["cat.png"]}, [1]],
)  # fmt: skip
def test_the_endpoint_explains_its_message_format(person, message, capfd):
    started = person.post("/gradio_api/call/chat", json={"data": [message]}).json()
    events = person.get(f"/gradio_api/call/chat/{started['event_id']}").text
    assert "event: error" in events
    assert '\\"text\\"' in events
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://192.0.2.1/x.png", "/gradio_api/file/http://192.0.2.1/x.png",
        "/gradio_api/%66ile=https:%2f%2f192.0.2.1/x.png", "/gradio_api/FILE=http://192.0.2.1/x.png",
        "//gradio_api/file=http://192.0.2.1/x.png", "/gradio_api//file=http://192.0.2.1/x.png",
        "/gradio_api/%2566ile=http://192.0.2.1/x.png", "/vqa/gradio_api/file=http://192.0.2.1/x",
        "/gradio_api/proxy=http://192.0.2.1/x.png", "/gradio_api/info/../file=http://192.0.2.1/x",
    ],
)  # fmt: skip
def test_no_path_makes_the_server_fetch_a_url(person, monkeypatch, path):
    async def fetch(*_):
        raise AssertionError("fetched")

    monkeypatch.setattr("gradio.routes.secure_url_stream_response", fetch)
    for method in ("GET", "HEAD"):
        assert person.request(method, f"{person.base_url}"[:-1] + path).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json", "/gradio_api/openapi.json", "/assets/index.js", "/theme.css",
        "/gradio_api/dev/reload",
        "/gradio_api/deep_link?session_hash=x", "/gradio_api/runs",
        "/gradio_api/vibe-code", "/monitoring", "/docs", "/gradio_api/stream/a/b/c/playlist-file",
    ],
)  # fmt: skip
def test_unneeded_routes_are_not_found(person, path):
    assert person.get(path).status_code == 404


def test_the_endpoint_streams(server, engine, tmp_path):
    from gradio_client import Client, handle_file

    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    client = Client(server.address, verbose=False)
    try:
        message = {"text": "What colour?", "files": [handle_file(str(tmp_path / "red.png"))]}
        job = client.submit(message, api_name="/chat")
        steps = list(job)
        assert steps[-1] == "You asked 'What colour?' about one picture."
        assert all(steps[-1].startswith(step) for step in steps)
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"nothing")
        job = client.submit({"text": "?", "files": [handle_file(str(bad))]}, api_name="/chat")
        with pytest.raises(Exception, match="picture 1"):
            job.result(timeout=PATIENCE)
    finally:
        client.close()


def test_calls_about_the_same_file_at_once_are_all_answered(server, tmp_path):
    from gradio_client import Client, handle_file

    Image.new("RGB", (40, 20), "blue").save(tmp_path / "blue.png")
    client = Client(server.address, verbose=False)
    try:
        file = handle_file(str(tmp_path / "blue.png"))
        jobs = [
            client.submit({"text": f"Question {n}?", "files": [file]}, api_name="/chat")
            for n in range(30)
        ]
        answers = [job.result(timeout=PATIENCE) for job in jobs]
    finally:
        client.close()
    assert answers == [f"You asked 'Question {n}?' about one picture." for n in range(30)]


def call_endpoint(client, *arguments) -> str:
    """Call `/chat` as a program without Gradio's client does; return the events."""
    started = client.post("/gradio_api/call/chat", json={"data": list(arguments)})
    return client.get(f"/gradio_api/call/chat/{started.json()['event_id']}").text


def upload(client, data: bytes) -> dict:
    """Upload a file for the endpoint; return its part of a message."""
    (path,) = client.post("/gradio_api/upload", files={"files": ("cat.png", data)}).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_one_upload_serves_several_calls(person):
    file = upload(person, png("green"))
    for _ in range(3):
        assert "about one picture" in call_endpoint(person, {"text": "What?", "files": [file]})


def test_uploads_of_the_endpoint_are_deleted_by_their_age(tmp_path, monkeypatch):
    monkeypatch.setattr("ui.web.gradio_endpoint._CLEANING_SECONDS", 0.05)
    monkeypatch.setattr("ui.web.gradio_endpoint.UPLOAD_SECONDS", 0.05)
    with (
        running({"fake": FakeEngine()}, tmp_path) as found,
        httpx.Client(base_url=found.address, timeout=PATIENCE) as client,
    ):
        path = Path(upload(client, png("pink"))["path"])
        until(lambda: not path.exists())


def test_with_users_everything_but_health_needs_a_password(tmp_path):
    with (
        running({"fake": FakeEngine()}, tmp_path, users={"ann": "secret"}) as found,
        httpx.Client(base_url=found.address) as client,
    ):
        for path in ("/", "/config", "/vqa/page.js", "/gradio_api/info", "/openapi.json"):
            assert client.get(path).status_code == 401
        assert client.get("/", auth=("ann", "secret")).status_code == 200


def test_a_taken_port_is_reported_with_a_free_one():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"Port {port} is taken") as refusal:
            listen("127.0.0.1", port)
    offered = int(re.search(r"--port (\d+)", str(refusal.value)).group(1))
    listen("127.0.0.1", offered).close()


def test_the_address_for_other_machines_is_found(monkeypatch):
    with listen("127.0.0.1", 0) as own:
        assert address_for_others(own) is None
    with listen("0.0.0.0", 0) as everywhere:
        port = everywhere.getsockname()[1]
        if found := address_for_others(everywhere):  # none without a network
            host = found.split("/")[2].rpartition(":")[0]
            assert not is_loopback(host)
            socket.create_connection((host, port), timeout=10).close()
        monkeypatch.setattr("vqa_app.serving.listener._own_host", lambda _: "192.168.0.2")
        assert address_for_others(everywhere, "/vqa") == f"http://192.168.0.2:{port}/vqa/"
        monkeypatch.setattr("vqa_app.serving.listener._own_host", lambda _: None)
        assert address_for_others(everywhere) is None


def test_loopback_addresses_are_recognised():
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.168.0.2")


PROGRAM = """
import socket, sys, threading

def watched(real, place):
    def call(*arguments, **options):
        address = arguments[place]
        host = address[0] if isinstance(address, tuple) else address
        if host and not str(host).startswith(("127.", "::1", "localhost", "/")):
            print("OUTSIDE", address, file=sys.stderr)
        return real(*arguments, **options)
    return call

socket.socket.connect = watched(socket.socket.connect, 1)
socket.getaddrinfo = watched(socket.getaddrinfo, 0)
from pathlib import Path
from tests.fake_engine import FakeEngine
from ui.app import create_application, exit_process
from vqa_app.serving.engine_pool import ModelChoice
from vqa_app.serving.listener import address_of, listen

listener = listen("127.0.0.1", 0)
engine = FakeEngine("one two three", hold_after=1)
choices = [ModelChoice(key, key.title(), "", "", key) for key in ("fake", "slow")]

def run_forever(*_, **__):
    threading.Event().wait()

def load(choice, progress):
    return run_forever() if choice.key == "slow" else engine.reopen()

app = create_application(Path(sys.argv[1]), load, lambda: choices, "fake", train=run_forever)
app.service.pool.start_loading()
app.service.pool.start_loading("slow")
app.taught_rows.add("ann", "What?", "this", [])
app.training.start("ann", {"sources": ["mine"]})
print(address_of(listener), flush=True)
app.serve(listener)
exit_process()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_a_server_makes_no_connections_and_stops_on_ctrl_c_despite_running_work(tmp_path):
    """With a streaming answer, a loading model, and a training whose step does not end."""
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        address = process.stdout.readline().strip()
        started = httpx.post(
            f"{address}gradio_api/call/chat",
            json={"data": [{"text": "x", "files": []}]},
            timeout=PATIENCE,
        )
        first = threading.Event()

        def read() -> None:
            url = f"{address}gradio_api/call/chat/{started.json()['event_id']}"
            try:
                with httpx.stream("GET", url, timeout=PATIENCE) as stream:
                    for line in stream.iter_lines():
                        if "one" in line:
                            first.set()
            except httpx.HTTPError:
                pass  # the server cuts the stream when it stops

        threading.Thread(target=read, daemon=True).start()
        assert first.wait(PATIENCE)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)  # the running work would never end
    finally:
        process.kill()
    errors = process.stderr.read()
    assert "OUTSIDE" not in errors, errors
    assert "Traceback" not in errors, errors


@pytest.mark.parametrize("option", ["--data-dir", "--share-data-dir"])
def test_both_names_of_the_data_folder_option_work(tmp_path, monkeypatch, option):
    from typer.testing import CliRunner

    from ui.cli import app
    from vqa_app.cli.main import app as all_commands

    monkeypatch.setattr(
        "ui.app.Application.serve", lambda application, listener, stop: application.close()
    )
    monkeypatch.setattr("ui.app.exit_process", lambda: None)
    arguments = [option, str(tmp_path / "here"), "--no-browser", "--port", "0"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert (tmp_path / "here" / "chats.sqlite").exists()
    shown = CliRunner().invoke(all_commands, ["chat", "--help"]).output
    assert "--data-dir, --share-data-dir DIR" in shown, "expected both names in the help"


def unusable(folder, what):
    match what:
        case "a file":
            folder.write_text("x")
        case "under a file":
            folder.write_text("x")
            return folder / "inside"
        case "damaged":
            folder.mkdir()
            (folder / "chats.sqlite").write_bytes(b"no database" * 1000)
    return folder


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a file", "cannot be used"),
        ("under a file", "cannot be used"),
        ("damaged", r"chats.sqlite is damaged: .*\nMove it away"),
    ],
)
def test_an_unusable_data_folder_is_named(tmp_path, what, words):
    folder = unusable(tmp_path / "data", what)
    with pytest.raises(UsageError, match=words) as refusal:
        create_application(folder, lambda *_: FakeEngine(), list, "fake")
    assert str(folder) in str(refusal.value)
    assert "--data-dir" in str(refusal.value)


def test_a_second_server_on_a_data_folder_gets_a_warning(tmp_path, capsys):
    """The lock file that a killed server leaves behind causes none."""
    (tmp_path / ".lock").write_text("left by a server that was killed")
    first = _lock(tmp_path)
    assert first.is_locked
    assert not capsys.readouterr().err
    _lock(tmp_path)
    assert "another server uses this data folder" in capsys.readouterr().err
    first.release()
    _lock(tmp_path).release()
    assert not capsys.readouterr().err


def test_requests_for_unknown_streams_are_not_logged(tmp_path, caplog):
    with (
        running({"fake": FakeEngine()}, tmp_path) as found,
        caplog.at_level("ERROR", logger="uvicorn.error"),
    ):
        uvicorn_log = logging.getLogger("uvicorn.error")
        uvicorn_log.addHandler(caplog.handler)
        for path in ("call/chat/nothing", "queue/data?session_hash=x"):
            with contextlib.suppress(httpx.RemoteProtocolError):  # the response is cut
                httpx.get(f"{found.address}gradio_api/{path}", timeout=PATIENCE)
        uvicorn_log.removeHandler(caplog.handler)
    assert len(caplog.records) == 2
    assert not any(map(_should_log, caplog.records))
    bug = logging.makeLogRecord({"exc_info": (KeyError, KeyError("x"), None), "msg": "Bug"})
    assert _should_log(bug)


def test_options_reach_the_model_and_the_picture_limits(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from ui.cli import app

    given, created = [], []

    def load(*arguments, offline, check):
        given.append((*arguments, offline))
        raise ModelError("enough")

    def serve(application, listener, stop):
        created.extend((application.service.picture_store.limits, application.training.device))
        application.service.pool._slots["start"].finished.wait(PATIENCE)
        application.close()

    monkeypatch.setattr("vqa_app.checkpoints.loader.load_model", load)
    monkeypatch.setattr("ui.cli.stay_offline", lambda: given.append("offline"))
    monkeypatch.setattr("ui.app.Application.serve", serve)
    monkeypatch.setattr("ui.app.exit_process", lambda: None)
    words = "-m a/b --adapter c/d --quantize 4bit --device cpu --dtype float32 --revision e"
    words += f" --offline --max-file-mb 40 --max-megapixels 60 --data-dir {tmp_path}"
    arguments = [*words.split(), "--no-browser", "--port", "0"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert given == ["offline", ("a/b", "c/d", "cpu", "float32", "4bit", "e", False)]
    assert created == [ImageLimits(40 * 2**20, 60_000_000), "cpu"]


def test_closing_waits_for_everything_within_one_time_limit():
    given: list[float] = []

    def slow(patience):
        given.append(patience)
        time.sleep(patience)

    closable = SimpleNamespace(close=slow)
    service = SimpleNamespace(stop_all=slow, pool=closable, store=SimpleNamespace(close=list))
    Application(None, service, None, closable, SimpleNamespace(stop_all=list)).close(patience=0.2)
    assert len(given) == 3
    assert sum(given) < 0.21
    patience = inspect.signature(Application.close).parameters["patience"].default
    assert GRACE + patience < 2, "expected the server to end within two seconds of Ctrl-C"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--auth", "ann"], "needs a user and a password"),
        (["--auth", "ann:a", "--auth", "bob:b", "--auth", "ann:c"], "names ann twice"),
        (["--host", "no.such.host"], "listen on"),
        (["--root-path", "a b?c"], "not a path"),
        (["--root-path", "/vqa; Secure"], "not a path"),
    ],
)
def test_invalid_options_are_named(options, words):
    import typer

    from ui.cli import app

    with pytest.raises(UsageError, match=words):
        typer.main.get_command(app).main(["--no-browser", *options], standalone_mode=False)
