"""Engines: streaming, cancelling, waiting, errors and limits, of a tiny model and of the fake."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fake_engine import FakeEngine
from tests.tiny import picture, tiny_llava
from tests.waiting import PATIENCE, until
from vqa_app.checkpoints.loader import LoadedModel, load_model
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, Delta, Engine, GenerationOptions, Status
from vqa_app.engine.repetition import MIN_TOKENS
from vqa_app.engine.runtime import UncachedGeneration
from vqa_app.errors import ContextOverflowError, ModelError, UsageError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import Prompt

GREEDY = GenerationOptions(max_new_tokens=12, temperature=0.0)
QUESTION = Conversation.ask("What is in the picture?", [picture(0)])


@pytest.fixture
def local(tiny_llava_dir: Path) -> Iterator[LocalEngine]:
    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    yield engine
    engine.close()


@pytest.fixture(params=["local", "fake"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Both engines, for tests of the protocol."""
    if request.param == "local":
        yield request.getfixturevalue("local")
    else:
        fake = FakeEngine()
        yield fake
        fake.close()


def last(engine: Engine, conversation: Conversation, options: Any = GREEDY) -> Answer:
    *_, answer = engine.stream(conversation, options)
    assert isinstance(answer, Answer)
    return answer


def test_a_stream_has_two_statuses_then_text_then_the_answer(engine: Engine) -> None:
    looking, answering, *deltas, answer = engine.stream(QUESTION, GREEDY)
    assert (looking, answering) == (Status("looking"), Status("answering"))
    assert deltas
    assert all(isinstance(delta, Delta) and delta.text for delta in deltas)
    assert isinstance(answer, Answer)
    assert answer.text == "".join(delta.text for delta in deltas)
    assert 0 < answer.confidence <= 1
    assert answer.prompt_tokens == engine.count_tokens(QUESTION).prompt
    assert answer.image_tokens == engine.count_tokens(QUESTION).image == 16


def test_a_cancelled_answer_holds_the_text_so_far() -> None:
    cancel = threading.Event()
    engine = FakeEngine("one two three", hold_after=1)
    shown = ""
    for event in engine.stream(QUESTION, GREEDY, cancel):
        if isinstance(event, Delta):
            cancel.set()
            shown += event.text
    assert isinstance(event, Answer)
    assert (event.finish_reason, event.new_tokens) == ("cancelled", 1)
    assert event.text == shown
    engine.close()


