"""Batched answers are those a question gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
    import torch

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
    import torch

    from vqa_app.engine.batched import answer_prompts
    from vqa_app.prompts.prompt import encode

    model, processor, capabilities = load(tiny_llava_dir)
    model.to(torch.bfloat16)
    model.model.multi_modal_projector.float()
    model.train()
    prompts = [encode(processor, c, answer_next=True) for c in mixed_conversations()[:3]]
    assert len(answer_prompts(model, processor, capabilities, prompts, max_new_tokens=3)) == 3
    assert model.training
