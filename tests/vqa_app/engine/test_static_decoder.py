"""Decoding several sequences at once in tensors of fixed shapes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.architectures import ARCHITECTURES
from tests.tiny import picture, tiny_llava
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine import static_decoder
from vqa_app.engine.cache_budget import CacheBudget
from vqa_app.engine.kv_cache import KVCache
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.engine.runtime import CachedGeneration, Runtime
from vqa_app.engine.sampling import Sampler
from vqa_app.engine.scheduler import DecodeStep, run_to_end
from vqa_app.engine.static_decoder import StaticDecoder, capacity_for, supports
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import Prompt, encode

QUESTIONS = ("What is it?", "How many stars are there?", "And the colour?", "Is there a dog?")


@pytest.fixture
def runtime_of(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[str], Runtime]]:
    """Return a function that makes a runtime whose sequences are all decoded statically."""
    monkeypatch.setattr(static_decoder, "MIN_CAPACITY", 32)
    made: list[Runtime] = []

    def make(name: str) -> Runtime:
        window = {"sliding_window": 16} if name == "mistral" else {}
        if name in ARCHITECTURES:
            folder = tiny_checkpoint(name)
        else:
            folder = tiny_llava(tmp_path, llm=name, **window)
        loaded = load_model(str(folder))
        budget = CacheBudget.fixed(1 << 30)
        runtime = Runtime(
            loaded.model, loaded.processor, loaded.capabilities, budget=budget, fast_decoding=False
        )
        runtime._static_decoder = StaticDecoder.of(loaded.model, budget)
        assert runtime._static_decoder is not None
        runtime._static_decoder.min_rows = 1
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        runtime.close()


def prompts(runtime: Runtime) -> list[Prompt]:
    """Return prompts of several lengths, some with pictures."""
    asked = [Conversation.ask(question, [picture(0)]) for question in QUESTIONS]
    asked += [Conversation.ask("Why? " * count) for count in (1, 9, 30)]
    return [encode(runtime.processor, one, answer_next=True) for one in asked]


def begin(runtime: Runtime, prompt: Prompt) -> CachedGeneration:
    generation = run_to_end(runtime.prefill(prompt, lambda: False))
    assert isinstance(generation, CachedGeneration)
    return generation


@pytest.mark.parametrize(
    "name",
    [
        "gemma",
        "mistral",
        "gemma3",
        "idefics3",
        "qwen2-vl",
        "qwen3-vl",
    ],
)
def test_logits_are_those_of_single_steps_whoever_joins_and_leaves(
    runtime_of: Callable[[str], Runtime], name: str
) -> None:
    runtime, rng = runtime_of(name), random.Random(0)
    decoder = runtime._static_decoder
    assert decoder is not None
    with torch.inference_mode():
        waiting = prompts(runtime)
        active: list[tuple[CachedGeneration, Any, list[int]]] = []
        for _ in range(40):
            if waiting and rng.random() < 0.5:
                prompt = waiting.pop(0)
                expected = begin(runtime, prompt)
                expected.kv = expected.kv.copy(expected.kv.length)
                active.append((begin(runtime, prompt), expected, []))
            chosen = [one for one in active if rng.random() < 0.9]
            if not chosen:
                continue
            tokens = [rng.randrange(5, 100) for _ in chosen]
            together = decoder.step(
                [torch.tensor(token) for token in tokens],
                [one[0].kv for one in chosen],
                [one[0].position for one in chosen],
            )
            for token, logits, (generation, expected, answer) in zip(
                tokens, together, chosen, strict=True
            ):
                alone = runtime.append(token, expected.kv, expected.position)
                answer.append(token)
                torch.testing.assert_close(logits, alone, rtol=1e-3, atol=1e-3)
                assert generation.kv.length == expected.kv.length
            if rng.random() < 0.2:
                generation, expected, answer = active.pop(rng.randrange(len(active)))
                generation.close(answer)
                for mine, other in zip(generation.kv.layers, expected.kv.layers, strict=True):
                    assert mine.capacity == mine.length, "buffers of just its size"
                    torch.testing.assert_close(
                        mine.keys, other.keys_view(other.length), rtol=1e-3, atol=1e-3
                    )
    assert len(decoder._groups) > 1, "sequences outgrew their buffers"


def test_rows_of_sequences_that_were_dropped_are_free(
    runtime_of: Callable[[str], Runtime],
) -> None:
    runtime = runtime_of("gemma")
    decoder = runtime._static_decoder
    assert decoder is not None
    prompt = encode(runtime.processor, Conversation.ask("Why?"), answer_next=True)
    token = torch.tensor(7)
    with torch.inference_mode():
        for _ in range(9):  # as after an error: nobody calls `close`
            generation = begin(runtime, prompt)
            decoder.step([token], [generation.kv], [generation.position])
            del generation
        (group,) = decoder._groups.values()
        assert group.room == 1
        assert decoder.oldest is not None
        assert decoder.nbytes > 0
        decoder.drop_oldest()
    assert (decoder.nbytes, decoder.oldest) == (0, None)


def test_a_batch_that_fails_is_decoded_one_by_one(
    runtime_of: Callable[[str], Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of("gemma")
    broken: list[int] = []

    def fail(batch: Any) -> torch.Tensor:
        broken.append(1)
        raise torch.OutOfMemoryError("out of memory")

    with torch.inference_mode():
        sequences = [begin(runtime, prompt) for prompt in prompts(runtime)[:2]]
        copies = [one.kv.copy(one.kv.length) for one in sequences]
        steps = [DecodeStep(one, 9, torch.tensor(9)) for one in sequences]
        runtime.decode(steps)
        monkeypatch.setattr(static_decoder._Batch, "_run", fail)
        failed = runtime.decode(steps)
        assert broken
        monkeypatch.undo()
        after = runtime.decode(steps)
        for one, kv, second, third in zip(sequences, copies, failed, after, strict=True):
            start = one.position - 3
            alone = [runtime.append(9, kv, start + number) for number in range(3)]
            assert isinstance(second, torch.Tensor)
            assert isinstance(third, torch.Tensor)
            torch.testing.assert_close(second, alone[1], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(third, alone[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["right", "wrong", "refused"])
def test_a_captured_graph_is_replayed_only_if_it_computes_the_same(
    runtime_of: Callable[[str], Runtime], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without a GPU: what is replayed here is the forward pass itself, or something else."""
    runtime = runtime_of("gemma")
    replayed: list[Any] = []

    class Graph:
        def replay(self) -> None:
            replayed.append(self)
            (batch,) = batches()
            batch._logits.copy_(batch._forward() + (9.0 if kind == "wrong" else 0.0))

    @contextmanager
    def capture(graph: Graph, capture_error_mode: str) -> Iterator[None]:
        if kind == "refused":
            raise RuntimeError("operation not permitted when stream is capturing")
        yield

    def batches() -> list[Any]:
        decoder = runtime._static_decoder
        assert decoder is not None
        return [one for group in decoder._groups.values() for one in group._batches.values()]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", MagicMock)
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    made = static_decoder._Batch.__init__

    def capturing(batch: Any, *arguments: Any) -> None:
        made(batch, *arguments)
        batch._captures = True

    monkeypatch.setattr(static_decoder._Batch, "__init__", capturing)
    with torch.inference_mode():
        sequences = [begin(runtime, prompt) for prompt in prompts(runtime)[:2]]
        copies = [one.kv.copy(one.kv.length) for one in sequences]
        for _ in range(3):
            found = runtime.decode([DecodeStep(one, 9, torch.tensor(9)) for one in sequences])
            for logits, kv in zip(found, copies, strict=True):
                assert isinstance(logits, torch.Tensor)
                alone = runtime.append(9, kv, kv.length)
                torch.testing.assert_close(logits, alone, rtol=1e-3, atol=1e-3)
        assert runtime._static_decoder is not None
        assert runtime._static_decoder.captured_graphs == (kind == "right")
    assert len(replayed) == {"right": 4, "wrong": 1, "refused": 0}[kind]


