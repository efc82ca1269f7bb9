"""Malformed and forged requests of the page: each gets a plain error, and none a traceback."""

from __future__ import annotations

import json
import logging

import httpx
import pytest

from tests.fake_engine import FakeEngine
from tests.ui.server import running
from ui.chat import requests
from ui.chat.requests import UNEXPECTED_ERROR
from ui.web.page import request_handlers
from vqa_app.errors import UsageError

TEXT, TEXTS, FLAG, NUMBER, NUMBERS = ("text",), ("texts",), ("flag",), ("number",), ("numbers",)
FIELDS = {
    "conversation": TEXT, "turn": TEXT, "shown": TEXT, "title": TEXT, "words": TEXT,
    "question": TEXT, "answer": TEXT, "digest": TEXT, "replaces": TEXT, "again": TEXT,
    "model": TEXT, "named": TEXT, "verdict": TEXT, "correction": TEXT, "row": TEXT,
    "name": TEXT, "stage": TEXT, "pictures": TEXTS, "models": TEXTS, "sources": TEXTS,
    "kind": TEXT, "keep": FLAG, "download": FLAG, "others": FLAG,
    "follow": FLAG, "rehearse": FLAG, "skip": FLAG, "shared": FLAG, "most": NUMBER,
    "conversations": TEXTS, "pinned": FLAG, "archived": FLAG, "rotate": NUMBER, "region": NUMBERS,
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
    NUMBERS: [True, 7, "x", {"a": [1]}, [None], ["x"], [1.5]],
}
"""Values of other types than the page sends, by the type that it sends."""
ODD = ["", "x", "\0", "\ud800", "../../etc/passwd", "x" * 30_000, -1, 10**30, 1e308, None, [], {}]
"""Values that nothing stands for."""
ALLOWED = {
    str: (TEXT, TEXTS), int: (NUMBER, NUMBERS), type(None): (TEXT, TEXTS, FLAG, NUMBER, NUMBERS)
}  # fmt: skip
"""The kinds of fields that may have a value of a type; others are refused before any action."""
NO_OBJECTS = [
    b"", b"null", b"[1]", b'"x"', b"{", b"\xff", b"[" * 100_000, b'{"a":' * 5000,
    b'{"temperature": NaN}', b'{"epochs": 1e999}', b'{"seed": ' + b"9" * 5000 + b"}",
]  # fmt: skip
CHAT_SETTINGS = (
    "system", "temperature", "top_p", "max_new_tokens", "seed", "style", "prompts", "detail"
)  # fmt: skip
SETTINGS = {
    ("ask", None): ("system",),
    ("act", "system"): ("system",),
    ("act", "settings"): CHAT_SETTINGS,
    ("train", "start"): ("epochs", "lr"),
}
"""The settings that an action reads, which are not among the fields."""


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


def test_every_field_of_the_page_is_in_the_table():
    assert {"do", *FIELDS} == set(requests._Fields.model_fields)


@pytest.mark.parametrize("field", FIELDS)
def test_every_value_of_another_type_is_refused(field):
    for value in WRONG[FIELDS[field]]:
        with pytest.raises(UsageError, match=f"'{field}'"):
            requests.parse_request(json.dumps({field: value}).encode())


@pytest.mark.parametrize("name", ACTIONS)
def test_a_field_of_another_type_is_named(person, name, caplog):
    """Fields are checked before any action sees them."""
    for number, (field, kind) in enumerate(FIELDS.items()):
        action = ACTIONS[name][number % len(ACTIONS[name])]
        answer = send(person, name, {"do": action, field: WRONG[kind][number % len(WRONG[kind])]})
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
            kinds = ALLOWED.get(type(value), ())
            right = {
                field: [value] if kind in (TEXTS, NUMBERS) and value is not None else value
                for field, kind in FIELDS.items()
                if kind in kinds
            }
            settings = SETTINGS.get((name, action), ())
            for fields in (
                right,
                dict.fromkeys((*CHAT_SETTINGS, "epochs", "lr"), value),
                *({setting: value} for setting in settings),
            ):
                request = {"do": action, **fields}
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
