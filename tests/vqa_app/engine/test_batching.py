"""Many questions at once: answers do not depend on who else is asking."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.architectures import ARCHITECTURES
from tests.tiny import picture, tiny_llava
from tests.waiting import PATIENCE, until
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine import vision
from vqa_app.engine.cpu_decoder import MAX_ROWS, CpuDecoder
from vqa_app.engine.kv_cache import KVCache
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.engine.scheduler import DecodeStep
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import Prompt

GREEDY = GenerationOptions(max_new_tokens=12, temperature=0.0)
QUESTIONS = ("What is it?", "How many stars are there?", "And the colour?", "Is there a dog?")


def answer_all(
    engine: LocalEngine,
    conversations: Sequence[Conversation],
    delays: Sequence[float] | None = None,
    cancels: Sequence[threading.Event | None] | None = None,
    options: Sequence[GenerationOptions] | None = None,
) -> list[Answer]:
    """Ask all questions at once, each from a thread of its own."""
    answers: list[Any] = [None] * len(conversations)

    def ask(index: int) -> None:
        time.sleep(delays[index] if delays else 0)
        given = options[index] if options else GREEDY
        cancel = cancels[index] if cancels else None
        *_, answers[index] = engine.stream(conversations[index], given, cancel)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(conversations))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return answers


def answer_after_all_arrived(
    engine: LocalEngine, conversations: Sequence[Conversation]
) -> list[Answer]:
    """Ask questions in their order while the engine is held, then let it go."""
    answers: list[Any] = [None] * len(conversations)
    gate = threading.Event()

    def hold(cancelled: Callable[[], bool]) -> Iterator[None]:
        assert gate.wait(PATIENCE)
        yield

    def ask(index: int) -> None:
        *_, answers[index] = engine.stream(conversations[index], GREEDY)

    threads = [threading.Thread(target=lambda: list(engine._scheduler.stream(hold)))]
    threads += [threading.Thread(target=ask, args=(i,)) for i in range(len(conversations))]
    for number, thread in enumerate(threads, 1):
        thread.start()
        until(lambda number=number: engine._scheduler.count == number)
    gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    return answers


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma", "qwen2-vl", "paligemma"])
def checkpoint(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param in ARCHITECTURES:
        return tiny_checkpoint(request.param)
    return tiny_llava(tmp_path_factory.mktemp("batching"), llm=request.param)


@pytest.fixture
def engine(checkpoint: Path) -> Iterator[LocalEngine]:
    engine = LocalEngine(load_model(str(checkpoint)))
    yield engine
    engine.close()


def random_conversations(rng: random.Random, count: int) -> list[Conversation]:
    """Return conversations some of which share pictures, beginnings, or everything."""
    found: list[Conversation] = []
    for _ in range(count):
        if found and rng.random() < 0.3:
            base = rng.choice(found)
            if len(base.messages) < 5 and rng.random() < 0.7:
                base = base.then(Message.assistant("Yes."), Message.user(rng.choice(QUESTIONS)))
            found.append(base)
            continue
        pictures = [picture(rng.randrange(3)) for _ in range(rng.choice((0, 1, 1, 2)))]
        found.append(Conversation.ask(rng.choice(QUESTIONS), pictures))
    return found


def check_that_company_changes_no_answer(engine: LocalEngine, seed: int) -> None:
    """Ask questions alone, and at random moments together; some of these are cancelled."""
    rng = random.Random(seed)
    conversations = random_conversations(rng, 14)
    alone = [list(engine.stream(one, GREEDY))[-1] for one in conversations]
    engine._runtime.clear_caches()
    cancels = [threading.Event() if rng.random() < 0.2 else None for _ in conversations]
    delays = [rng.random() * 0.1 for _ in conversations]
    for cancel in cancels:
        if cancel is not None:
            threading.Timer(rng.random() * 0.1, cancel.set).start()
    together = answer_all(engine, conversations, delays, cancels)
    for expected, got, cancel in zip(alone, together, cancels, strict=True):
        assert isinstance(expected, Answer)
        if cancel is None:
            assert (got.text, got.finish_reason) == (expected.text, expected.finish_reason)
            assert got.confidence == pytest.approx(expected.confidence, rel=1e-4)
        else:
            assert expected.text.startswith(got.text)


@pytest.mark.parametrize("seed", range(3))
def test_greedy_answers_do_not_depend_on_who_else_is_asking(engine: LocalEngine, seed: int) -> None:
    check_that_company_changes_no_answer(engine, seed)


@pytest.mark.parametrize(("llm", "bits"), [("llama", "4bit"), ("llama", "8bit"), ("gemma", "4bit")])
def test_greedy_answers_of_quantised_models_do_not_either(
    tmp_path: Path, one_thread: None, llm: str, bits: str
) -> None:
    engine = LocalEngine(load_model(str(tiny_llava(tmp_path, llm=llm)), quantize=bits))
    assert (engine._runtime._cpu_decoder is not None) == (llm == "llama")
    check_that_company_changes_no_answer(engine, 0)
    engine.close()


def test_each_question_keeps_its_own_options(engine: LocalEngine) -> None:
    question = Conversation.ask("What is it?", [picture(1)])
    options = [
        GREEDY,
        GenerationOptions(max_new_tokens=3, temperature=0.0),
        GenerationOptions(max_new_tokens=8, temperature=1.5, seed=1),
        GenerationOptions(max_new_tokens=8, temperature=1.5, seed=2),
        GenerationOptions(max_new_tokens=8, temperature=0.0, repetition_penalty=1.9),
    ]
    alone = [list(engine.stream(question, one))[-1] for one in options]
    together = answer_all(engine, [question] * len(options), options=options)
    assert [one.text for one in together] == [one.text for one in alone if isinstance(one, Answer)]


@pytest.mark.parametrize(
    "precision",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "float32", "quantize": "4bit"},
        {"dtype": "bfloat16", "quantize": "8bit"},
    ],
    ids=lambda precision: "-".join(precision.values()),
)
@pytest.mark.parametrize("llm", ["llama", "qwen3"])
def test_logits_of_a_row_are_the_same_bits_alone_and_beside_others(
    tmp_path: Path, llm: str, precision: dict[str, str]
) -> None:
    engine = LocalEngine(load_model(str(tiny_llava(tmp_path, llm=llm)), **precision))
    decoder = engine._runtime._cpu_decoder
    assert isinstance(decoder, CpuDecoder)
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 70, 1, 12, 40, 5, 9, 33]

    def filled(index: int) -> KVCache:
        kv = KVCache.empty(len(decoder._layers), transposed=decoder.transposes_keys)
        for number, layer in enumerate(kv.layers):
            generator.manual_seed(100 * index + number)
            shape = (1, decoder._kv_heads, lengths[index], decoder._head_width)
            states = torch.randn(2, *shape, generator=generator).to(decoder._embedding.dtype)
            layer.update(states[0], states[1])
        return kv

    def logits(rows: Sequence[int]) -> dict[int, torch.Tensor]:
        with torch.inference_mode():
            found = decoder.step(
                [7 + row for row in rows], [filled(row) for row in rows], [lengths[r] for r in rows]
            )
        return dict(zip(rows, found, strict=True))

    together = logits(range(MAX_ROWS))
    for rows in ([0], [5], [2, 1], [3, 4, 5], [7, 6, 5, 4, 3], [1, 0, 2, 7, 3, 6]):
        for row, alone in logits(rows).items():
            assert torch.equal(alone, together[row]), (rows, row)
    engine.close()


def test_an_error_of_one_question_leaves_the_others(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = [Conversation.ask(question, [picture(0)]) for question in QUESTIONS]
    alone = [list(engine.stream(one, GREEDY))[-1] for one in conversations]
    decode = engine._runtime.decode
    victims: list[Any] = []

    def fail_for_one(steps: Sequence[DecodeStep]) -> list[Any]:
        if not victims and len(steps) > 1:
            victims.append(steps[-1].sequence)
        results = decode(steps)
        return [
            RuntimeError("broken") if step.sequence in victims else result
            for step, result in zip(steps, results, strict=True)
        ]

    monkeypatch.setattr(engine._scheduler, "_decode", fail_for_one)
    answers: list[Any] = [None] * len(conversations)

    def ask(index: int) -> None:
        try:
            *_, answers[index] = engine.stream(conversations[index], GREEDY)
        except RuntimeError as error:
            answers[index] = error

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(conversations))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    failed = [one for one in answers if isinstance(one, RuntimeError)]
    assert len(failed) == len(victims) <= 1
    for got, expected in zip(answers, alone, strict=True):
        if isinstance(got, Answer) and isinstance(expected, Answer):
            assert got.text == expected.text


def test_a_joint_step_that_fails_is_repeated_one_by_one(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine._runtime._cpu_decoder is None:
        pytest.skip("this architecture decodes one by one")
    conversations = [Conversation.ask(question, [picture(0)]) for question in QUESTIONS]
    alone = [list(engine.stream(one, GREEDY))[-1] for one in conversations]
    decoder = engine._runtime._cpu_decoder
    step, attend = decoder.step, decoder._attend
    failures: list[int] = []

    def fail_midway(query: torch.Tensor, buffers: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    def fail_once(tokens: Sequence[int], *arguments: Any) -> torch.Tensor:
        first = len(tokens) > 1 and not failures
        decoder._attend = fail_midway if first else attend
        if first:
            failures.append(len(tokens))
        return step(tokens, *arguments)

    monkeypatch.setattr(decoder, "step", fail_once)
    together = answer_all(engine, conversations)
    texts = [one.text for one in alone if isinstance(one, Answer)]
    assert [one.text for one in together] == texts
    assert failures


def test_questions_about_one_new_picture_read_it_once(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not engine._runtime.capabilities.reuses_prefixes:
        pytest.skip("this architecture reads every prompt whole")
    encoder: Any = engine._runtime.encoder
    run, calls = encoder.run, []
    monkeypatch.setattr(encoder, "run", lambda inputs: calls.append(1) or run(inputs))
    questions = [Conversation.ask(question, [picture(2)]) for question in QUESTIONS]
    answers = answer_after_all_arrived(engine, questions)
    assert len(calls) == 1
    assert sum(one.cached_tokens >= one.image_tokens for one in answers) == len(QUESTIONS) - 1


def test_new_pictures_of_several_questions_are_encoded_together_if_that_is_quick(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = engine._runtime.encoder
    if engine.info.architecture != "LlavaForConditionalGeneration":
        pytest.skip("its inputs cannot be joined, or have other sizes")
    run, sizes = encoder.run, []

    def record(inputs: Any) -> Any:
        sizes.append(len(inputs["pixel_values"]))
        return run(inputs)

    monkeypatch.setattr(encoder, "run", record)
    for longest, together in ((1e9, True), (0.0, False)):
        engine._runtime.clear_caches()
        sizes.clear()
        monkeypatch.setattr(vision, "MAX_SECONDS", longest)
        questions = [Conversation.ask("Why?", [picture(number)]) for number in range(5)]
        answer_after_all_arrived(engine, questions)
        assert (max(sizes) > 1) == together, sizes


def test_more_questions_than_places_are_answered_in_the_order_of_arrival(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    conversations = [Conversation.ask("Why? " * (index + 1)) for index in range(MAX_ROWS + 3)]
    prefill = engine._runtime.prefill

    def record(prompt: Prompt, *arguments: Any) -> Any:
        lengths.append(len(prompt))
        return prefill(prompt, *arguments)

    monkeypatch.setattr(engine._runtime, "prefill", record)
    answer_after_all_arrived(engine, conversations)
    assert lengths == sorted(lengths)
    assert len(lengths) == len(conversations)