class HostTransfers(TorchDispatchMode):
    """Counts reads of single numbers, and refuses tensors made on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.refused: set[str] = set()

    def __torch_dispatch__(
        self, operator: Any, _: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = operator.overloadpacket.__name__
        self.calls[name] += 1
        # `torch.tensor` arrives as `lift_fresh`.
        if name in ("lift_fresh", "scalar_tensor", "nonzero", "is_nonzero"):
            self.refused.add(name)
        makes = not any(isinstance(one, torch.Tensor) for one in arguments)
        takes_device = any(one.name == "device" for one in operator._schema.arguments)
        if makes and takes_device and (options or {}).get("device") is None:
            self.refused.add(name)
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_token_is_read_once_and_nothing_is_copied_to_the_device(
    runtime_of: Callable[[str], Runtime], temperature: float, penalty: float
) -> None:
    runtime = runtime_of("gemma")
    options = GenerationOptions(temperature=temperature, repetition_penalty=penalty, seed=1)
    with torch.inference_mode():
        asked = prompts(runtime)[:3]
        sequences = [begin(runtime, prompt) for prompt in asked]
        samplers = [Sampler(runtime.model, options, prompt.inputs["input_ids"]) for prompt in asked]
        logits: list[Any] = [one.logits[-1] for one in sequences]

        def decode_round() -> None:
            sampled = [one.sample(row) for one, row in zip(samplers, logits, strict=True)]
            steps = [
                DecodeStep(sequence, token, sampler.token)
                for sequence, (token, _), sampler in zip(sequences, sampled, samplers, strict=True)
            ]
            logits[:] = runtime.decode(steps)

        decode_round()
        with HostTransfers() as transfers:
            for _ in range(3):
                decode_round()
    assert not transfers.refused
    reads = transfers.calls["item"] + transfers.calls["_local_scalar_dense"]
    assert reads == 3 * len(sequences)


@pytest.mark.parametrize("name", ["qwen2-vl", "idefics3"])
def test_shapes_do_not_depend_on_values(tiny_checkpoint: Callable[[str], Path], name: str) -> None:
    """On the meta device there are no values: whatever reads one raises."""
    model = load_model(str(tiny_checkpoint(name))).model.to("meta")
    decoder = StaticDecoder(model, CacheBudget.fixed(0))
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    with torch.inference_mode():
        caches = []
        for length in (5, 60, 9):
            kv = KVCache.empty(text.num_hidden_layers)
            for layer in kv.layers:
                text = model.config.get_text_config()
                head = (
                    getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
                )
                states = torch.empty(1, text.num_key_value_heads, length, head, device="meta")
                layer.update(states, states)
            caches.append(kv)
        token = torch.zeros((), dtype=torch.long, device="meta")
        for _ in range(3):
            rows = decoder.step([token] * 3, caches, [kv.length for kv in caches])
            assert [row.shape for row in rows] == [(text.vocab_size,)] * 3
            assert all(row.device.type == "meta" for row in rows)
    assert [kv.length for kv in caches] == [8, 63, 12]


def test_positions_that_depend_on_the_longest_sequence_are_not_supported(tmp_path: Path) -> None:
    longrope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
    }
    phi = tiny_llava(tmp_path, llm="phi3", num_key_value_heads=2, rope_parameters=longrope)
    assert not supports(load_model(str(phi)).model)


@pytest.mark.parametrize(("tokens", "capacity"), [(1, 256), (254, 256), (255, 512), (511, 1024)])
def test_a_column_stays_free(tokens: int, capacity: int) -> None:
    assert capacity_for(tokens) == capacity


def test_what_is_reserved_is_what_the_buffers_take(runtime_of: Callable[[str], Runtime]) -> None:
    runtime = runtime_of("gemma")
    decoder = runtime._static_decoder
    assert decoder is not None
    with torch.inference_mode():
        generation = begin(runtime, prompts(runtime)[1])
        decoder.step([torch.tensor(7)], [generation.kv], [generation.position])
    assert decoder.nbytes == 0, "no row is free"
    assert generation.kv.nbytes == runtime.kv_bytes(generation.kv.length)
