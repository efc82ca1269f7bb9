"""Malformed and forged requests of the page: each gets a plain error, and none a traceback."""

from __future__ import annotations

import json
import logging

import httpx
import pytest

from tests.fake_engine import FakeEngine
from tests.ui.server import running
from ui.chat.requests import UNEXPECTED_ERROR
from ui.web.page import request_handlers

TEXT, TEXTS, FLAG, NUMBER = ("text",), ("texts",), ("flag",), ("number",)
FIELDS = {
    "conversation": TEXT, "turn": TEXT, "shown": TEXT, "title": TEXT, "words": TEXT,
    "question": TEXT, "answer": TEXT, "digest": TEXT, "replaces": TEXT, "again": TEXT,
    "model": TEXT, "named": TEXT, "verdict": TEXT, "correction": TEXT, "row": TEXT,
    "name": TEXT, "stage": TEXT, "pictures": TEXTS, "models": TEXTS, "sources": TEXTS,
    "kind": TEXT, "keep": FLAG, "download": FLAG, "others": FLAG,
    "follow": FLAG, "rehearse": FLAG, "skip": FLAG, "shared": FLAG, "most": NUMBER,
}  # fmt: skip
ACTIONS = {
    "ask": [None],
    "pick": [None],
    "compare": [None],
    "warm": [None],
    "look": [None, "saw"],
    "estimate": [None],
    "act": [
        "hello", "open", "refresh", "rename", "system", "pin", "archive", "delete", "undo-delete",
        "delete-turn", "branch", "stop", "search",
        "models", "stop-comparing", "cancel-load", "settings", "scene",
    ],
    "teach": ["judge", "corrected", "list", "edit", "delete", "delete-all", "undo-import"],
    "train": [None, "check", "start", "go-on", "stop"],
    "models": ["describe", "suggest", "installed", "delete"],
    "library": ["list", "rename", "share", "delete"],
}  # fmt: skip
"""The requests that the page makes, by the name of their handler."""
WRONG = {
    TEXT: [True, 7, ["x"], {"a": [1]}],
    TEXTS: [True, 7, "x", {"a": [1]}, [None], [["x"]], [{}]],
    FLAG: [7, "x", ["x"], {}],
    NUMBER: [True, "x", 1.5, ["x"], {}],
}
"""Values of other types than the page sends, by the type that it sends."""
ODD = ["", "x", "\0", "\ud800", "../../etc/passwd", "x" * 30_000, -1, 10**30, 1e308, None, [], {}]
"""Values that nothing stands for."""
NO_OBJECTS = [
    b"", b"null", b"[1]", b'"x"', b"{", b"\xff", b"[" * 100_000, b'{"a":' * 5000,
    b'{"temperature": NaN}', b'{"epochs": 1e999}', b'{"seed": ' + b"9" * 5000 + b"}",
]  # fmt: skip
SETTINGS = ("system", "temperature", "top_p", "max_new_tokens", "seed", "style", "epochs", "lr")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running({"fake": FakeEngine()}, tmp_path_factory.mktemp("data")) as found:
        yield found


def send(client, name, request) -> httpx.Response:
    return client.post(f"/vqa/requests/{name}", content=json.dumps(request))


def check_refusal(answer, status=400) -> None:
    assert answer.status_code == status
    assert len(answer.json()["error"]) > 10


def check_no_bug(answer, request, caplog) -> None:
    assert answer.status_code in (200, 400), f"{answer.status_code} for {request}"
    assert UNEXPECTED_ERROR not in answer.text, f"unexpected error for {request}"
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR], str(request)[:500]


def test_every_request_of_the_page_is_in_the_table(server):
    services = server.application
    known = request_handlers(services.service, services.taught_rows, services.training)
    assert set(known) == set(ACTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIONS)
def test_a_field_of_another_type_is_named(person, name, caplog):
    for action in ACTIONS[name]:
        for field, kind in FIELDS.items():
            for value in WRONG[kind]:
                answer = send(person, name, {"do": action, field: value})
                check_refusal(answer)
                assert f"'{field}'" in answer.json()["error"]
    for action in (True, 7, ["hello"], {}):
        check_refusal(send(person, name, {"do": action}))
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIONS)
def test_odd_values_and_missing_fields_are_no_bug(person, name, caplog):
    for action in ACTIONS[name]:
        for value in ODD:
            right = {
                field: [value] if kind == TEXTS else value
                for field, kind in FIELDS.items()
                if isinstance(value, str) == (kind in (TEXT, TEXTS)) or value is None
            }
            for request in ({"do": action, **right}, {"do": action, **dict.fromkeys(FIELDS)}):
                check_no_bug(send(person, name, request), request, caplog)
            for field in SETTINGS:
                request = {"do": action, field: value}
                check_no_bug(send(person, name, request), request, caplog)
        check_no_bug(send(person, name, {"do": action}), action, caplog)


@pytest.mark.parametrize("name", ACTIONS)
def test_what_is_no_json_object_is_refused(person, name, caplog):
    for data in NO_OBJECTS:
        check_refusal(person.post(f"/vqa/requests/{name}", content=data))
    check_refusal(person.post(f"/vqa/requests/{name}", content=b" " * 2**21), 413)
    assert not caplog.records


def test_an_error_before_the_first_update_has_a_status_of_its_own(server, person, monkeypatch):
    check_refusal(send(person, "ask", {"question": "What?", "conversation": "nothing"}))
    check_refusal(send(person, "pick", {"model": "nothing"}))

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(server.application.service.store, "search", fail)
    answer = send(person, "act", {"do": "search", "words": "x"})
    check_refusal(answer, 500)
    assert answer.json()["error"] == UNEXPECTED_ERROR
