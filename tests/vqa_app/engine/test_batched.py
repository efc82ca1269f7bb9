"""Batched answers are those a question gets alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import picture, tiny_llava
from vqa_app.prompts.conversation import Conversation, Message

QUESTIONS = [
    "What?",
    "How many stars are there in the picture, all in all?",
    "Is there a dog?",
    "Which colour has the big shape below the small yellow house?",
]


def load(directory: Path) -> tuple[Any, Any, Any]:
    from vqa_app.checkpoints.loader import load_model

    loaded = load_model(directory)
    return loaded.model, loaded.processor, loaded.capabilities


def mixed_conversations() -> list[Conversation]:
    """Several questions about each of three pictures, two pictures at once, none, and history."""
    conversations = [
        Conversation.ask(question, [picture(seed)]) for seed in range(3) for question in QUESTIONS
    ]
    conversations += [
        Conversation.ask("Which one?", [picture(4), picture(5)]),
        Conversation.ask("What can you do?"),
        Conversation.ask("What?", [picture(0)], system="You are a helpful assistant."),
        Conversation.ask("What?", [picture(1)]).then(
            Message.assistant("A red circle."), Message.user("Which colour?")
        ),
    ]
    return conversations


@pytest.mark.parametrize("llm", ["llama", "qwen2", "mistral"])
def test_batched_answers_equal_plain_generate(tmp_path: Path, one_thread: None, llm: str) -> None:
    from vqa_app.engine.batched import answer_prompts
    from vqa_app.prompts.prompt import encode

    model, processor, capabilities = load(tiny_llava(tmp_path, llm=llm))
    assert capabilities.shares_prefixes is (llm != "mistral")  # whose window slides
    prompts = [encode(processor, c, answer_next=True) for c in mixed_conversations()]
    answers = answer_prompts(model, processor, capabilities, prompts, max_new_tokens=8)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = model.generate(**prompt.inputs, do_sample=False, max_new_tokens=8)
        new = ids[0, prompt.inputs["input_ids"].shape[1] :]
        alone = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert answer == alone
    assert len(set(answers)) > len(answers) // 2  # else this would show nothing


@pytest.mark.parametrize("llm", ["llama", "mistral"])
def test_batched_losses_equal_the_model_s_own(tmp_path: Path, one_thread: None, llm: str) -> None:
    from vqa_app.engine.batched import answer_losses
    from vqa_app.prompts.prompt import encode

    model, processor, capabilities = load(tiny_llava(tmp_path, llm=llm))
    prompts = [
        encode(processor, c.then(Message.assistant("It is red.")), answer_next=False)
        for c in mixed_conversations()
    ]
    losses = answer_losses(model, processor, capabilities, prompts)
    for prompt, loss in zip(prompts, losses, strict=True):
        labels = prompt.inputs["input_ids"].masked_fill(~prompt.answer_mask, -100)
        with torch.no_grad():
            expected = model(**prompt.inputs, labels=labels).loss.item()
        assert loss.tokens == int(prompt.answer_mask.sum())
        assert loss.per_token == pytest.approx(expected, rel=1e-4)


def test_a_16_bit_model_with_trained_fp32_weights_answers(tiny_llava_dir: Path) -> None:
    from vqa_app.engine.batched import answer_prompts
    from vqa_app.prompts.prompt import encode

    model, processor, capabilities = load(tiny_llava_dir)
    model.to(torch.bfloat16)
    model.model.multi_modal_projector.float()
    model.train()
    prompts = [encode(processor, c, answer_next=True) for c in mixed_conversations()[:3]]
    assert len(answer_prompts(model, processor, capabilities, prompts, max_new_tokens=3)) == 3
    assert model.training


def finished(processor: Any, conversations: list[Conversation]) -> list[Any]:
    from vqa_app.prompts.prompt import encode

    answer = Message.assistant("It is red.")
    return [encode(processor, c.then(answer), answer_next=False) for c in conversations]


@pytest.mark.parametrize("name", ["qwen2-vl", "gemma3", "paligemma", "blip-2"])
def test_losses_of_all_architectures_equal_the_model_s_own(
    name: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    from vqa_app.engine.batched import answer_losses

    model, processor, capabilities = load(tiny_checkpoint(name))
    assert not capabilities.shares_prefixes
    asked = [Conversation.ask(question, [picture(seed)]) for seed, question in enumerate(QUESTIONS)]
    prompts = finished(processor, asked)
    for prompt, loss in zip(
        prompts, answer_losses(model, processor, capabilities, prompts), strict=True
    ):
        labelled = prompt.answer_mask.nonzero()[:, 0]
        with torch.no_grad():
            logits = model(**prompt.inputs).logits[0, labelled - 1].float()
        expected = torch.nn.functional.cross_entropy(
            logits, prompt.inputs["input_ids"][0, labelled]
        )
        assert loss.per_token == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("rows", [1, 3])
def test_logits_for_losses_stay_within_the_memory_budget(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    from vqa_app.engine import batch_memory, batched

    model, processor, capabilities = load(tiny_checkpoint("qwen2-vl"))
    asked = [Conversation.ask("What?", [picture(seed)]) for seed in range(7)]
    prompts = finished(processor, asked)
    answer = int(prompts[0].answer_mask.sum())
    budget = rows * answer * model.config.get_text_config().vocab_size * 8
    monkeypatch.setattr(batched, "max_batch_rows", lambda *_: batch_memory.MAX_ROWS)
    monkeypatch.setattr(batched, "memory_budget", lambda _: budget)
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_hook(lambda *given: shapes.append(tuple(given[-1].logits.shape)))
    losses = batched.answer_losses(model, processor, capabilities, prompts)
    hook.remove()
    assert len(losses) == len(prompts) == sum(shape[0] for shape in shapes)
    assert max(shape[0] for shape in shapes) == rows
    assert {shape[1] for shape in shapes} == {answer}


@pytest.mark.parametrize(("vocabulary", "itemsize"), [(151_936, 2), (262_144, 2)])
def test_logits_of_large_vocabularies_fit_into_a_gibibyte(vocabulary: int, itemsize: int) -> None:
    """The vocabularies of Qwen2-VL and Gemma 3, 128 questions of 700 tokens about pictures."""
    from types import SimpleNamespace

    from vqa_app.engine import batched

    class Model:
        device = torch.device("cpu")
        dtype = SimpleNamespace(itemsize=itemsize)
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=vocabulary))

        def forward(self, input_ids: Any) -> None: ...

    answer_mask = torch.zeros(700, dtype=torch.bool)
    answer_mask[-8:] = True
    prompts: Any = [
        SimpleNamespace(answer_mask=answer_mask, inputs={"input_ids": answer_mask[None]})
    ] * 128
    whole = len(batched._limit_logits(Model(), prompts, list(range(128))))
    assert whole == 1 or whole * 700 * vocabulary * itemsize <= 1 << 30
    Model.forward = lambda self, input_ids, logits_to_keep=0: None  # type: ignore[assignment]
    kept = len(batched._limit_logits(Model(), prompts, list(range(128))))
    assert kept > 8 * whole
    assert kept * 8 * vocabulary * itemsize <= 1 << 30


@pytest.mark.parametrize("task", ["answers", "losses"])
def test_no_more_prefixes_are_prefilled_than_fit_into_a_batch(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    from vqa_app.engine import batched
    from vqa_app.prompts.prompt import encode

    model, processor, capabilities = load(tiny_llava_dir)
    monkeypatch.setattr(batched, "max_batch_rows", lambda *_: 2)
    caches: list[weakref.ref[Any]] = []
    prefilled: list[int] = []
    prefill, select_rows = batched._prefill, batched._select_rows

    def record_prefill(*arguments: Any) -> Any:
        assert [reference() for reference in caches] == [None] * len(caches)
        cache, rows = prefill(*arguments)
        caches.append(weakref.ref(cache))
        prefilled.append(len(set(rows)))
        return cache, rows

    def record_rows(*arguments: Any) -> Any:
        assert sum(reference() is not None for reference in caches) == 1
        selected = select_rows(*arguments)
        caches.append(weakref.ref(selected))
        return selected

    monkeypatch.setattr(batched, "_prefill", record_prefill)
    monkeypatch.setattr(batched, "_select_rows", record_rows)
    asked = mixed_conversations()
    if task == "answers":
        prompts = [encode(processor, c, answer_next=True) for c in asked]
        batched.answer_prompts(model, processor, capabilities, prompts, max_new_tokens=3)
    else:
        batched.answer_losses(model, processor, capabilities, finished(processor, asked))
    assert max(prefilled) == 2
    assert len(prefilled) > 2


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that tensors made by torch's operators take at one time."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Measured(TorchDispatchMode):
        held = peak = 0

        def __torch_dispatch__(
            self, operator: Any, _: Any, arguments: Any = (), options: Any = None
        ) -> Any:
            result = operator(*arguments, **(options or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                    self.count(tensor.untyped_storage())
            return result

        def count(self, storage: Any) -> None:
            if storage._cdata in known:
                return
            size = storage.nbytes()
            known.add(storage._cdata)
            weakref.finalize(storage, self.forget, storage._cdata, size)
            self.held += size
            self.peak = max(self.peak, self.held)

        def forget(self, address: int, size: int) -> None:
            known.discard(address)
            self.held -= size

    known: set[int] = set()
    with Measured() as measured:
        work()
    return measured.peak


@pytest.mark.slow
@pytest.mark.parametrize("task", ["answers", "losses"])
@pytest.mark.parametrize("name", ["llava-siglip", "qwen2-vl", "gemma3"])
def test_keys_values_and_activations_together_fit_into_the_free_memory(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, task: str
) -> None:
    """Measured: all tensors that are alive at the same time, those of the encoder included."""
    from vqa_app.engine import batch_memory, batched
    from vqa_app.prompts.prompt import encode

    model, processor, capabilities = load(tiny_checkpoint(name))
    asked = [Conversation.ask(QUESTIONS[seed % 4], [picture(seed)]) for seed in range(40)]
    free = [0]
    monkeypatch.setattr(batch_memory, "free_memory", lambda _: free[0])
    if task == "answers":
        prompts = [encode(processor, c, answer_next=True) for c in asked]

        def work() -> object:
            return batched.answer_prompts(model, processor, capabilities, prompts, max_new_tokens=4)
    else:
        prompts = finished(processor, asked)

        def work() -> object:
            return batched.answer_losses(model, processor, capabilities, prompts)

    free[0] = 1 << 40
    whole = peak_bytes(work)
    for parts in (3, 8):
        free[0] = whole // parts
        assert peak_bytes(work) <= free[0], f"a third or an eighth of {whole}"
