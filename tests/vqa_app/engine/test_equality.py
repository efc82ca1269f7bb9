"""Greedy answers do not depend on caches, on chunked prefill or on the decoder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.architectures import ARCHITECTURES
from tests.tiny import picture, tiny_llava
from vqa_app.checkpoints.loader import LoadedModel, load_model
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.errors import DataError, ModelError
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import encode, end_token_ids

OPTIONS = GenerationOptions(max_new_tokens=6, temperature=0.0)
QUESTIONS = ("What is it?", "How many stars are there?", "And the colour?", "Is there a dog?")
LLMS = ("qwen2", "qwen3", "mistral", "gemma", "phi3")
CPU_DECODER_LLMS = ("llama", "qwen2", "qwen3", "mistral")
RECURRENT = {"qwen3.5", "minicpm-v-4.6", "minicpm-v-4.7", "lfm2-vl"}
"""Architectures with linear attention or convolutions, whose states cannot be cut at a token."""
WHOLE_PROMPTS = {"paligemma", "paligemma2", "mllama", "blip-2", "kosmos-2", "gemma4"} | RECURRENT
"""Architectures whose prompts cannot be reused in parts; layers of Gemma 4 share a cache."""


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *LLMS])
def loaded(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> LoadedModel:
    if request.param in ARCHITECTURES:
        return load_model(str(tiny_checkpoint(request.param)))
    changes = {"num_key_value_heads": 2} if request.param == "phi3" else {}
    directory = tiny_llava(tmp_path_factory.mktemp("llm"), llm=request.param, **changes)
    return load_model(str(directory))


@pytest.fixture
def engines(loaded: LoadedModel) -> Iterator[tuple[LocalEngine, LocalEngine]]:
    """One engine with all caches and fast decoding, one with none of it."""
    fast = LocalEngine(loaded)
    slow = LocalEngine(loaded, cache_bytes=0, fast_decoding=False)
    yield fast, slow
    fast.close()
    slow.close()


def ask(
    engine: LocalEngine, conversation: Conversation, options: GenerationOptions = OPTIONS
) -> Answer:
    *_, answer = engine.stream(conversation, options)
    assert isinstance(answer, Answer)
    return answer


def histories(seed: int, steps: int) -> Iterator[Callable[[str], Conversation]]:
    """Random chats: follow-ups, regenerations, edits, branches, new conversations, more pictures.

    Yields functions that take the latest answer and return the next conversation to answer.
    """
    rng = random.Random(seed)
    past: list[Conversation] = []

    def question() -> Message:
        count = rng.choice((0, 0, 1, 2)) if past else 1
        return Message.user(
            rng.choice(QUESTIONS), [picture(rng.randrange(4)) for _ in range(count)]
        )

    def step(answer: str) -> Conversation:
        move = rng.choice(("follow", "follow", "regenerate", "edit", "branch", "new"))
        if not past or move == "new":
            conversation = Conversation((question(),))
        elif move == "regenerate":
            conversation = past[-1]
        elif move == "edit":
            conversation = Conversation((*past[-1].messages[:-1], question()))
        else:
            base = past[-1] if move == "follow" else rng.choice(past)
            reply = answer if move == "follow" else "Something else."
            conversation = base.then(Message.assistant(reply), question())
        if len(conversation.messages) > 7:
            conversation = Conversation((question(),))
        past.append(conversation)
        return conversation

    for _ in range(steps):
        yield step


@pytest.mark.parametrize("seed", [0, 1])
def test_caches_never_change_a_greedy_answer(
    engines: tuple[LocalEngine, LocalEngine], seed: int
) -> None:
    fast, slow = engines
    latest, cached, answered = "", 0, 0
    for step in histories(seed, 8):
        conversation = step(latest)
        try:
            expected = ask(slow, conversation)
        except (ModelError, DataError):  # this model allows only one picture or question
            continue
        answer = ask(fast, conversation)
        assert (answer.text, answer.new_tokens) == (expected.text, expected.new_tokens)
        assert answer.confidence == pytest.approx(expected.confidence, rel=1e-3)
        assert expected.cached_tokens == 0
        latest, cached, answered = answer.text, cached + answer.cached_tokens, answered + 1
    assert answered > 1
    assert bool(cached) == fast._runtime.capabilities.reuses_prefixes


def test_answers_are_those_of_generate(
    engines: tuple[LocalEngine, LocalEngine], loaded: LoadedModel
) -> None:
    conversation = Conversation.ask("What is in the picture?", [picture(0)])
    prompt = encode(loaded.processor, conversation, answer_next=True)
    with torch.inference_mode():
        ids = loaded.model.generate(**prompt.inputs, max_new_tokens=6, do_sample=False)
    new = ids[0, len(prompt) :].tolist()
    ends = end_token_ids(loaded.model, loaded.processor)
    new = new[: next((i for i, token in enumerate(new) if token in ends), len(new))]
    text = loaded.processor.tokenizer.decode(new, skip_special_tokens=True)
    for engine in engines:
        answer = ask(engine, conversation)
        assert answer.new_tokens == len(new)
        assert answer.text == text.lstrip().rstrip("\N{REPLACEMENT CHARACTER}")


def test_warming_never_changes_a_greedy_answer(
    engines: tuple[LocalEngine, LocalEngine],
) -> None:
    fast, slow = engines
    fast.warm(Conversation((Message.user("", [picture(3)]),)))
    conversation = Conversation.ask("What is it?", [picture(3)])
    answer = ask(fast, conversation)
    assert answer.text == ask(slow, conversation).text
    if fast._runtime.capabilities.reuses_prefixes:
        assert answer.cached_tokens >= answer.image_tokens


def test_scores_do_not_depend_on_caches(engines: tuple[LocalEngine, LocalEngine]) -> None:
    fast, slow = engines
    conversation = Conversation.ask("Which colour?", [picture(2)])
    ask(fast, conversation)
    choices = ["red", "dark blue", "no"]
    assert fast.score(conversation, choices) == pytest.approx(
        slow.score(conversation, choices), rel=1e-3
    )
    assert fast.image_gain(conversation, "red") == pytest.approx(
        slow.image_gain(conversation, "red"), rel=1e-2, abs=1e-4
    )


def test_only_some_architectures_reuse_prefixes_or_use_the_cpu_decoder(
    engines: tuple[LocalEngine, LocalEngine], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["loaded"]
    assert engines[0]._runtime.capabilities.reuses_prefixes == (name not in WHOLE_PROMPTS)
    uses_cpu_decoder = engines[0]._runtime._cpu_decoder is not None
    assert uses_cpu_decoder == (
        name in CPU_DECODER_LLMS
        or (name in ARCHITECTURES and name not in WHOLE_PROMPTS | {"gemma3", "granite-docling"})
    )


@pytest.mark.parametrize("name", ["qwen2-vl", "gemma3"])
def test_models_without_the_cpu_decoder_reuse_prefixes_too(
    name: str, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa_app.engine.cpu_decoder.LAYERS", frozenset())
    loaded = load_model(str(tiny_checkpoint(name)))
    fast = LocalEngine(loaded)
    slow = LocalEngine(loaded, cache_bytes=0, fast_decoding=False)
    latest = ""
    for step in histories(2, 5):
        conversation = step(latest)
        answer, expected = ask(fast, conversation), ask(slow, conversation)
        assert answer.text == expected.text
        latest = answer.text
    fast.close()
    slow.close()
