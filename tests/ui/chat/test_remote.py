"""A chat whose model runs on a server, which is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.openai_stand_in import ANSWER, DONE, StandIn, delta, respond, stand_in, stream
from tests.ui.harness import ChatHarness, in_english
from ui.chat.attention_view import describe_picture, explain_answer
from ui.chat.comparison import compare_models
from ui.chat.estimate import estimate_question
from vqa_app.engine.remote import RemoteEngine, RemoteServer
from vqa_app.errors import ModelError


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as running:
        yield running


@pytest.fixture
def chat(server: StandIn, tmp_path: Path) -> Iterator[ChatHarness]:
    engine = RemoteEngine(RemoteServer(server.address, max_side=16))
    harness = ChatHarness(tmp_path, {"lab": engine})
    harness.pool.wait()
    yield harness
    harness.close()


def test_an_answer_is_stored_without_unknown_figures(chat: ChatHarness) -> None:
    _, view = chat.ask("What colour?", pictures=[chat.picture()])
    (turn,) = view["turns"]
    assert (turn["answer"], turn["state"]) == ("red", "answered")
    unknown = {"confidence", "prompt_tokens", "image_tokens", "cached_tokens", "new_tokens"}
    assert not unknown & turn["facts"].keys()
    assert view["meter"] is None


def test_a_broken_answer_keeps_its_text_and_says_why(chat: ChatHarness, server: StandIn) -> None:
    server.script(stream(delta("re"), cut=True))
    _, view = chat.ask("What colour?")
    (turn,) = view["turns"]
    assert (turn["answer"], turn["state"]) == ("re", "failed")
    assert "broke before the answer was complete" in turn["facts"]["error"]


def test_the_estimate_says_what_is_known(chat: ChatHarness) -> None:
    request = {"question": "What?", "pictures": [chat.picture()]}
    estimate = estimate_question(chat.service, "ann", request)["estimate"]
    assert in_english(estimate["text"]) == "Only the server knows how many tokens that is."
    assert (estimate["tokens"], estimate["limit"], estimate["fits"]) == (None, None, True)
    assert "16 × 12" in in_english(estimate["pictures"][0]["note"])  # it has 32 × 24


def test_what_the_server_received_is_shown(chat: ChatHarness) -> None:
    saw = describe_picture(chat.service, "ann", {"digest": chat.picture()})["saw"]
    assert saw["tokens"] is None
    assert [one["size"] for one in saw["shown"]] == [[16, 12]]


def test_where_it_looked_is_said_to_be_unknown(chat: ChatHarness, server: StandIn) -> None:
    server.script(stream(delta("red"), DONE))
    _, view = chat.ask("What colour?", pictures=[chat.picture()])
    request = {"conversation": view["conversation"], "turn": view["turns"][0]["id"]}
    looked = explain_answer(chat.service, "ann", request)["looked"]
    assert "does not say how likely" in in_english(looked["missing"])
    assert not {"gain", "level"} & looked.keys()


def test_a_server_that_fails_leaves_the_other_answers_of_a_comparison(
    server: StandIn, tmp_path: Path
) -> None:
    gone = ModelError("Could not reach lab:8000.", "Check the address.")
    harness = ChatHarness(
        tmp_path, {"lab": RemoteEngine(RemoteServer(server.address)), "gone": gone}
    )
    server.otherwise = respond(400, {"error": {"message": "no"}})
    asked = {"models": ["gone", "lab", "lab"], "question": "What colour?"}
    server.script(stream(*ANSWER))
    *_, last = compare_models(harness.service, "ann", asked)
    assert last is not None
    first, second, third = last["compared"]
    assert [side["state"] for side in last["compared"]] == ["failed", "answered", "failed"]
    assert "Could not reach lab:8000" in in_english(first["message"])
    assert "red" in second["html"]
    assert "refuses the question" in in_english(third["message"])
    assert last["compared_done"]
    harness.close()
