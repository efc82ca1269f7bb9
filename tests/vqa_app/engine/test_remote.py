"""The engine on a server elsewhere, against a stand-in that misbehaves in every way."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from math import exp
from typing import Any

import pytest
from fastapi.responses import Response
from PIL import Image

from tests import tiny
from tests.openai_stand_in import (
    ANSWER,
    DONE,
    StandIn,
    delta,
    event,
    logprob,
    refuse,
    respond,
    stand_in,
    stream,
    usage,
)
from tests.waiting import PATIENCE, until
from vqa_app.engine import remote as module
from vqa_app.engine.protocol import Answer, Delta, Event, GenerationOptions, Status
from vqa_app.engine.remote import RemoteEngine, RemoteServer, data_uri, shrunk
from vqa_app.errors import ContextOverflowError, ImageError, ModelError, UsageError, VqaError
from vqa_app.pictures.picture import open_picture
from vqa_app.prompts.conversation import Conversation, Message

Open = Callable[..., RemoteEngine]
QUESTION = Conversation.ask("What colour?")
SEEN = Conversation.ask("What colour?", [tiny.picture(0, (40, 30))])


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    with stand_in() as server:
        yield server


@pytest.fixture
def server(running: StandIn) -> StandIn:
    running.reset()
    return running


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Return a function that opens engines, which wait only briefly between attempts."""
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.01)
    with ExitStack() as stack:

        def open_engine(server: StandIn, name: str = "", **values: Any) -> RemoteEngine:
            engine = RemoteEngine(RemoteServer(server.address, name or None, **values))
            stack.callback(engine.close)
            return engine

        yield open_engine


def answer_of(events: Iterator[Event] | list[Event]) -> Answer:
    *_, last = events
    assert isinstance(last, Answer)
    return last


def ask(engine: RemoteEngine, conversation: Conversation = QUESTION, **options: Any) -> Answer:
    return answer_of(engine.stream(conversation, GenerationOptions(**options)))


# Which model


def test_the_only_model_of_a_server_is_taken(server: StandIn, engine_of: Open) -> None:
    server.models = [{"id": "tiny", "max_model_len": 512}]
    engine = engine_of(server)
    assert engine.info.label == f"{server.address}#tiny"
    assert engine.info.context_length == 512
    assert ask(engine).text == "red"
    assert server.requests[0]["model"] == "tiny"


def test_of_several_models_one_must_be_named(engine_of: Open) -> None:
    with stand_in(["small", "large"]) as server:
        with pytest.raises(UsageError, match="several models: small, large") as raised:
            engine_of(server)
        assert raised.value.hint.endswith("/v1#small")
        assert ask(engine_of(server, "large")).text == "red"
        assert server.requests[-1]["model"] == "large"


def test_a_named_model_needs_no_list(server: StandIn, engine_of: Open) -> None:
    server.list_models = refuse(404, "Not Found")
    assert ask(engine_of(server, "tiny")).text == "red"
    with pytest.raises(ModelError):
        engine_of(server)


def test_a_server_without_models_says_so(engine_of: Open) -> None:
    with stand_in([]) as server, pytest.raises(ModelError, match="lists no model"):
        engine_of(server)


def test_an_unknown_model_is_told_with_those_that_exist(server: StandIn, engine_of: Open) -> None:
    server.otherwise = refuse(404, "The model `huge` does not exist.")
    with pytest.raises(ModelError, match="has no model huge") as raised:
        ask(engine_of(server, "huge"))
    assert raised.value.hint == "It has: tiny."


@pytest.mark.parametrize(
    ("name", "address", "model"),
    [
        ("http://host:8000/v1#a/b", "http://host:8000/v1", "a/b"),
        ("https://host/v1/", "https://host/v1", None),
        ("http://host:8000", "http://host:8000/v1", None),
        ("http://host/v1/chat/completions#x%20y", "http://host/v1", "x y"),
        ("https://g.example/v1beta/openai/#gemini", "https://g.example/v1beta/openai", "gemini"),
    ],
)
def test_addresses_are_read(name: str, address: str, model: str | None) -> None:
    server = RemoteServer.parse(name)
    assert (server.address, server.model) == (address, model)
    assert RemoteServer.parse(server.name) == server


