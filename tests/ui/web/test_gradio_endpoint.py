"""Malformed and forged calls of `/chat`: each gets a plain error, and none a traceback."""

from __future__ import annotations

import io
import json
import logging

import httpx
import pytest
from PIL import Image

from tests.fake_engine import FakeEngine
from tests.ui.server import running
from tests.waiting import PATIENCE

META = {"_type": "gradio.FileData"}
ODD = [
    None, True, 0, -1, 1e308, 10**30, "", "x", "\ud800", "\0", "x" * 100_000, [], [None], [1, [2]],
    {}, {"a": {"b": [1]}}, ["a"] * 1000,
]  # fmt: skip
"""Values of every JSON type."""
FORGED = [
    "/etc/passwd", "../../etc/passwd", "{upload}x", "{upload}/../../..", "{folder}", "/dev/zero",
    "/" + "a" * 5000, "http://127.0.0.1/x.png", "file:///etc/passwd", "con\nx", "\ud800", "x\0y",
]  # fmt: skip
"""Paths that are no upload."""


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    """Return a client of a server, at whose end all uploads must be deletable."""
    data = tmp_path_factory.mktemp("data")
    with (
        running({"fake": FakeEngine()}, data) as found,
        httpx.Client(base_url=found.address, timeout=PATIENCE) as client,
    ):
        client.get("/")
        yield client


@pytest.fixture(scope="module")
def upload(person):
    stream = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(stream, "PNG")
    (path,) = person.post("/gradio_api/upload", files={"files": ("a.png", stream)}).json()
    return path


def outcome(client, arguments) -> tuple[str, str]:
    """Call `/chat`; return the name and the data of the last event."""
    headers = {"content-type": "application/json"}
    body = json.dumps({"data": arguments})
    started = client.post("/gradio_api/call/chat", content=body, headers=headers)
    assert started.status_code == 200
    events = client.get(f"/gradio_api/call/chat/{started.json()['event_id']}").text
    name, data = events.strip().split("\n\n")[-1].split("\n", 1)
    return name.removeprefix("event: "), data.removeprefix("data: ")


def check_plain(client, arguments, capfd) -> str:
    """Check that a call is answered, or refused with a reason; return the reason."""
    name, data = outcome(client, arguments)
    assert "Traceback" not in capfd.readouterr().err, str(arguments)[:300]
    if name == "complete":
        return ""
    assert name == "error"
    reason = json.loads(data)["error"]
    assert reason, f"no reason for {str(arguments)[:300]}"
    assert "on our side" not in reason, f"unexpected error for {str(arguments)[:300]}"
    return reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        lambda value, path: [value],
        lambda value, path: [{"text": value, "files": []}],
        lambda value, path: [{"text": "x", "files": value}],
        lambda value, path: [{"text": "x", "files": [value]}],
        lambda value, path: [{"text": "x", "files": [{"path": value, "meta": META}]}],
        lambda value, path: [{"text": "x", "files": [{"path": path, "meta": value}]}],
        lambda value, path: [{"text": "x", "files": [], "more": value}],
        lambda value, path: [{"text": "x", "files": []}, value],
        *(
            lambda value, path, key=key: [
                {"text": "x", "files": [{"path": path, "meta": META, key: value}]}
            ]
            for key in ("url", "size", "orig_name", "mime_type", "is_stream")
        ),
    ],
)
def test_values_of_any_type_are_answered_or_refused_with_a_reason(person, upload, form, capfd):
    for value in ODD:
        check_plain(person, form(value, upload), capfd)


def test_a_call_without_arguments_is_told_the_format(person, capfd):
    assert '"text"' in check_plain(person, [], capfd)


@pytest.mark.parametrize("claims", [{"meta": META}, {}, {"meta": META, "is_stream": True}])
@pytest.mark.parametrize("path", FORGED)
def test_a_forged_path_gets_a_reason_and_one_line_in_the_log(
    person, upload, path, claims, capfd, caplog
):
    folder = upload.rpartition("/")[0]
    forged = {"path": path.format(upload=upload, folder=folder), **claims}
    reason = check_plain(person, [{"text": "x", "files": [forged]}], capfd)
    assert "paths and addresses are not accepted" in reason or '"text"' in reason
    (line,) = [one for one in caplog.records if one.name.startswith("ui.")]
    assert line.levelno == logging.WARNING
    assert "\n" not in line.getMessage()


@pytest.mark.parametrize("path", ["call/chat", "queue/join", "cancel", "reset"])
def test_a_body_that_is_no_call_is_refused(person, path, caplog):
    for body in (
        b"", b"{", b"[]", b"null", b"{}", b"\xff" * 10, b"[" * 100_000, b'{"data": 1}',
        b'{"data": [], "fn_index": 99, "session_hash": "x"}',
        b'{"data": [], "fn_index": "a", "session_hash": 1}',
        b'{"data": ["x"], "fn_index": 0, "trigger_id": 99}',
    ):  # fmt: skip
        headers = {"content-type": "application/json"}
        answer = person.post(f"/gradio_api/{path}", content=body, headers=headers)
        assert answer.status_code in (200, 400, 422), f"{answer.status_code} for {body[:60]!r}"
        if answer.status_code == 400:
            assert len(answer.text) > 10
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", ["call/nothing", "call/0", "call/v2/chat", "call/predict"])
def test_other_endpoints_do_not_exist(person, path):
    assert person.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404