def test_a_cancelled_local_answer_generates_no_further_token(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, steps = threading.Event(), []
    runtime = local._runtime
    append = runtime.append

    def cancel_at_the_third(*arguments: Any) -> torch.Tensor:
        steps.append(arguments[0])
        if len(steps) == 3:
            cancel.set()
        return append(*arguments)

    monkeypatch.setattr(runtime, "append", cancel_at_the_third)
    *_, answer = local.stream(QUESTION, GREEDY, cancel)
    assert len(steps) == 3
    assert answer.finish_reason == "cancelled"
    assert answer.new_tokens == 3


def test_questions_are_answered_in_order_and_report_their_place() -> None:
    engine = FakeEngine(hold_after=0)
    first = engine.stream(Conversation.ask("first"))
    assert next(first) == Status("looking")
    places: dict[str, list[Status]] = {"second": [], "third": []}
    threads = []
    for name in places:
        reported = threading.Event()

        def listen(name: str = name, reported: threading.Event = reported) -> None:
            for event in engine.stream(Conversation.ask(name)):
                if isinstance(event, Status):
                    places[name].append(event)
                    reported.set()

        threads.append(threading.Thread(target=listen))
        threads[-1].start()
        assert reported.wait(PATIENCE)
    engine.release()
    list(first)
    for thread in threads:
        thread.join(PATIENCE)
    assert places["second"][0] == Status("waiting", 0)
    assert places["third"][:2] == [Status("waiting", 1), Status("waiting", 0)]
    assert [c.messages[-1].text for c, _ in engine.asked] == ["first", "second", "third"]
    engine.close()


@pytest.mark.parametrize("kind", ["local", "fake"])
def test_a_waiting_question_can_be_cancelled(kind: str, request: pytest.FixtureRequest) -> None:
    gate = threading.Event()
    engine: Any = FakeEngine() if kind == "fake" else request.getfixturevalue("local")

    def hold(cancelled: Any) -> Iterator[bool]:
        started.set()
        yield gate.wait(PATIENCE)

    engine._scheduler._concurrency = 1
    started = threading.Event()
    running = threading.Thread(target=lambda: list(engine._scheduler.stream(hold)))
    running.start()
    assert started.wait(PATIENCE)
    cancel = threading.Event()
    events = engine.stream(QUESTION, GREEDY, cancel)
    assert next(events) == Status("waiting", 0)
    cancel.set()
    (answer,) = events
    assert answer.finish_reason == "cancelled"
    assert answer.new_tokens == 0
    gate.set()
    running.join(PATIENCE)
    engine.close()


def test_a_consumer_that_stops_frees_the_engine() -> None:
    engine = FakeEngine(hold_after=1)
    events = engine.stream(QUESTION)
    while not isinstance(next(events), Delta):
        pass
    del events
    gc.collect()
    engine.release()
    assert last(engine, QUESTION, None).finish_reason == "stop"
    engine.close()


def test_an_error_reaches_the_consumer_and_the_engine_stays_usable(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = last(local, QUESTION)
    with monkeypatch.context() as patch:
        patch.setattr(local._runtime, "append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            last(local, QUESTION)
    assert last(local, QUESTION).text == expected.text


def test_an_error_inside_a_layer_leaves_no_broken_cache(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = last(local, QUESTION)
    follow_up = QUESTION.then(Message.assistant(expected.text), Message.user("Why?"))
    expected_reply = last(local, follow_up)
    layer = local._runtime.model.get_decoder().layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            last(local, follow_up.then(Message.assistant("So."), Message.user("Where?")))
    assert last(local, follow_up).text == expected_reply.text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_an_out_of_memory_error_says_what_to_do(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run_out(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(local._runtime, "append", run_out)
        with pytest.raises(ModelError, match="not enough memory") as caught:
            last(local, QUESTION)
    assert "--quantize 4bit" in caught.value.hint
    assert last(local, QUESTION).new_tokens


def out_of_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def kv_caches(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[weakref.ref[Any]]]:
    """Weak references to all KV caches of an engine; nothing collects cycles meanwhile."""
    references: list[weakref.ref[Any]] = []
    take = local._runtime._take

    def record(*arguments: Any) -> Any:
        kv = take(*arguments)
        references.append(weakref.ref(kv))
        return kv

    monkeypatch.setattr(local._runtime, "_take", record)
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    gc.disable()
    yield references
    gc.enable()


@pytest.mark.parametrize("phase", ["prefill", "decode", "score", "warm"])
def test_after_an_out_of_memory_error_no_kv_cache_is_left(
    local: LocalEngine,
    monkeypatch: pytest.MonkeyPatch,
    kv_caches: list[weakref.ref[Any]],
    phase: str,
) -> None:
    layer = local._runtime.model.get_decoder().layers[1]
    if phase == "decode":
        monkeypatch.setattr(local._runtime, "append", out_of_memory)
    else:
        monkeypatch.setattr(layer, "forward", out_of_memory)
    actions = {"score": lambda: local.score(QUESTION, ["a"]), "warm": lambda: local.warm(QUESTION)}
    with pytest.raises(ModelError, match="not enough memory") as kept:
        actions.get(phase, lambda: last(local, QUESTION))()
    assert kv_caches
    assert [reference() for reference in kv_caches] == [None] * len(kv_caches)
    assert len(local._runtime.prefixes) == 0
    assert kept.value.__cause__ is not None


def test_any_error_of_a_question_releases_its_kv_cache(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch, kv_caches: list[weakref.ref[Any]]
) -> None:
    monkeypatch.setattr(local._runtime, "append", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as kept:
        last(local, QUESTION)
    assert [reference() for reference in kv_caches] == [None]
    assert kept.tb is not None


@pytest.mark.parametrize("method", ["stream", "score"])
def test_memory_that_suffices_without_caches_is_no_error(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def result() -> Any:
        asked = last(local, QUESTION).text if method == "stream" else None
        return asked or local.score(QUESTION, ["a", "b"])

    expected = result()
    last(local, Conversation.ask("Something else?", [picture(1)]))
    assert len(local._runtime.prefixes) > 1
    layer = local._runtime.model.get_decoder().layers[1]
    forward = layer.forward

    def forward_without_caches(*arguments: Any, **options: Any) -> Any:
        if len(local._runtime.prefixes):
            out_of_memory()
        return forward(*arguments, **options)

    monkeypatch.setattr(layer, "forward", forward_without_caches)
    assert result() == expected


def test_a_token_that_runs_out_of_memory_is_computed_again_without_the_other_caches(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = last(local, QUESTION)
    last(local, Conversation.ask("Something else?", [picture(1)]))
    runtime = local._runtime
    append, failures = runtime.append, 0

    def append_without_other_caches(token: int, kv: Any, position: int) -> torch.Tensor:
        nonlocal failures
        if len(runtime.prefixes):
            failures += 1
            kv.layers[0].length += 1  # it runs out in the second layer
            out_of_memory()
        return append(token, kv, position)

    monkeypatch.setattr(runtime, "append", append_without_other_caches)
    answer = last(local, QUESTION)
    assert failures == 1
    assert (answer.text, answer.new_tokens) == (expected.text, expected.new_tokens)
    assert answer.new_tokens > 1


def test_a_token_of_the_loop_of_generate_is_not_computed_twice(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache cannot be cut back to what it was, so there is a message instead."""
    engine = LocalEngine(load_model(str(tiny_checkpoint("blip-2"))))
    steps: list[int] = []

    def run_out(_: Any, token: int) -> None:
        steps.append(token)
        out_of_memory()

    monkeypatch.setattr(UncachedGeneration, "step", run_out)
    with pytest.raises(ModelError, match="not enough memory"):
        last(engine, QUESTION)
    assert len(steps) == 1
    engine.close()


@pytest.mark.parametrize(
    ("dtype", "hint"), [("float16", "--dtype float32"), ("float32", "damaged")]
)
def test_a_model_that_computes_no_numbers_is_an_error_with_advice(
    local: LocalEngine, dtype: str, hint: str
) -> None:
    """Many models overflow in float16. The greedy answer would be token 0, again and again."""
    local._info = replace(local.info, dtype=dtype)
    local._runtime.model.get_decoder().layers[0].register_forward_hook(
        lambda _, __, output: output * float("nan")
    )
    with pytest.raises(ModelError, match=f"computes no numbers in {dtype}") as caught:
        last(local, QUESTION)
    assert hint in caught.value.hint


def test_a_seed_makes_samples_reproducible(local: LocalEngine) -> None:
    options = GenerationOptions(max_new_tokens=10, temperature=1.0, seed=5)
    texts = [last(local, QUESTION, options).text for _ in range(2)]
    assert texts[0] == texts[1]
    assert last(local, QUESTION, replace(options, seed=6)).text != texts[0]


def test_an_answer_ends_before_a_stop_string(local: LocalEngine) -> None:
    whole = last(local, QUESTION).text
    stop = whole[len(whole) // 2 :][:2]
    answer = last(local, QUESTION, replace(GREEDY, stop=(stop,)))
    assert answer.text == whole[: whole.find(stop)]
    assert answer.finish_reason == "stop"


def test_the_token_limit_is_the_finish_reason(local: LocalEngine) -> None:
    answer = last(local, QUESTION, replace(GREEDY, max_new_tokens=2))
    assert (answer.new_tokens, answer.finish_reason) == (2, "length")


def test_a_system_prompt_in_the_options_replaces_the_conversations(local: LocalEngine) -> None:
    options = replace(GREEDY, system="Answer in verse.")
    assert (
        last(local, QUESTION.with_system("Be brief."), options).prompt_tokens
        == local.count_tokens(QUESTION.with_system("Answer in verse.")).prompt
    )


def test_a_conversation_that_ends_with_an_answer_is_refused(local: LocalEngine) -> None:
    with pytest.raises(UsageError):
        last(local, QUESTION.then(Message.assistant("A cat.")))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[LocalEngine]:
    """Load an engine with a context of 160 tokens."""
    directory = tiny_llava(tmp_path_factory.mktemp("narrow"), max_position_embeddings=160)
    engine = LocalEngine(load_model(str(directory)))
    yield engine
    engine.close()


def test_an_empty_conversation_is_refused(local: LocalEngine) -> None:
    with pytest.raises(UsageError, match="no question"):
        last(local, Conversation())


def test_the_oldest_turns_are_dropped_to_fit_the_context(narrow: LocalEngine) -> None:
    system = Conversation((Message.system("Be brief."),))
    turns = [
        message
        for number in range(4)
        for message in (Message.user("What is it?", [picture(number)]), Message.assistant("A cat."))
    ]
    question = Message.user("And now?", [picture(9)])
    answer = last(narrow, system.then(*turns, question))
    assert answer.dropped_messages > 0
    assert answer.dropped_messages % 2 == 0
    kept = system.then(*turns[answer.dropped_messages :], question)
    assert answer.prompt_tokens == narrow.count_tokens(kept).prompt <= 160
    more = system.then(*turns[answer.dropped_messages - 2 :], question)
    assert narrow.count_tokens(more).prompt > 160 - GREEDY.max_new_tokens


def test_turns_with_pictures_are_dropped_last(narrow: LocalEngine) -> None:
    def turn(question: str, *pictures: Picture) -> tuple[Message, Message]:
        return Message.user(question, pictures), Message.assistant("A cat.")

    turns = [turn("What is it?", picture(0)), *(turn(f"And {n}, what?") for n in range(12))]
    question = Message.user("And now?")
    whole = Conversation((*(message for one in turns for message in one), question))
    answer = last(narrow, whole)
    count = len(answer.dropped_turns)
    assert answer.dropped_turns == tuple(range(1, 1 + count))
    assert answer.dropped_messages == 2 * count > 0
    assert answer.image_tokens == 16
    kept = [message for one in (turns[0], *turns[1 + count :]) for message in one]
    assert answer.prompt_tokens == narrow.count_tokens(Conversation((*kept, question))).prompt
    shown = narrow.attention_map(whole, "A cat.")
    assert len(shown.maps) == 1
    assert shown.maps[0].sum() > 0, "the picture is still seen"


def test_a_message_that_is_too_long_is_refused_with_the_numbers(narrow: LocalEngine) -> None:
    long = Conversation.ask("why " * 200, [picture(0)])
    count = narrow.count_tokens(long)
    with pytest.raises(ContextOverflowError, match=f"{count.prompt} tokens, 16 of them.*160"):
        last(narrow, long)


def test_an_answer_never_exceeds_the_context(narrow: LocalEngine) -> None:
    text = "why " * 30
    while narrow.count_tokens(Conversation.ask(text + "?")).prompt < 150:
        text += "why "
    answer = last(narrow, Conversation.ask(text + "?"), replace(GREEDY, max_new_tokens=100))
    assert answer.prompt_tokens + answer.new_tokens <= 160


@pytest.mark.parametrize("method", ["score", "image_gain", "attention_map"])
def test_methods_with_given_answers_respect_the_context(narrow: LocalEngine, method: str) -> None:
    """The oldest turns are left out first; what is still too long is refused."""
    given: Any = ["yes", "no"] if method == "score" else "yes"
    question = (Message.user("And now?", [picture(9)]),)
    turns = [
        message
        for number in range(6)
        for message in (Message.user("What is it?", [picture(number)]), Message.assistant("A cat."))
    ]
    room = 160 - narrow.count_tokens(Conversation(question)).prompt
    full = getattr(narrow, method)(Conversation((*turns, *question)), given)
    kept = next(
        Conversation((*turns[start:], *question))
        for start in range(0, 14, 2)
        if narrow.count_tokens(
            Conversation((*turns[start:], *question, Message.assistant("yes")))
        ).prompt
        <= 160
    )
    short = getattr(narrow, method)(kept, given)
    if method == "attention_map":
        left_out = 7 - len(kept.pictures)
        assert left_out > 0
        assert len(full.maps) == 7
        assert all(grid.sum() == 0 for grid in full.maps[:left_out])
        for got, expected in zip(full.maps[left_out:], short.maps, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)
    else:
        assert full == pytest.approx(short, abs=1e-5)
    for text, long in (("why " * 200, "yes yes"), ("Why?", "yes " * room)):
        given = [long, "no"] if method == "score" else long
        with pytest.raises(ContextOverflowError, match="16 of them for pictures, the answer up to"):
            getattr(narrow, method)(Conversation.ask(text, [picture(0)]), given)


def test_warming_pauses_for_questions(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding, proceed, answered = threading.Event(), threading.Event(), threading.Event()
    run_encoder, answered_first = local._runtime.encoder.run, []

    def wait_then_encode(inputs: Any) -> Any:
        if encoding.is_set():  # the second picture
            answered_first.append(answered.wait(PATIENCE))
        encoding.set()
        assert proceed.wait(PATIENCE)
        return run_encoder(inputs)

    monkeypatch.setattr(local._runtime.encoder, "run", wait_then_encode)
    two = Conversation((Message.user("", [picture(5), picture(6)]),))
    warming = threading.Thread(target=lambda: local.warm(two))
    warming.start()
    assert encoding.wait(PATIENCE)
    events = local.stream(Conversation.ask("Quick?"), GREEDY)
    asking = threading.Thread(target=lambda: (list(events), answered.set()))
    asking.start()
    until(lambda: local._scheduler.in_demand)
    proceed.set()
    for thread in (warming, asking):
        thread.join(PATIENCE)
    assert answered_first == [True]
    assert last(local, Conversation.ask("Both?", two.pictures)).cached_tokens > 32


def test_after_cancelling_no_further_picture_is_encoded(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, calls = threading.Event(), []
    run_encoder = local._runtime.encoder.run

    def cancel_at_the_first(inputs: Any) -> Any:
        calls.append(1)
        cancel.set()
        return run_encoder(inputs)

    monkeypatch.setattr(local._runtime.encoder, "run", cancel_at_the_first)
    pictures = [picture(number) for number in range(4)]
    *_, answer = local.stream(Conversation.ask("Compare them.", pictures), GREEDY, cancel)
    assert answer.finish_reason == "cancelled"
    assert len(calls) == 1


def test_each_picture_is_encoded_once(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run_encoder = local._runtime.encoder.run
    monkeypatch.setattr(
        local._runtime.encoder, "run", lambda inputs: calls.append(1) or run_encoder(inputs)
    )
    both = Conversation.ask("Compare them.", [picture(1), picture(2)])
    last(local, both)
    last(local, Conversation.ask("Other words.", [picture(2), picture(1)]))
    last(local, both.with_system("Be brief."))
    assert len(calls) == 2


def test_a_follow_up_computes_only_new_tokens(local: LocalEngine) -> None:
    first = last(local, QUESTION)
    follow_up = QUESTION.then(Message.assistant(first.text), Message.user("Why?"))
    again = last(local, follow_up)
    assert again.cached_tokens >= first.prompt_tokens
    assert last(local, follow_up).cached_tokens == again.prompt_tokens - 1


def test_branches_of_a_conversation_are_independent(local: LocalEngine) -> None:
    trunk = QUESTION.then(Message.assistant("A red circle is left of the blue square."))
    left, right = trunk.then(Message.user("How big?")), trunk.then(Message.user("Which colour?"))
    alone = [last(local, branch).text for branch in (left, right)]
    for _ in range(2):
        assert [last(local, branch).text for branch in (left, right)] == alone


def test_a_closed_engine_raises(engine: Engine) -> None:
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        last(engine, QUESTION)


def test_closing_ends_a_running_answer() -> None:
    engine = FakeEngine(hold_after=1)
    events = engine.stream(QUESTION)
    while not isinstance(next(events), Delta):
        pass
    engine.close()
    assert list(events)[-1].finish_reason == "cancelled"


def test_closing_frees_the_model(tiny_llava_dir: Path) -> None:
    loaded = load_model(str(tiny_llava_dir))
    engine, model = LocalEngine(loaded), weakref.ref(loaded.model)
    del loaded
    assert last(engine, QUESTION).text
    assert model() is not None
    engine.close()
    gc.collect()
    assert model() is None
    assert engine.count_tokens(QUESTION).prompt  # needs no model


def test_scores_sum_to_one_and_prefer_the_likelier(local: LocalEngine) -> None:
    answer = last(local, QUESTION, replace(GREEDY, max_new_tokens=3)).text
    scores = local.score(QUESTION, [answer, "Describe 0123456789"])
    assert sum(scores) == pytest.approx(1.0)
    assert scores[0] > scores[1]
    for invalid in ([], "yes", [1, 2]):
        with pytest.raises(UsageError):
            local.score(QUESTION, invalid)


def test_image_gain_is_zero_without_pictures(local: LocalEngine) -> None:
    assert local.image_gain(Conversation.ask("Why?"), "Because.") == 0.0
    assert local.image_gain(QUESTION, "A cat.") != 0.0


def test_info_describes_the_model(
    local: LocalEngine, tiny_checkpoint: Callable[[str], Path]
) -> None:
    info = local.info
    assert info.architecture == "LlavaForConditionalGeneration"
    assert (info.device, info.dtype, info.context_length) == ("cpu", "float32", 1024)
    assert info.parameters > 50_000
    assert info.attention_maps
    assert info.defaults.temperature == 0.0


LONG = replace(GREEDY, max_new_tokens=200)


def looping_model(directory: Path) -> LoadedModel:
    """Load a model whose next token depends on the last one only, so that its answers are loops."""
    loaded = load_model(str(directory))
    for name, weight in loaded.model.named_parameters():
        if "language_model" in name and name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    return loaded


def test_an_endless_repetition_ends_the_answer_alone_and_in_a_batch(tiny_llava_dir: Path) -> None:
    from vqa_app.engine.batched import answer_prompts
    from vqa_app.prompts.prompt import encode

    loaded = looping_model(tiny_llava_dir)
    prompt = encode(loaded.processor, QUESTION, answer_next=True)
    (batched,) = answer_prompts(
        loaded.model, loaded.processor, loaded.capabilities, [prompt], max_new_tokens=200
    )
    engine = LocalEngine(loaded)
    answer = last(engine, QUESTION, LONG)
    assert answer.finish_reason == "repetition"
    assert MIN_TOKENS <= answer.new_tokens < 200
    assert batched == answer.text.strip()
    engine.close()


@pytest.mark.parametrize("penalty", [1.0, 1.0001])
def test_a_repetition_penalty_that_somebody_sets_allows_repetitions(
    tiny_llava_dir: Path, penalty: float
) -> None:
    engine = LocalEngine(looping_model(tiny_llava_dir))
    own = engine.info.defaults.repetition_penalty
    answer = last(engine, QUESTION, replace(LONG, repetition_penalty=penalty))
    assert answer.finish_reason == ("repetition" if penalty == own else "length")
    engine.close()


def test_log_probabilities_are_reported_with_each_token_to_those_who_ask(engine: Engine) -> None:
    options = replace(GREEDY, top_log_probabilities=3)
    *events, answer = engine.stream(QUESTION, options)
    assert isinstance(answer, Answer)
    streamed = [t for event in events if isinstance(event, Delta) for t in event.log_probabilities]
    assert tuple(streamed) == answer.log_probabilities
    assert len(streamed) == answer.new_tokens
    for token in streamed:
        assert [t.log_probability for t in token.top] == sorted(
            (t.log_probability for t in token.top), reverse=True
        )
        assert token.top[0] == replace(token, top=()), "greedy: the likeliest is taken"
        assert len(token.top) == 3
        assert token.log_probability <= 0
    assert not last(engine, QUESTION).log_probabilities
    alone = last(engine, QUESTION, replace(GREEDY, top_log_probabilities=0))
    assert [t.bytes for t in alone.log_probabilities] == [t.bytes for t in streamed]
    assert not any(t.top for t in alone.log_probabilities)


def test_log_probabilities_agree_with_the_confidence_and_the_text(local: LocalEngine) -> None:
    answer = last(local, QUESTION, replace(GREEDY, top_log_probabilities=0))
    mean = np.mean([t.log_probability for t in answer.log_probabilities])
    assert np.exp(mean) == pytest.approx(answer.confidence, rel=1e-4)
    joined = b"".join(t.bytes for t in answer.log_probabilities).decode(errors="replace")
    assert joined.strip().startswith(answer.text.strip())


def test_tokens_held_back_for_a_stop_string_are_reported_at_the_end(local: LocalEngine) -> None:
    whole = last(local, QUESTION, replace(GREEDY, top_log_probabilities=0))
    stop = whole.text[len(whole.text) // 2 :]
    options = replace(GREEDY, stop=(stop,), top_log_probabilities=0)
    *events, answer = local.stream(QUESTION, options)
    assert isinstance(answer, Answer)
    assert stop not in answer.text
    streamed = [t for event in events if isinstance(event, Delta) for t in event.log_probabilities]
    assert tuple(streamed) == answer.log_probabilities
    assert len(streamed) == answer.new_tokens


def test_a_frequency_penalty_ends_a_loop(tiny_llava_dir: Path) -> None:
    loaded = load_model(str(tiny_llava_dir))
    engine = LocalEngine(loaded)
    long = replace(GREEDY, max_new_tokens=60, frequency_penalty=2.0, top_log_probabilities=0)
    tokens = [t.bytes for t in last(engine, QUESTION, long).log_probabilities]
    plain = replace(GREEDY, max_new_tokens=60, repetition_penalty=1.001, top_log_probabilities=0)
    before = [t.bytes for t in last(engine, QUESTION, plain).log_probabilities]
    engine.close()
    most = max(tokens.count(token) for token in set(tokens))
    assert most < max(before.count(token) for token in set(before))


@pytest.mark.parametrize("request_name", ["score", "image_gain", "attention_map"])
def test_requests_without_an_answer_end_after_the_forward_pass_in_which_they_are_cancelled(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    cancel, passes = threading.Event(), []
    forward = engine._runtime._forward

    def record(*arguments: Any) -> torch.Tensor:
        passes.append(1)
        cancel.set()
        return forward(*arguments)

    monkeypatch.setattr(engine._runtime, "_forward", record)
    question = Conversation.ask("What is it?", [picture(3)])
    answer: Any = ["yes", "no", "red"] if request_name == "score" else "a dog"
    with pytest.raises(CancelledError):
        getattr(engine, request_name)(question, answer, cancel)
    assert len(passes) == 1
    cancel.clear()
    monkeypatch.undo()
    assert getattr(engine, request_name)(question, answer, cancel) is not None
    engine.close()


def test_a_question_is_read_between_two_choices_of_another(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    choices = ["yes", "no", "red", "blue", "two", "three"]
    began, go_on = threading.Event(), threading.Event()
    read: list[str] = []  # prompts in their order
    forward = engine._runtime._forward

    def record(prompt: Prompt, *arguments: Any) -> torch.Tensor:
        began.set()
        assert go_on.wait(PATIENCE)
        read.append("choice" if prompt.answer_mask.any() else "question")
        return forward(prompt, *arguments)

    monkeypatch.setattr(engine._runtime, "_forward", record)
    scoring = threading.Thread(
        target=lambda: engine.score(Conversation.ask("Is it red?"), choices), daemon=True
    )
    scoring.start()
    assert began.wait(PATIENCE)
    asking = threading.Thread(
        target=lambda: list(engine.stream(Conversation.ask("Why?"), GREEDY)), daemon=True
    )
    asking.start()
    until(lambda: engine._scheduler.count == 2)
    go_on.set()
    scoring.join(PATIENCE)
    asking.join(PATIENCE)
    assert read.count("choice") >= len(choices)
    assert read.index("question") < len(read) - 2, "not after all choices"
    engine.close()
