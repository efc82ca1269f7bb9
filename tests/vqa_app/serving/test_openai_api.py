"""OpenAI's API with OpenAI's own client: answers, streams, extensions, refusals, many at once."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import httpx
import openai
import pytest
from PIL import Image
from pydantic import BaseModel

from tests.fake_engine import FakeEngine
from tests.openai_stand_in import ANSWER, DONE, delta, logprob, stand_in, stream, usage
from tests.tiny import picture
from tests.vqa_app.serving.api_server import ApiServer, asking, picture_uri, serving
from tests.waiting import PATIENCE, until
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.engine.remote import RemoteEngine, RemoteServer
from vqa_app.errors import ModelError, SchemaError
from vqa_app.pictures.picture import ImageLimits, open_picture
from vqa_app.prompts.conversation import Conversation
from vqa_app.serving.model_choices import choice_from_options
from vqa_app.serving.openai_api import model_names


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeEngine, ApiServer]]:
    engine = FakeEngine()
    with serving(engine) as server:
        yield engine, server


@pytest.fixture
def engine(running: tuple[FakeEngine, ApiServer]) -> Iterator[FakeEngine]:
    engine = running[0]
    engine.asked.clear()
    yield engine
    engine.reset()


@pytest.fixture
def server(running: tuple[FakeEngine, ApiServer]) -> ApiServer:
    return running[1]


@pytest.fixture
def client(server: ApiServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def client_of(server: ApiServer, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.address, api_key=key, max_retries=0, timeout=PATIENCE)


def ask(client: openai.OpenAI, messages: Any = None, **options: Any) -> Any:
    messages = asking("What is it?") if messages is None else messages
    return client.chat.completions.create(model="fake", messages=messages, **options)


def post(server: ApiServer, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        f"{server.address}/chat/completions", content=content, timeout=PATIENCE, **options
    )


# -- answers ---------------------------------------------------------------------------------------


def test_a_question_about_a_picture_is_answered(engine: FakeEngine, client: openai.OpenAI) -> None:
    done = ask(client, asking("What is it?", picture_uri("red"), picture_uri("blue")))
    (answer,) = done.choices
    assert answer.message.content == "You asked 'What is it?' about 2 pictures."
    assert (answer.message.role, answer.finish_reason, answer.index) == ("assistant", "stop", 0)
    assert done.usage.prompt_tokens == 3 + 2 * 16
    assert done.usage.completion_tokens == 8
    assert done.usage.total_tokens == 3 + 2 * 16 + 8
    assert done.model == "fake"
    colours = [p.image.getpixel((0, 0)) for p in engine.asked[0][0].pictures]
    assert colours == [(255, 0, 0), (0, 0, 255)], "in their order"


def test_cached_tokens_are_part_of_the_usage(engine: FakeEngine, client: openai.OpenAI) -> None:
    messages = asking("What is it?", picture_uri("green"))
    ask(client, messages)
    assert ask(client, messages).usage.prompt_tokens_details.cached_tokens == 16


def test_a_conversation_has_turns_and_a_system_prompt(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    first = ask(client, asking("What is it?", picture_uri())).choices[0].message
    history = [
        {"role": "system", "content": "Be short."},
        {"role": "developer", "content": "In English."},
        *asking("What is it?", picture_uri()),
        first.model_dump(),
        {"role": "user", "content": "And"},
        {"role": "user", "content": "now?"},
    ]
    ask(client, history)
    asked = engine.asked[-1][0]
    assert asked.system == "Be short.\n\nIn English."
    assert [m.role for m in asked.dialogue] == ["user", "assistant", "user"]
    assert asked.messages[-1].text == "And\n\nnow?"


def test_pictures_after_the_text_stand_before_it_and_others_stay(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    """OpenAI's examples have the text first; models are trained with it last."""

    def layout(*content: dict[str, Any]) -> str:
        ask(client, [{"role": "user", "content": list(content)}])
        return "".join(
            p if isinstance(p, str) else "#" for p in engine.asked[-1][0].messages[0].parts
        )

    (shown, text), other = asking("a", picture_uri())[0]["content"], {"type": "text", "text": "b"}
    assert layout(text, shown) == layout(shown, text) == "#a"
    assert layout(text, other, shown, shown) == "##ab"
    assert layout(text, shown, other) == "a#b", "the text refers to them in turn"
    assert layout(shown, text, shown) == "#a#"


