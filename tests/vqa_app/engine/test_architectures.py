"""Every supported architecture: prompts, several turns, several pictures, control tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import ARCHITECTURES, gemma4
from tests.tiny import picture
from vqa_app.checkpoints.loader import LoadedModel, load_model
from vqa_app.checkpoints.processor import FALLBACK_TEMPLATES
from vqa_app.engine.batched import answer_prompts
from vqa_app.engine.cache_budget import CacheBudget
from vqa_app.engine.runtime import Runtime
from vqa_app.engine.scheduler import run_to_end
from vqa_app.errors import ModelError
from vqa_app.prompts.chat_template import chat_template
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import encode, end_token_ids

QUESTION = "What is in the picture?"
WITHOUT_TEMPLATE = {"paligemma", "paligemma2", "blip-2", "kosmos-2"}
"""Their hub repositories have no chat template; ours is used."""

DIALOGUE = Conversation.ask(QUESTION, [picture(0)]).then(
    Message.assistant("A red circle."),
    Message.user("And there?", [picture(1, (60, 30)), picture(2, (20, 50))]),
)


@lru_cache
def _load(directory: Path) -> LoadedModel:
    return load_model(str(directory))


@pytest.fixture(params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return _load(tiny_checkpoint(request.param))


def first_logits(loaded: LoadedModel, conversation: Conversation) -> Any:
    import torch

    prompt = encode(loaded.processor, conversation, answer_next=True)
    with torch.inference_mode():
        return loaded.model(**prompt.inputs).logits[0, -1]


def plain_answer(loaded: LoadedModel, conversation: Conversation) -> tuple[list[Any], list[int]]:
    """Return the logits and tokens of an answer of `generate`, without this package's engine."""
    prompt = encode(loaded.processor, conversation, answer_next=True)
    answer = loaded.model.generate(
        **prompt.inputs,
        max_new_tokens=3,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = [step[0] for step in answer.logits]
    return logits, answer.sequences[0, -len(logits) :].tolist()


def make_runtime(loaded: LoadedModel) -> Runtime:
    return Runtime(
        loaded.model,
        loaded.processor,
        loaded.capabilities,
        budget=CacheBudget.fixed(1 << 24),
    )


def assert_equals_plain_answer(
    runtime: Runtime, loaded: LoadedModel, conversation: Conversation
) -> int:
    """Compare logits: the texts of random models often agree although the logits differ.

    Returns:
        How many tokens of the prompt came from a cache.
    """
    import torch

    expected, tokens = plain_answer(loaded, conversation)
    prompt = encode(loaded.processor, conversation, answer_next=True)
    with torch.inference_mode():
        generation = run_to_end(runtime.prefill(prompt, lambda: False))
        assert generation is not None
        actual = [generation.logits[-1], *(generation.step(token) for token in tokens[:-1])]
        generation.close(tokens[:-1])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    return generation.cached_tokens


def count_encoder_passes(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows with each pass through the image encoder."""
    passes: list[Any] = []
    encoder = runtime.encoder
    if encoder is not None:
        run = encoder.run
        monkeypatch.setattr(encoder, "run", lambda inputs: passes.append(inputs) or run(inputs))
    return passes


def chat(loaded: LoadedModel) -> list[Conversation]:
    """Return a question, follow-ups, one of them edited, and another about the first picture.

    Only those that the architecture allows: BLIP-2 and Kosmos-2 read one picture.
    """
    first = Conversation.ask(QUESTION, [picture(0)])
    answered = first.then(Message.assistant("A red circle."))
    conversations = [
        first,
        answered.then(Message.user("Why?")),
        answered.then(Message.user("And there?", [picture(1, (60, 30)), picture(2, (20, 50))])),
        answered.then(Message.user("And here?", [picture(1, (60, 30)), picture(3, (20, 50))])),
        Conversation.ask("What is in the corner?", [picture(0)]),
    ]
    return [one for one in conversations if len(one.pictures) == 1 or takes_several(loaded)]


def takes_several(loaded: LoadedModel) -> bool:
    return loaded.model.config.model_type not in ("blip-2", "kosmos-2")


def test_logits_in_a_chat_are_those_of_plain_transformers(loaded: LoadedModel) -> None:
    runtime = make_runtime(loaded)
    cached = [assert_equals_plain_answer(runtime, loaded, each) for each in chat(loaded)]
    reuses = loaded.capabilities.reuses_prefixes
    assert [tokens > 0 for tokens in cached] == [False, *(len(cached) - 1) * [reuses]]


def test_features_of_known_pictures_are_kept(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(loaded)
    assert (runtime.encoder is not None) == loaded.capabilities.caches_features
    conversations = chat(loaded)
    for conversation in conversations:
        assert_equals_plain_answer(runtime, loaded, conversation)
    monkeypatch.setattr("vqa_app.engine.runtime.CHUNK", 16)
    passes = count_encoder_passes(runtime, monkeypatch)
    for conversation in conversations:
        runtime.prefixes.clear()
        assert_equals_plain_answer(runtime, loaded, conversation)
    assert not passes


def test_warming_encodes_pictures_and_leaves_the_logits_as_they_are(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    runtime = make_runtime(loaded)
    opened = Conversation((Message.user("", [picture(3)]),))
    partial = encode(loaded.processor, opened, answer_next=True, question_incomplete=True)
    passes = count_encoder_passes(runtime, monkeypatch)
    with torch.inference_mode():
        run_to_end(runtime.warm(partial, lambda: False))
    assert len(passes) == loaded.capabilities.caches_features
    cached = assert_equals_plain_answer(
        runtime, loaded, Conversation.ask("What is it?", [picture(3)])
    )
    assert len(passes) == loaded.capabilities.caches_features
    assert (cached >= partial.image_tokens) == loaded.capabilities.reuses_prefixes


@contextmanager
def head_outputs(loaded: LoadedModel) -> Iterator[list[Any]]:
    """Collect what the output embedding returns for the last token of every pass, [rows, n]."""
    found: list[Any] = []
    head = loaded.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *given: found.append(given[-1][:, -1].clone()))
    yield found
    hook.remove()


def test_batched_answers_have_the_logits_of_plain_transformers(loaded: LoadedModel) -> None:
    """Prompts are padded or share a prefix; each has the logits that it has alone."""
    import torch

    conversations = [
        Conversation.ask(text, [picture(seed)])
        for text, seed in (
            ("What?", 0),
            (QUESTION, 0),
            ("How many stars are there?", 1),
            ("Hm?", 2),
        )
    ]
    if takes_several(loaded):
        conversations.append(chat(loaded)[-2])
    prompts = [encode(loaded.processor, one, answer_next=True) for one in conversations]
    with head_outputs(loaded) as batched:
        answers = answer_prompts(
            loaded.model, loaded.processor, loaded.capabilities, prompts, max_new_tokens=3
        )
    rows = torch.cat(batched)
    for prompt, answer in zip(prompts, answers, strict=True):
        with head_outputs(loaded) as alone:
            ids = loaded.model.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
        for logits in alone:
            nearest = (rows - logits).abs().amax(-1).argmin()
            torch.testing.assert_close(rows[nearest], logits[0], atol=1e-4, rtol=1e-4)
        new = ids[0, len(prompt) :]
        assert answer == loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_pictures_of_large_gemma_4_models_attend_in_both_directions(tmp_path: Path) -> None:
    loaded = _load(
        gemma4(tmp_path / "model", num_kv_shared_layers=0, use_bidirectional_attention="vision")
    )
    assert loaded.capabilities.reuses_prefixes
    test_logits_in_a_chat_are_those_of_plain_transformers(loaded)


def test_a_question_about_a_picture_is_answered(loaded: LoadedModel) -> None:
    import torch

    prompt = encode(loaded.processor, Conversation.ask(QUESTION, [picture(0)]), answer_next=True)
    generated = loaded.model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] - len(prompt) in range(1, 5)
    assert torch.equal(generated[:, : len(prompt)], prompt.inputs["input_ids"])


def test_several_turns_with_several_pictures_are_answered(loaded: LoadedModel) -> None:
    prompt = encode(loaded.processor, DIALOGUE, answer_next=True)
    assert len(prompt.image_spans) == len(prompt.pictures) == 3
    starts = [start for start, _ in prompt.image_spans]
    assert starts == sorted(starts)
    generated = loaded.model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > len(prompt)


def test_a_question_without_picture_is_answered_or_refused(loaded: LoadedModel) -> None:
    import torch

    if loaded.model.config.model_type in ("blip-2", "kosmos-2"):
        with pytest.raises(ModelError, match="needs a picture"):
            first_logits(loaded, Conversation.ask(QUESTION))
    else:
        assert torch.isfinite(first_logits(loaded, Conversation.ask(QUESTION))).all()


def test_each_picture_makes_a_difference(loaded: LoadedModel) -> None:
    import torch

    def asked(*seeds: int) -> Any:
        pictures = [picture(seed) for seed in seeds]
        return first_logits(loaded, Conversation.ask(QUESTION, pictures))

    both = asked(1, 2)
    assert not torch.allclose(both, asked(3, 2), atol=1e-5)
    assert not torch.allclose(both, asked(1, 3), atol=1e-5)


def test_the_answer_mask_covers_the_answer_and_its_end_token(loaded: LoadedModel) -> None:
    prompt = encode(loaded.processor, Conversation(DIALOGUE.messages[:2]), answer_next=False)
    ids = prompt.inputs["input_ids"][0][prompt.answer_mask].tolist()
    assert loaded.processor.tokenizer.decode(ids[:-1]).strip() == "A red circle."
    assert ids[-1] in end_token_ids(loaded.model, loaded.processor)


def test_a_finished_conversation_continues_the_prompt(loaded: LoadedModel) -> None:
    asked = encode(loaded.processor, Conversation(DIALOGUE.messages[:1]), answer_next=True)
    answered = encode(loaded.processor, Conversation(DIALOGUE.messages[:2]), answer_next=False)
    ids = answered.inputs["input_ids"][0].tolist()
    assert ids[: len(asked)] == asked.inputs["input_ids"][0].tolist()
    assert answered.answer_mask.tolist().index(True) == len(asked)


def test_the_prompt_for_warming_begins_the_prompt_of_any_question(loaded: LoadedModel) -> None:
    opened = Conversation((*DIALOGUE.messages[:2], Message.user("", [picture(1)])))
    partial = encode(loaded.processor, opened, answer_next=True, question_incomplete=True)
    asked = Conversation((*DIALOGUE.messages[:2], Message.user("Why so?", [picture(1)])))
    whole = encode(loaded.processor, asked, answer_next=True).inputs["input_ids"][0].tolist()
    assert whole[: len(partial)] == partial.inputs["input_ids"][0].tolist()
    assert len(partial.pictures) == len(partial.image_spans) > 0


def test_no_text_is_tokenised_as_a_control_token(loaded: LoadedModel) -> None:
    tokenizer = loaded.processor.tokenizer
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    hostile = " and ".join(sorted(special))

    def controls(text: str) -> list[int]:
        asked = Conversation.ask(text, [picture(0)]).then(
            Message.assistant(text), Message.user(text)
        )
        ids = encode(loaded.processor, asked, answer_next=True).inputs["input_ids"][0].tolist()
        known = set(tokenizer.convert_tokens_to_ids(sorted(special)))
        return [token for token in ids if token in known]

    assert controls(hostile) == controls("harmless")


def _plain_inputs(loaded: LoadedModel, name: str) -> Any:
    """Return the inputs that the architecture's own processor makes, without this package."""
    processor = loaded.processor
    images = [picture(0).image, picture(1).image]
    if name not in WITHOUT_TEMPLATE:
        parts = [{"type": "image", "image": image} for image in images]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}
        return processor.apply_chat_template(
            [message],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    if name.startswith("paligemma"):
        return processor(text=[f"<image><image>{QUESTION}"], images=[images], return_tensors="pt")
    return processor(text=f"Question: {QUESTION} Answer:", images=images[0], return_tensors="pt")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_inputs_equal_those_of_the_models_own_processor(
    name: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    import torch

    loaded = _load(tiny_checkpoint(name))
    pictures = [picture(0)] if name in ("blip-2", "kosmos-2") else [picture(0), picture(1)]
    ours = encode(loaded.processor, Conversation.ask(QUESTION, pictures), answer_next=True).inputs
    plain = _plain_inputs(loaded, name)
    plain.pop("labels", None)
    assert ours.keys() == plain.keys()
    for key, value in plain.items():
        assert torch.equal(ours[key], torch.as_tensor(value)), key


@pytest.mark.parametrize("name", sorted(WITHOUT_TEMPLATE))
def test_our_template_is_used_only_if_a_model_has_none(
    name: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    directory = tiny_checkpoint(name)
    kind = _load(directory).model.config.model_type
    assert chat_template(_load(directory).processor) == FALLBACK_TEMPLATES[kind]
    own = tmp_path / "own"
    shutil.copytree(directory, own)
    template = FALLBACK_TEMPLATES[kind].replace("Question", "Query") + "{# own #}"
    (own / "chat_template.jinja").write_text(template)
    assert chat_template(load_model(str(own)).processor) == template