@pytest.mark.parametrize(
    "name",
    ["http://", "http://host:port/v1", "http://ann:secret@host/v1", "http://h/v1?key=secret"],
)
def test_addresses_that_cannot_be_used_are_refused_without_their_secrets(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        RemoteServer.parse(name)
    assert "secret" not in str(raised.value)


# Keys


def test_the_key_is_sent_and_shown_nowhere(
    server: StandIn, engine_of: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.otherwise = refuse(401, "Incorrect API key provided: sk-secret. Get one.")
    engine = engine_of(server, key=" sk-secret\n")
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    with pytest.raises(ModelError, match="does not accept the key") as raised:
        ask(engine)
    assert "VQA_API_KEY" in raised.value.hint
    everything = (
        f"{raised.value} {caplog.text} {engine.info} {RemoteServer('http://h', key='sk-secret')}"
    )
    assert "sk-secret" not in everything


def test_a_missing_key_is_told_at_once(server: StandIn, engine_of: Open) -> None:
    server.list_models = refuse(401, "Unauthorized")
    with pytest.raises(ModelError, match="needs a key"):
        engine_of(server, "tiny")


@pytest.mark.parametrize("key", ["a b", "schlüssel", "a\nb"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(UsageError) as raised:
        RemoteServer("http://host", key=key)
    assert key not in str(raised.value)


# What is sent


def test_options_and_turns_arrive_as_openai_documents_them(
    server: StandIn, engine_of: Open
) -> None:
    conversation = SEEN.then(Message.assistant("red"), Message.user("And now?"))
    engine = engine_of(server)
    ask(engine, conversation, max_new_tokens=7, temperature=0, top_p=0.5, seed=3, stop=("\n",),
        system="Be brief.")  # fmt: skip
    sent = server.requests[0]
    expected = {"max_tokens": 7, "temperature": 0, "top_p": 0.5, "seed": 3, "stop": ["\n"]}
    assert expected.items() <= sent.items()
    assert not {"top_k", "repetition_penalty"} & sent.keys()
    opening, picture, answer, question = sent["messages"]
    assert opening == {"role": "system", "content": "Be brief."}
    assert answer == {"role": "assistant", "content": "red"}
    assert question == {"role": "user", "content": "And now?"}
    image, text = picture["content"]
    assert text == {"type": "text", "text": "What colour?"}
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Image.open(BytesIO(data)) as arrived:
        assert arrived.tobytes() == SEEN.pictures[0].image.tobytes()


def test_what_nobody_chose_is_left_to_the_server(server: StandIn, engine_of: Open) -> None:
    answer_of(engine_of(server).stream(QUESTION))
    assert not {"temperature", "top_p", "seed", "stop"} & server.requests[0].keys()


def test_large_pictures_are_shrunk_and_it_is_told(server: StandIn, engine_of: Open) -> None:
    picture = tiny.picture(1, (640, 320))
    engine = engine_of(server, max_side=160)
    assert shrunk(picture, 160).changes == ("shrunk to 160 × 80 pixels for the server",)
    assert shrunk(picture, 640) is picture
    (found,) = engine.count_tokens(Conversation.ask("?", [picture])).pictures
    assert (found.width, found.height, found.tokens) == (160, 80, None)
    ask(engine, Conversation.ask("?", [picture]))
    sent = open_picture(server.requests[0]["messages"][0]["content"][0]["image_url"]["url"])
    assert sent.image.size == (160, 80)
    assert engine.model_view(picture)[0].size == (160, 80)


def test_photographs_go_as_jpeg() -> None:
    noise = open_picture(Image.effect_noise((1200, 1100), 80).convert("RGB"))
    assert data_uri(noise).startswith("data:image/jpeg;base64,")


# What comes back


def test_an_answer_streams_with_what_the_server_knows(server: StandIn, engine_of: Open) -> None:
    details = {"cached_tokens": 4}
    server.script(
        stream(
            delta(""), logprob("re", -0.1), logprob("d", -0.3), delta(finish="length"),
            usage(prompt_tokens=9, completion_tokens=2, prompt_tokens_details=details), DONE,
        )
    )  # fmt: skip
    events = list(engine_of(server).stream(QUESTION))
    assert [e.state for e in events if isinstance(e, Status)] == ["looking", "answering"]
    assert [e.text for e in events if isinstance(e, Delta)] == ["re", "d"]
    answer = answer_of(events)
    assert (answer.text, answer.finish_reason) == ("red", "length")
    assert (answer.prompt_tokens, answer.cached_tokens, answer.new_tokens) == (9, 4, 2)
    assert answer.confidence == pytest.approx(exp(-0.2))
    assert answer.image_tokens is None


def test_numbers_that_the_server_does_not_send_are_unknown(
    server: StandIn, engine_of: Open
) -> None:
    engine = engine_of(server)
    answer = ask(engine)
    assert answer.text == "red"
    assert answer.prompt_tokens is answer.new_tokens is answer.confidence is None
    assert engine.count_tokens(SEEN).prompt is None
    assert engine.info.context_length is None


STREAMS = {
    "comments and other fields": (": ping\n\n", "event: message\nid: 1\n", *ANSWER),
    "Windows line ends": tuple(part.replace("\n", "\r\n") for part in ANSWER),
    "no [DONE]": (delta("red"), delta(finish="stop")),
    "no finish_reason": (delta("red"), DONE),
    "chunks without choices": (event({"id": "x"}), event({"choices": None}), *ANSWER, usage()),
    "no space after data:": (delta("red").replace("data: ", "data:"), DONE),
    "in parts": (
        event({"choices": [{"delta": {"content": [{"type": "text", "text": "red"}]}}]}), DONE,
    ),
    "no content": (event({"choices": [{"delta": None}]}), event({"choices": [{}]}), *ANSWER),
    "one byte at a time": tuple("".join(ANSWER)),
    "no log probabilities": (delta("red", logprobs={"content": [None, 3]}), DONE),
    "no stream at all": (json.dumps({"choices": [{"message": {"content": "red"}}]}),),
    "an indented response": (
        json.dumps({"choices": [{"message": {"content": "red"}}]}, indent=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("pieces", STREAMS.values(), ids=STREAMS)
def test_every_kind_of_stream_is_read(
    server: StandIn, engine_of: Open, pieces: tuple[str, ...]
) -> None:
    server.script(stream(*pieces))
    events = list(engine_of(server).stream(QUESTION))
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "red"
    assert answer_of(events).text == "red"


def test_line_separators_inside_text_are_kept(server: StandIn, engine_of: Open) -> None:
    raw = 'data: {"choices":[{"delta":{"content":"a\u2028b\x85c"}}]}\n\n'
    server.script(stream(raw, DONE))
    assert ask(engine_of(server)).text == "a\u2028b\x85c"


def test_halves_of_a_character_are_joined_and_lone_ones_replaced(
    server: StandIn, engine_of: Open
) -> None:
    server.script(stream(delta("a\ud83d"), delta("\ude00b\udc00"), delta("c\ud800"), DONE))
    events = list(engine_of(server).stream(QUESTION))
    assert [e.text for e in events if isinstance(e, Delta)] == ["a", "😀b?", "c", "?"]
    assert answer_of(events).text == "a😀b?c?"


def test_an_empty_answer_is_an_answer(server: StandIn, engine_of: Open) -> None:
    server.script(stream(delta(finish="stop"), DONE))
    assert ask(engine_of(server)).text == ""


def test_a_withheld_answer_is_not_taken_for_a_complete_one(
    server: StandIn, engine_of: Open
) -> None:
    server.script(stream(delta("re"), delta(finish="content_filter"), DONE))
    with pytest.raises(ModelError, match="content filter"):
        ask(engine_of(server))


# Fields that a server does not take


@pytest.mark.parametrize(
    ("status", "message", "gone"),
    [
        (400, "Unrecognized request argument supplied: logprobs", "logprobs"),
        (403, "You are not allowed to request logprobs from this model", "logprobs"),
        (422, "body.stream_options: Extra inputs are not permitted", "stream_options"),
        (400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", "max_tokens"),
    ],
)
def test_optional_fields_that_are_refused_are_left_out_from_then_on(
    server: StandIn, engine_of: Open, status: int, message: str, gone: str
) -> None:
    server.script(refuse(status, message))
    engine = engine_of(server)
    for _ in range(2):
        assert ask(engine, max_new_tokens=5).text == "red"
    first, second, third = server.requests
    assert gone in first
    assert gone not in second
    assert gone not in third
    limit = second.get("max_tokens", second.get("max_completion_tokens"))
    assert limit == 5


def test_log_probabilities_that_are_ignored_are_asked_for_once(
    server: StandIn, engine_of: Open
) -> None:
    engine = engine_of(server)
    ask(engine)
    ask(engine)
    assert ["logprobs" in request for request in server.requests] == [True, False]


def test_fields_that_somebody_chose_are_not_left_out_silently(
    server: StandIn, engine_of: Open
) -> None:
    server.otherwise = refuse(400, "Unrecognized request argument supplied: top_k")
    with pytest.raises(ModelError, match="top_k"):
        ask(engine_of(server), top_k=3)


# Busy, broken and gone


@pytest.mark.parametrize(
    "failure",
    [
        refuse(500, "oops"),
        refuse(503, "loading"),
        refuse(429, "slow down", Retry_After="0"),
        stream(cut=True),
        stream(delta(""), cut=True),
        stream(": ping\n\n"),
        stream(event({"error": {"message": "overloaded", "code": 503}})),
    ],
    ids=["500", "503", "429", "cut", "cut after the role", "ended", "503 in the stream"],
)
def test_failures_before_the_first_token_are_tried_again(
    server: StandIn, engine_of: Open, failure: Any
) -> None:
    server.script(failure, failure)
    assert ask(engine_of(server)).text == "red"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "failure",
    [
        stream(delta("re"), cut=True),
        stream(delta("re")),
        stream(delta("re"), event({"error": {"message": "died", "code": 503}})),
    ],
    ids=["cut", "ended", "error"],
)
def test_failures_after_the_first_token_are_not_tried_again(
    server: StandIn, engine_of: Open, failure: Any
) -> None:
    server.script(failure)
    events = engine_of(server).stream(QUESTION)
    received: list[Event] = []
    with pytest.raises(ModelError):
        received.extend(iter(lambda: next(events), None))
    assert len(server.requests) == 1


def test_the_server_says_how_long_to_wait(server: StandIn, engine_of: Open) -> None:
    server.script(refuse(429, "slow down", Retry_After="0.4"))
    started = time.monotonic()
    assert ask(engine_of(server)).text == "red"
    assert time.monotonic() - started >= 0.4


def test_who_asks_to_wait_long_is_not_waited_for(server: StandIn, engine_of: Open) -> None:
    server.otherwise = refuse(429, "come back tomorrow", Retry_After="86400")
    with pytest.raises(ModelError, match=r"takes no more questions now.*tomorrow"):
        ask(engine_of(server))
    assert len(server.requests) == 1


def test_an_exhausted_quota_is_not_tried_again(server: StandIn, engine_of: Open) -> None:
    body = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    server.otherwise = respond(429, body)
    with pytest.raises(ModelError, match="exceeded your quota"):
        ask(engine_of(server))
    assert len(server.requests) == 1


def test_a_server_that_keeps_failing_is_given_up(server: StandIn, engine_of: Open) -> None:
    server.otherwise = refuse(500, "CUDA error")
    with pytest.raises(ModelError, match=r"status 500\. It says: CUDA error"):
        ask(engine_of(server))
    assert len(server.requests) == module.ATTEMPTS


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with stand_in() as server:
        address = server.address
    with pytest.raises(ModelError, match=r"Could not reach 127\.0\.0\.1"):
        RemoteEngine(RemoteServer(address, "tiny"))


def test_silence_ends_with_a_message(server: StandIn, engine_of: Open) -> None:
    server.script(server.endless())
    with pytest.raises(ModelError, match="sent nothing for"):
        ask(engine_of(server, timeout=0.3))


WORDS: dict[str, tuple[int, Any, type[VqaError], str]] = {
    "no vision": (400, "tiny is not a multimodal model", ModelError,
                  "does not take these pictures"),
    "llama-server": (500, "image input is not supported - you may need the mmproj", ModelError,
                     "does not take these pictures"),
    "context": (400, "This model's maximum context length is 512 tokens.", ContextOverflowError,
                "too long for tiny.*512 tokens"),
    "too large": (413, "Request Entity Too Large", ImageError, "too large"),
    "refused": (400, "temperature must be at most 2", ModelError, "temperature must be"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "message", "kind", "words"), WORDS.values(), ids=WORDS)
def test_errors_are_told_in_words(
    server: StandIn, engine_of: Open, status: int, message: str, kind: type[VqaError], words: str
) -> None:
    server.otherwise = refuse(status, message)
    with pytest.raises(kind, match=words):
        ask(engine_of(server), SEEN)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        respond(200, "<html>Welcome</html>"),
        respond(200, {"status": "ok"}),
        stream("data: hello\n\n"),
        respond(404, "<h1>Not Found</h1>"),
        respond(307, "", Location="http://elsewhere.invalid/"),
    ],
    ids=["a page", "other JSON", "other events", "404", "a redirect"],
)
def test_a_server_that_speaks_something_else_is_told(
    server: StandIn, engine_of: Open, reply: Any
) -> None:
    server.otherwise = reply
    with pytest.raises(
        ModelError, match=r"does not speak OpenAI's API|not the address of an OpenAI"
    ):
        ask(engine_of(server))


def test_pydantic_errors_are_read(server: StandIn, engine_of: Open) -> None:
    detail = [{"loc": ["body", "seed"], "msg": "Input should be positive", "input": -1}]
    server.otherwise = respond(422, {"detail": detail})
    with pytest.raises(ModelError, match=r"body\.seed: Input should be"):
        ask(engine_of(server))


def test_words_of_a_server_cannot_control_a_terminal(server: StandIn, engine_of: Open) -> None:
    server.otherwise = refuse(400, "\x1b[2Jgone\nsecond line \ud800")
    with pytest.raises(ModelError) as raised:
        ask(engine_of(server))
    assert raised.value.problem.isprintable()
    assert "gone second line ?" in raised.value.problem


def test_long_conversations_lose_their_oldest_turns(server: StandIn, engine_of: Open) -> None:
    conversation = SEEN.then(
        Message.assistant("red"), Message.user("Really?"), Message.assistant("yes"),
        Message.user("Sure?"),
    )  # fmt: skip
    full = refuse(400, "prompt is too long")
    server.script(full)
    answer = ask(engine_of(server), conversation)
    assert (answer.dropped_messages, answer.dropped_turns) == (2, (1,))  # pictures go last
    texts = [message["content"] for message in server.requests[-1]["messages"]]
    assert texts[1:] == ["red", "Sure?"]


# Stopping


def test_cancelling_closes_the_connection_and_keeps_the_text(
    server: StandIn, engine_of: Open
) -> None:
    server.script(server.endless(delta("re")))
    cancel = threading.Event()
    events = engine_of(server).stream(QUESTION, cancel=cancel)
    assert Delta("re") in [next(events) for _ in range(3)]
    cancel.set()
    answer = answer_of(events)
    assert (answer.text, answer.finish_reason) == ("re", "cancelled")
    assert server.left.wait(PATIENCE)


def test_cancelling_works_before_the_first_token(server: StandIn, engine_of: Open) -> None:
    server.script(server.endless())
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    answer = answer_of(engine_of(server).stream(QUESTION, cancel=cancel))
    assert (answer.text, answer.finish_reason) == ("", "cancelled")
    assert server.left.wait(PATIENCE)


def test_closing_the_iterator_closes_the_connection(server: StandIn, engine_of: Open) -> None:
    server.script(server.endless(delta("re")))
    events = engine_of(server).stream(QUESTION)
    while not isinstance(next(events), Delta):
        pass
    events.close()  # type: ignore[attr-defined]
    assert server.left.wait(PATIENCE)


def test_closing_the_engine_ends_its_answers(server: StandIn, engine_of: Open) -> None:
    server.script(server.endless(delta("re")))
    engine = engine_of(server)
    events = engine.stream(QUESTION)
    while not isinstance(next(events), Delta):
        pass
    engine.close()
    assert answer_of(events).finish_reason == "cancelled"
    with pytest.raises(ModelError):
        ask(engine)


def test_as_many_questions_are_in_flight_as_allowed(server: StandIn, engine_of: Open) -> None:
    async def slow(body: dict[str, Any]) -> Response:
        await asyncio.sleep(0.2)
        return await stream(*ANSWER)(body)

    server.otherwise = slow
    engine = engine_of(server, concurrency=3)
    assert engine.info.concurrency == 3
    with ThreadPoolExecutor(7) as pool:
        found = list(pool.map(lambda _: list(engine.stream(QUESTION)), range(7)))
    assert [answer_of(events).text for events in found] == ["red"] * 7
    assert server.most_in_flight == 3
    places = sorted(
        e.place for events in found for e in events if isinstance(e, Status) if e.state == "waiting"
    )
    assert places == [0, 1, 2, 3]


# What a server cannot give


def test_what_only_weights_can_tell_is_refused_with_the_reason(
    server: StandIn, engine_of: Open
) -> None:
    engine = engine_of(server)
    assert not engine.info.attention_maps
    with pytest.raises(ModelError, match="does not show where its model looked"):
        engine.attention_map(SEEN, "red")
    with pytest.raises(ModelError, match="how likely an answer is"):
        engine.image_gain(SEEN, "red")
    with pytest.raises(ModelError, match="how likely given answers are"):
        engine.score(SEEN, ["red", "blue"])


def completion(text: str) -> Any:
    return respond(200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


@pytest.mark.parametrize(
    ("written", "method"),
    [('{"answer": "blue"}', "response_format"), ("Blue.", "text"), (" blue\n", "text")],
)
def test_choices_are_made_by_schema(
    server: StandIn, engine_of: Open, written: str, method: str
) -> None:
    server.otherwise = completion(written)
    chosen = engine_of(server).choose(SEEN, ["red", "blue"])
    assert (chosen.text, chosen.probabilities, chosen.method) == ("blue", None, method)
    schema = server.requests[-1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["red", "blue"]


def test_our_own_servers_score_choices(server: StandIn, engine_of: Open) -> None:
    server.models = [{"id": "tiny", "owned_by": "vqa-app"}]
    shares = [{"text": "red", "probability": 0.25}, {"text": "blue", "probability": 0.75}]
    choice = {"message": {"content": "blue"}, "vqa": {"choices": shares}}
    server.otherwise = respond(200, {"choices": [choice]})
    engine = engine_of(server)
    chosen = engine.choose(SEEN, ["red", "blue"])
    assert (chosen.text, chosen.probabilities) == ("blue", (0.25, 0.75))
    assert chosen.method == "vqa.choices"
    assert engine.score(SEEN, ["red", "blue"]) == [0.25, 0.75]
    assert server.requests[0]["vqa"] == {"choices": ["red", "blue"]}


def test_a_schema_is_sent_and_must_not_be_ignored(server: StandIn, engine_of: Open) -> None:
    schema = {"type": "object"}
    server.script(stream(delta("{}"), DONE))
    engine = engine_of(server)
    assert ask(engine, schema=json.dumps(schema)).text == "{}"
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == schema
    with pytest.raises(ModelError, match="ignored the schema"):
        ask(engine, schema=json.dumps(schema))


def test_values_of_an_answer_in_json_have_confidences(server: StandIn, engine_of: Open) -> None:
    engine = engine_of(server)
    schema = json.dumps({"type": "object"})
    pieces = [("{", 0.0), ('"a": "é', -0.5), ('", "b"', 0.0), (": 17", -0.25), ("}", 0.0)]
    server.script(stream(*(logprob(*piece) for piece in pieces), delta(finish="stop"), DONE))
    answer = ask(engine, schema=schema)
    assert answer.fields == {"a": pytest.approx(exp(-0.25)), "b": pytest.approx(exp(-0.25))}
    server.script(stream(delta("{"), logprob("}", -0.1), delta(finish="stop"), DONE))
    assert ask(engine, schema=schema).fields is None, "not all tokens are known"


def test_nesting_that_is_too_deep_is_no_crash(server: StandIn, engine_of: Open) -> None:
    engine = engine_of(server)
    for text in ("[" * 100_000, "data: " + "[" * 100_000 + "\n\n"):
        server.script(respond(200, text))
        with pytest.raises(ModelError, match="does not speak OpenAI's API"):
            ask(engine)
    server.script(respond(400, '{"error": ' * 100_000))
    with pytest.raises(ModelError):
        ask(engine)


def test_an_answer_that_is_no_choice_is_refused(server: StandIn, engine_of: Open) -> None:
    server.otherwise = completion("It looks reddish to me")
    with pytest.raises(ModelError, match="none of the choices"):
        engine_of(server).choose(SEEN, ["red", "blue"])


def test_the_module_needs_neither_torch_nor_httpx_to_be_imported() -> None:
    code = (
        "import vqa_app.engine.remote, sys;"
        "print({'torch', 'transformers', 'httpx', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr[-2000:]


def test_closed_engines_leave_no_thread(server: StandIn, engine_of: Open) -> None:
    engine = engine_of(server)
    ask(engine)
    engine.close()
    engine.close()
    until(lambda: not engine._thread.is_alive())