def test_a_streamed_answer_arrives_word_by_word(engine: FakeEngine, client: openai.OpenAI) -> None:
    engine.hold(after_words=2)
    stream = ask(client, stream=True, stream_options={"include_usage": True})
    pieces = [next(stream) for _ in range(3)]
    assert [c.choices[0].delta.content for c in pieces] == ["", "You", " asked"]
    assert pieces[0].choices[0].delta.role == "assistant"
    engine.release()
    rest = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in [*pieces, *rest] if c.choices)
    assert text == "You asked 'What is it?' about no picture."
    assert [c.choices[0].finish_reason for c in rest if c.choices][-1] == "stop"
    assert rest[-1].choices == []
    assert rest[-1].usage.completion_tokens == 8


def test_without_include_usage_a_stream_has_none(engine: FakeEngine, client: openai.OpenAI) -> None:
    assert all(chunk.usage is None for chunk in ask(client, stream=True))


def test_the_asynchronous_client_gets_the_same(engine: FakeEngine, server: ApiServer) -> None:
    async def main() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=server.address, api_key="any") as client:
            whole = await client.chat.completions.create(
                model="fake",
                messages=asking("Why?"),  # type: ignore[arg-type]
            )
            stream = await client.chat.completions.create(
                model="fake",
                messages=asking("Why?"),  # type: ignore[arg-type]
                stream=True,
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return str(whole.choices[0].message.content), text

    with ThreadPoolExecutor(1) as aside:  # Playwright may have an event loop in this thread
        whole, text = aside.submit(asyncio.run, main()).result()
    assert whole == text == "You asked 'Why?' about no picture."


def test_the_stream_helper_of_the_client_works(engine: FakeEngine, client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=asking("Why?")) as stream:  # type: ignore[arg-type]
        done = stream.get_final_completion()
    assert done.choices[0].message.content == "You asked 'Why?' about no picture."


def test_options_reach_the_engine(engine: FakeEngine, client: openai.OpenAI) -> None:
    ask(
        client,
        temperature=0.5, top_p=0.9, seed=7, stop=["zzz", "yyy"], max_tokens=5,
        presence_penalty=0.5, frequency_penalty=-0.5,
        extra_body={"top_k": 3, "repetition_penalty": 1.1},
    )  # fmt: skip
    assert engine.asked[0][1] == GenerationOptions(
        max_new_tokens=5, temperature=0.5, top_p=0.9, top_k=3, repetition_penalty=1.1, seed=7,
        stop=("zzz", "yyy"), presence_penalty=0.5, frequency_penalty=-0.5,
    )  # fmt: skip


def test_a_schema_of_a_pydantic_model_reaches_the_engine(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    class Cat(BaseModel):
        colour: str

    engine.answer = '{"colour": "red"}'
    done = client.chat.completions.parse(
        model="fake",
        messages=asking("Which?"),  # type: ignore[arg-type]
        response_format=Cat,
    )
    assert done.choices[0].message.parsed == Cat(colour="red")
    schema = json.loads(engine.asked[-1][1].schema or "")
    assert schema["properties"]["colour"]["type"] == "string"
    ask(client, response_format={"type": "json_object"})
    assert json.loads(engine.asked[-1][1].schema or "") == {"type": "object"}


def test_an_answer_ends_at_its_limit_or_at_a_stop_string(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    cut = ask(client, max_completion_tokens=2).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("You asked", "length")
    assert ask(client, stop=" about").choices[0].message.content == "You asked 'What is it?'"


def test_a_repetition_ends_like_a_stop(engine: FakeEngine, client: openai.OpenAI) -> None:
    engine.finish_reason = "repetition"
    assert ask(client).choices[0].finish_reason == "stop"


def test_several_answers_are_sampled_from_different_seeds(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    done = ask(client, n=3, seed=5, temperature=0.7)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert all(c.message.content.startswith("You asked") for c in done.choices)
    assert sorted(options.seed or 0 for _, options in engine.asked) == [5, 6, 7]
    assert done.usage.completion_tokens == 3 * 8
    assert done.usage.prompt_tokens == 3


def test_several_answers_stream_with_their_indices(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    texts = ["", ""]
    for chunk in ask(client, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["You asked 'What is it?' about no picture."] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_openais_form(
    engine: FakeEngine, client: openai.OpenAI, stream: bool
) -> None:
    done = ask(client, logprobs=True, top_logprobs=2, stream=stream)
    answers = [c.choices[0] for c in done] if stream else done.choices
    tokens = [token for a in answers if a.logprobs for token in a.logprobs.content]
    assert "".join(token.token for token in tokens) == "You asked 'What is it?' about no picture."
    assert bytes(tokens[0].bytes) == b"You"
    assert tokens[0].logprob == pytest.approx(-0.6931, abs=1e-3)
    assert [top.token for top in tokens[0].top_logprobs] == ["You", "You1"]
    assert ask(client).choices[0].logprobs is None


def test_low_detail_is_for_models_that_have_it(engine: FakeEngine, client: openai.OpenAI) -> None:
    messages = asking("What is it?", picture_uri(), detail="low")
    with pytest.raises(openai.BadRequestError, match="low detail") as refused:
        ask(client, messages)
    assert refused.value.param == "messages[0].content[0].image_url.detail"
    engine.low_detail = True
    ask(client, messages)
    assert engine.asked[0][0].pictures[0].low_detail


def test_left_out_turns_are_told(engine: FakeEngine, client: openai.OpenAI) -> None:
    engine.dropped = 2
    assert ask(client).choices[0].vqa == {"dropped_messages": 2}


# -- extensions ------------------------------------------------------------------------------------


def test_the_most_probable_of_given_answers(engine: FakeEngine, client: openai.OpenAI) -> None:
    done = ask(client, extra_body={"vqa": {"choices": ["yes", "no"], "confidence": True}})
    assert done.choices[0].message.content == "yes"
    shares = done.choices[0].vqa["choices"]
    assert [entry["text"] for entry in shares] == ["yes", "no"]
    assert sum(entry["probability"] for entry in shares) == pytest.approx(1)
    assert done.choices[0].vqa["confidence"] == pytest.approx(2 / 3)
    assert done.usage.completion_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsure_answer_is_withheld(
    engine: FakeEngine, client: openai.OpenAI, stream: bool
) -> None:
    def text_and_result(limit: float) -> tuple[str, Any]:
        done = ask(client, stream=stream, extra_body={"vqa": {"abstain": limit}})
        if not stream:
            return done.choices[0].message.content, done.choices[0].vqa
        chunks = list(done)
        return "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].vqa

    text, result = text_and_result(0.9)
    assert text == "I am not sure."
    assert result["abstained"] is True
    assert result["would_have_said"].startswith("You asked")
    text, result = text_and_result(0.5)
    assert text.startswith("You asked")
    assert result == {"abstained": False}


def test_confidence_gain_and_attention(engine: FakeEngine, client: openai.OpenAI) -> None:
    wanted = {"confidence": True, "image_gain": True, "attention": True}
    messages = asking("What is it?", picture_uri(), picture_uri("blue", (64, 64)))
    result = ask(client, messages, extra_body={"vqa": wanted}).choices[0].vqa
    assert result["confidence"] == 0.75
    assert result["calibrated"] is False
    assert result["image_gain"] == 1.5
    assert len(result["attention"]) == 2
    drawn = Image.open(BytesIO(base64.b64decode(result["attention"][1].partition(",")[2])))
    assert (drawn.format, drawn.size) == ("PNG", (512, 512))


def test_attention_of_a_model_without_maps_is_refused(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    engine.attention_maps = False
    with pytest.raises(openai.BadRequestError, match="attention maps") as refused:
        ask(client, extra_body={"vqa": {"attention": True}})
    assert refused.value.param == "vqa.attention"
    assert not engine.asked, "before anything is generated"


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
        ({"vqa": {"choices": ["a"]}, "response_format": {"type": "json_object"}}, "vqa.choices"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"seed": 0.5}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"vqa": {"colour": 1}}, "vqa.colour"),
        ({"vqa": {"choices": []}}, "vqa.choices"),
        ({"vqa": {"choices": ["a"]}, "n": 2}, "vqa.choices"),
        ({"vqa": {"abstain": 0.5}, "logprobs": True}, "vqa.abstain"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [*asking("x"), {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [*asking("x"), {"role": "system", "content": "x"}]}, "messages"),
        ({"messages": asking("x", *["data:,"] * 17)}, "messages"),
        ({"messages": asking("x", "/etc/passwd")}, "messages[0].content[0].image_url.url"),
        ({"messages": asking("x", "file:///etc/passwd")}, "messages[0].content[0].image_url.url"),
        ({"messages": asking("x", "https://example.com/a.png")},
         "messages[0].content[0].image_url.url"),
        ({"messages": asking("x", "data:image/png;base64,!")},
         "messages[0].content[0].image_url.url"),
        ({"messages": asking("x", "data:image/png;base64,QUJD")},
         "messages[0].content[0].image_url.url"),
        ({"messages": asking("x", picture_uri(size=(640, 480))[:200])},
         "messages[0].content[0].image_url.url"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_is_wrong_or_not_supported_is_named(
    engine: FakeEngine, server: ApiServer, options: dict[str, Any], field: str, stream: bool
) -> None:
    if stream and "stream_options" in options:
        pytest.skip("valid in a stream")
    body = {"model": "fake", "messages": asking("Why?"), "stream": stream, **options}
    response = post(server, body)
    error = response.json()["error"]
    assert response.status_code == 400, "also before a stream"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    assert field.split("[")[0].split(".")[0] in error["message"]
    assert not engine.asked


def test_null_and_empty_values_ask_for_nothing(engine: FakeEngine, server: ApiServer) -> None:
    """Clients that are not OpenAI's own send them."""
    nothing: dict[str, Any] = {"tools": [], "logit_bias": {}, "metadata": {}, "store": False}
    nothing |= {"stop": None, "response_format": {"type": "text"}, "max_tokens": None, "user": "x"}
    assert post(server, {"model": "fake", "messages": asking("Why?"), **nothing}).is_success


NESTED = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"", b"[]", b"\xff\xfe", b'"x"', b'{"model": 1}', NESTED, b"[" * 100_000,
        b'{"model": "fake", "messages": ' + NESTED + b"}",
        b'{"model": "fake", "messages": [], "tools": ' + NESTED + b"}",
    ],
    ids=range(10),
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(server: ApiServer, body: bytes) -> None:
    response = post(server, body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_schema_that_cannot_be_enforced_is_blamed(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    engine.error = SchemaError("The schema cannot be enforced: not.")
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="not") as refused:
        ask(client, response_format=form)
    assert refused.value.param == "response_format"


def test_all_pictures_of_a_request_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqa_app.serving.openai_api.MAX_PIXELS", 25_000)
    engine = FakeEngine()
    limits = ImageLimits(max_pixels=20_000)
    with serving(engine, limits=limits) as server, client_of(server) as client:
        ask(client, asking("?", *[picture_uri(size=(100, 100))] * 2))
        with pytest.raises(openai.APIStatusError, match=r"0\.03 megapixels.*0\.025") as refused:
            ask(client, asking("?", *[picture_uri(size=(100, 100))] * 3))
        field = "messages[0].content[2].image_url"
        assert (refused.value.status_code, refused.value.param) == (413, field)
        with pytest.raises(openai.BadRequestError, match="megapixels"):
            ask(client, asking("?", picture_uri(size=(200, 150))))
    assert len(engine.asked) == 1
    engine.close()


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4o") as refused:
        client.chat.completions.create(model="gpt-4o", messages=asking("x"))  # type: ignore[call-overload]
    assert refused.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/audio/speech", 404),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/nothing", 404),
        ("DELETE", "/healthz", 405),
    ],
)
def test_unknown_addresses_are_refused_in_openais_form(
    server: ApiServer, method: str, path: str, status: int
) -> None:
    response = httpx.request(method, server.address.removesuffix("/v1") + path)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_that_is_too_long_is_refused_with_the_reason(
    engine: FakeEngine, client: openai.OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match="too long") as refused:
        ask(client, asking("word " * 5000), stream=stream)
    assert refused.value.code == "context_length_exceeded"


def test_an_error_during_a_stream_reaches_the_client(
    engine: FakeEngine, client: openai.OpenAI
) -> None:
    engine.error, engine.error_after = ModelError("There is not enough memory."), 2
    stream = ask(client, stream=True)
    with pytest.raises(openai.APIError, match="not enough memory"):
        list(stream)
    engine.error_after = 0


def test_an_unexpected_error_reveals_nothing(
    engine: FakeEngine, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    engine.error = RuntimeError("/secret/path")
    with pytest.raises(openai.InternalServerError) as failed:
        ask(client)
    assert "secret" not in str(failed.value)
    assert "/secret/path" in caplog.text
    assert ask(client).choices[0].finish_reason == "stop", "others are answered"


def test_a_huge_body_is_refused(server: ApiServer) -> None:
    response = post(server, b" " * (64 * 2**20 + 1))
    assert response.status_code == 413
    assert response.json()["error"]["message"] == "The request is too large."

    def endless() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * 2**20

    with httpx.Client(timeout=PATIENCE) as client:  # without a Content-Length
        chunked = client.post(f"{server.address}/chat/completions", content=endless())
    assert chunked.status_code == 413
    assert chunked.json()["error"]["message"] == "The request is too large."


def test_pages_of_other_sites_are_refused(server: ApiServer) -> None:
    body = {"model": "fake", "messages": asking("Why?")}
    response = post(server, body, headers={"origin": "https://evil.example"})
    assert response.status_code == 403
    assert response.json()["error"]["type"] == "permission_error"
    assert post(server, body, headers={"host": "evil.example"}).status_code == 421


# -- a server elsewhere behind this one ------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_counts_that_a_server_elsewhere_does_not_send_are_left_out(streamed: bool) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    counts = {"prompt_tokens": 9, "completion_tokens": 2}
    with stand_in() as other:
        engine = RemoteEngine(RemoteServer(other.address))
        with serving(engine) as server, client_of(server) as client:
            for reply, expected in (((*ANSWER,), None), ((ANSWER[1], usage(**counts), DONE), 11)):
                other.script(stream(*reply))
                done = ask(client, **options)
                done = list(done)[-1] if streamed else done
                assert (done.usage and done.usage.total_tokens) == expected
                assert done.usage is None or done.usage.prompt_tokens_details is None
        engine.close()


def test_log_probabilities_of_a_server_elsewhere_are_passed_on_or_refused() -> None:
    with stand_in() as other:
        engine = RemoteEngine(RemoteServer(other.address))
        with serving(engine) as server, client_of(server) as client:
            other.script(stream(logprob("re", -0.5), logprob("d", -0.25), delta(finish="stop")))
            tokens = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
            assert [(t.token, t.logprob) for t in tokens] == [("re", -0.5), ("d", -0.25)]
            assert other.requests[-1]["top_logprobs"] == 3
            for _ in range(2):
                with pytest.raises(openai.APIStatusError, match="does not send log prob"):
                    ask(client, logprobs=True)
            assert ask(client).choices[0].message.content == "red"
        engine.close()


# -- clients that go away, and many at once --------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"stream": True}, {"vqa": {"choices": ["a", "b"]}}], ids=lambda one: str([*one])
)
def test_a_client_that_goes_away_stops_its_answer(
    engine: FakeEngine,
    server: ApiServer,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    def score(conversation: Any, choices: Any, cancel: threading.Event) -> NoReturn:
        engine.begun.set()
        assert cancel.wait(PATIENCE)
        raise CancelledError

    monkeypatch.setattr(engine, "score", score)
    engine.begun.clear()
    engine.hold(after_words=1)
    body = json.dumps({"model": "fake", "messages": asking("Why?"), **fields}).encode()
    host, port = server.address.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}"
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        assert engine.begun.wait(PATIENCE)
        assert server.api.answers_in_progress == 1
    until(lambda: server.api.answers_in_progress == 0)
    until(lambda: 'status="499"' in metrics(server))


def test_a_full_queue_is_refused_and_says_when_to_try_again() -> None:
    engine = FakeEngine()
    engine.hold(after_words=0)
    with (
        serving(engine, max_answers=2) as server,
        client_of(server) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        answers = [threads.submit(ask, client) for _ in range(2)]
        until(lambda: server.api.answers_in_progress == 2)
        with pytest.raises(openai.RateLimitError, match="queue is full") as refused:
            ask(client)
        assert int(refused.value.response.headers["retry-after"]) > 0
        engine.release()
        assert all(answer.result().choices[0].finish_reason == "stop" for answer in answers)
        assert ask(client).choices, "there is room again"
    engine.close()


def test_sixty_clients_at_once_get_their_own_answers(engine: FakeEngine, server: ApiServer) -> None:
    """More than the 40 threads that the web framework has for blocking work."""
    with client_of(server) as client, ThreadPoolExecutor(60) as threads:
        asked = [asking(f"Number {number}?") for number in range(60)]
        engine.hold(after_words=1)
        answers = [threads.submit(ask, client, messages) for messages in asked]
        until(lambda: server.api.answers_in_progress == 60)
        assert httpx.get(server.address.replace("/v1", "/healthz")).status_code == 200
        engine.release()
        for number, answer in enumerate(answers):
            assert f"'Number {number}?'" in answer.result().choices[0].message.content


def test_a_silent_stream_is_kept_alive(
    engine: FakeEngine, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa_app.serving.openai_responses.PING_SECONDS", 0.05)
    engine.hold(after_words=1)
    body = {"model": "fake", "messages": asking("Why?"), "stream": True}
    url = f"{server.address}/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=PATIENCE) as response:
        lines = response.iter_lines()
        assert ": ping" in lines
        engine.release()
        assert "data: [DONE]" in lines


def test_names_of_models_reveal_neither_paths_nor_addresses(tmp_path: Path) -> None:
    def names(model: str) -> list[str]:
        return model_names(choice_from_options(model, None, None))

    assert names("builtin") == ["builtin"]
    assert names(str(tmp_path)) == [tmp_path.name]
    assert names("owner/model") == ["owner/model", "model"]
    assert names("http://10.0.0.1:8000/v1") == ["v1"]


# -- operation -------------------------------------------------------------------------------------


def metrics(server: ApiServer, **options: Any) -> str:
    return httpx.get(server.address.replace("/v1", "/metrics"), **options).text


def test_readiness_follows_the_model() -> None:
    loaded = threading.Event()
    engine = FakeEngine()
    with serving(engine, load=lambda *_: loaded.wait(PATIENCE) and engine) as server:
        ready = server.address.replace("/v1", "/readyz")
        assert httpx.get(ready).status_code == 503
        assert httpx.get(server.address.replace("/v1", "/healthz")).status_code == 200
        loaded.set()
        until(lambda: httpx.get(ready).status_code == 200)
    engine.close()


def test_metrics_count_requests_and_tokens() -> None:
    engine = FakeEngine()
    with serving(engine) as server, client_of(server) as client:
        ask(client)
        list(ask(client, stream=True))
        with pytest.raises(openai.BadRequestError):
            ask(client, n=99)
        until(lambda: "vqa_requests_in_progress 0" in metrics(server))
        found = metrics(server)
    for line in (
        'vqa_requests_total{status="200"} 2',
        'vqa_requests_total{status="400"} 1',
        "vqa_generated_tokens_total 16",
        "vqa_prompt_tokens_total 6",
        "vqa_time_to_first_token_seconds_count 2",
        'vqa_request_seconds_bucket{le="+Inf"} 3',
    ):
        assert line in found.splitlines()
    engine.close()


def test_keys_are_wanted_for_everything_but_health(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    with serving(engine, keys={"ann": "sesame-1", "bob": "sesame-2"}) as server:
        for key in ("sesame-1", "sesame-2"):
            with client_of(server, key) as client:
                assert ask(client).choices
        for key in ("sesame", "ann", "ann:sesame-1", "sésame"):
            response = httpx.get(f"{server.address}/models", headers=[
                (b"authorization", f"Bearer {key}".encode()),
            ])  # fmt: skip
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert httpx.get(server.address.replace("/v1", "/metrics")).status_code == 401
        assert "vqa_requests" in metrics(server, headers={"authorization": "Bearer sesame-1"})
        assert httpx.get(server.address.replace("/v1", "/readyz")).status_code == 200
    assert "sesame" not in caplog.text
    engine.close()


def test_a_model_that_cannot_be_loaded_is_a_server_error() -> None:
    def fail(*_: Any) -> Any:
        raise ModelError("The weights in /home/ann/model are damaged.")

    with serving(FakeEngine(), load=fail) as server, client_of(server) as client:
        with pytest.raises(openai.InternalServerError, match="damaged") as failed:
            ask(client)
        assert failed.value.status_code == 503
        assert "/home/ann" not in str(failed.value)


def test_pictures_are_fetched_from_allowed_hosts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    fetched = []

    def fetch(url: str, hosts: Any, max_bytes: int) -> tuple[bytes, str]:
        fetched.append((url, hosts))
        return file.getvalue(), "a.png"

    engine = FakeEngine()
    options = {"media_hosts": ["images.example.com"]}
    with serving(engine, **options) as server, client_of(server) as client:
        with pytest.raises(openai.BadRequestError, match="not allowed"):
            ask(client, asking("What is it?", "http://other.example/a.png"))
        with pytest.raises(openai.BadRequestError, match="must begin with http"):
            ask(client, asking("What is it?", "/etc/passwd"))
        monkeypatch.setattr("vqa_app.serving.openai_api.fetch_for_visitor", fetch)
        url = "https://images.example.com/a.png"
        assert "one picture" in ask(client, asking("?", url)).choices[0].message.content
    assert fetched == [(url, frozenset({"images.example.com"}))]
    engine.close()


def test_answers_are_those_of_the_engine_itself(tiny_llava_dir: Any) -> None:
    """With a model: greedy text, tokens, log probabilities and choices."""
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.engine.local import LocalEngine

    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    file = BytesIO()
    picture(0).image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    asked = Conversation.ask("What is it?", [open_picture(file.getvalue())])
    options = GenerationOptions(max_new_tokens=10, temperature=0.0, top_log_probabilities=2)
    with serving(engine) as server, client_of(server) as client:
        *_, expected = engine.stream(asked, options)
        assert isinstance(expected, Answer)
        settings = {"temperature": 0, "max_tokens": 10, "logprobs": True, "top_logprobs": 2}
        done = ask(client, asking("What is it?", url), n=2, **settings)
        for answer in done.choices:
            assert answer.message.content == expected.text
            tokens = answer.logprobs.content
            assert [bytes(t.bytes) for t in tokens] == [t.bytes for t in expected.log_probabilities]
            values = [t.log_probability for t in expected.log_probabilities]
            assert [t.logprob for t in tokens] == pytest.approx(values, abs=1e-4)
        assert done.usage.prompt_tokens == expected.prompt_tokens
        assert done.usage.prompt_tokens_details.cached_tokens > 0
        chosen = ask(
            client, asking("What is it?", url), extra_body={"vqa": {"choices": ["a cat", "no"]}}
        )
        shares = [entry["probability"] for entry in chosen.choices[0].vqa["choices"]]
        assert shares == pytest.approx(engine.score(asked, ["a cat", "no"]), rel=1e-3)
    engine.close()
