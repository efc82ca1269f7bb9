"""Answers that follow a JSON schema."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from math import exp, isfinite
from statistics import fmean
from typing import Any

import pytest
import torch

from tests.tiny import picture, tiny_llava
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.json_fields import field_confidences, field_spans
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.engine.structured import JsonGrammars
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import Conversation

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "green", "blue"]},
        "count": {"type": "integer"},
        "objects": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "round": {"type": "boolean"}},
                "required": ["name", "round"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["colour", "count", "objects"],
    "additionalProperties": False,
}
QUESTION = Conversation.ask("What is in the picture?", [picture(0)])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    engine = LocalEngine(load_model(str(tiny_llava(tmp_path_factory.mktemp("structured")))))
    yield engine
    engine.close()


def ask(engine: LocalEngine, schema: Any, **options: Any) -> Answer:
    *_, answer = engine.stream(QUESTION, GenerationOptions(schema=json.dumps(schema), **options))
    assert isinstance(answer, Answer)
    return answer


def check(value: Any) -> None:
    assert set(value) == {"colour", "count", "objects"}
    assert value["colour"] in ("red", "green", "blue")
    assert isinstance(value["count"], int)
    for each in value["objects"]:
        assert isinstance(each["name"], str)
        assert isinstance(each["round"], bool)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [60, 120])
def test_answers_follow_the_schema_also_at_the_token_limit(
    engine: LocalEngine, seed: int, length: int
) -> None:
    answer = ask(engine, SCHEMA, temperature=5.0, seed=seed, max_new_tokens=length)
    assert answer.finish_reason == "stop"
    check(json.loads(answer.text))
    assert answer.new_tokens <= length


def test_where_there_is_no_room_the_answer_ends_at_the_limit(engine: LocalEngine) -> None:
    answer = ask(engine, SCHEMA, max_new_tokens=5, temperature=0.0)
    assert (answer.finish_reason, answer.new_tokens) == ("length", 5)
    assert answer.fields is None


def test_each_value_has_a_confidence(engine: LocalEngine) -> None:
    answer = ask(engine, SCHEMA, temperature=3.0, seed=3, max_new_tokens=120)
    assert answer.fields is not None
    value = json.loads(answer.text)
    assert {"colour", "count"} <= answer.fields.keys()
    assert len(answer.fields) == 2 + 2 * len(value["objects"])
    assert all(0 < confidence <= 1 for confidence in answer.fields.values())
    assert not answer.calibrated


def test_reported_probabilities_are_among_the_allowed_tokens(engine: LocalEngine) -> None:
    """So another machine computes the same confidences from them."""
    answer = ask(
        engine, {"enum": ["red", "blue"]}, temperature=0.0, max_new_tokens=80,
        top_log_probabilities=20,
    )  # fmt: skip
    tokens = answer.log_probabilities
    assert answer.confidence == pytest.approx(
        exp(fmean(token.log_probability for token in tokens)), rel=1e-4
    )
    assert tokens[0].log_probability > -1e-3, "only a quotation mark can come first"
    for token in tokens:
        assert 1 <= len(token.top) <= 20
        assert all(isfinite(top.log_probability) for top in token.top)


def test_a_stop_string_that_cuts_the_json_is_no_error(engine: LocalEngine) -> None:
    answer = ask(engine, SCHEMA, temperature=0.0, max_new_tokens=120, stop=('"count"',))
    assert answer.finish_reason == "stop"
    assert '"count"' not in answer.text
    assert answer.fields is None


def test_a_schema_changes_no_other_answer(engine: LocalEngine) -> None:
    greedy = GenerationOptions(max_new_tokens=12, temperature=0.0)
    *_, before = engine.stream(QUESTION, greedy)
    results: list[Any] = [None, None]

    def plain() -> None:
        *_, results[0] = engine.stream(QUESTION, greedy)

    def structured() -> None:
        results[1] = ask(engine, SCHEMA, temperature=2.0, seed=1, max_new_tokens=100)

    threads = [threading.Thread(target=plain), threading.Thread(target=structured)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(before, Answer)
    assert results[0].text == before.text
    check(json.loads(results[1].text))


@pytest.mark.parametrize(
    "schema", [{"type": "integer"}, {"enum": ["yes", "no"]}, {"type": "array"}]
)
def test_schemas_of_other_values_than_objects(engine: LocalEngine, schema: Any) -> None:
    answer = ask(engine, schema, temperature=4.0, seed=2, max_new_tokens=80)
    json.loads(answer.text)
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"type": "object", "not": {}}', "not"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"type": "string", "format": "nonsense"}', "format"),
        ('{"$ref": "http://127.0.0.1/schema"}', "127.0.0.1"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"const": NaN}', "NaN"),
        ('{"maximum": 1e999}', "number"),
        ('{"items":' * 500 + "{}" + "}" * 500, "recursion limit"),
        ("[1]", "object"),
        ('{"type": "nothing"}', "type"),
    ],
)
def test_schemas_that_cannot_be_enforced_are_refused_by_name(
    engine: LocalEngine, schema: str, words: str
) -> None:
    with pytest.raises(UsageError, match="schema") as caught:
        list(engine.stream(QUESTION, GenerationOptions(schema=schema)))
    assert words in caught.value.problem


def test_without_the_package_the_error_says_what_to_install(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UsageError, match="llguidance") as caught:
        list(engine.stream(QUESTION, GenerationOptions(schema="{}")))
    assert "vqa-app[schema]" in caught.value.hint


def test_random_answers_are_always_closed_in_time(engine: LocalEngine) -> None:
    grammars: JsonGrammars = engine._grammars
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    ends = engine._end_tokens
    for _ in range(20):
        constraint = grammars.constraint(json.dumps(SCHEMA))
        limit = rng.randrange(60, 160)
        tokens: list[int] = []
        while len(tokens) < limit and not constraint.complete:
            allowed = constraint.allowed()
            scores = torch.randn(len(allowed), generator=generator).masked_fill(
                ~allowed, -torch.inf
            )
            token = int(scores.argmax())
            if token in ends:
                break
            tokens.append(constraint.push(token, limit - len(tokens)))
        check(json.loads(engine._runtime.processor.tokenizer.decode(tokens)))


def test_field_spans_tell_where_values_lie() -> None:
    text = '{"a": "x, y", "b": {"c": [1, true]}, "d": []}'
    found = {path: text[start:end] for path, (start, end) in field_spans(text).items()}
    assert found == {"a": '"x, y"', "b.c[0]": "1", "b.c[1]": "true"}
    assert field_spans(" 17") == {"": (1, 3)}


def test_a_value_whose_tokens_are_unknown_has_no_confidence() -> None:
    """A stop string held them back."""
    assert field_confidences("[1,2]", [(2, 0.0)]) == {"[0]": 1.0}
