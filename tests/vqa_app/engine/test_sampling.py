"""Sampling as in `generate`, and text in whole characters up to stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import make_tokenizer
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.detokenizer import Detokenizer
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.engine.sampling import Sampler, default_options


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[[str], Path]) -> Any:
    return load_model(str(tiny_checkpoint("llava-siglip"))).model


def pieces(tokenizer: Any, text: str, stops: Sequence[str] = ()) -> tuple[list[str], Detokenizer]:
    stream = Detokenizer(tokenizer, stops)
    given = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        given.append(stream.push(token))
        if stream.stopped:
            break
    return [*given, stream.finish()], stream


REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TEXT = "Größe: 5 µm — 日本語 🙂👩‍👩‍👧 and stars"


def test_all_characters_come_and_each_of_them_whole(tokenizer: Any) -> None:
    given, stream = pieces(tokenizer, TEXT)
    assert "".join(given) == stream.text == TEXT
    assert not any(REPLACEMENT in piece for piece in given)
    assert sum(bool(piece) for piece in given) > 10, "as soon as they are complete, not at the end"


def test_an_incomplete_character_at_the_end_is_left_out(tokenizer: Any) -> None:
    stream = Detokenizer(tokenizer)
    given = [
        stream.push(token)
        for token in tokenizer("ab 日", add_special_tokens=False)["input_ids"][:-1]
    ]
    assert "".join([*given, stream.finish()]).strip() == "ab"


def test_special_tokens_are_not_shown(tokenizer: Any) -> None:
    stream = Detokenizer(tokenizer)
    ids = [tokenizer.convert_tokens_to_ids("<|im_start|>"), *tokenizer("cat")["input_ids"]]
    assert "".join(stream.push(token) for token in ids) + stream.finish() == "cat"


def test_invalid_bytes_of_a_byte_fallback_tokenizer_are_left_out() -> None:
    """They change how earlier tokens are decoded, which `DecodeStream` reports as an error."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁a": 256, "é": 257}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    stream = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    ids = [ord("x"), 0xE6, 0x97, 256, 257, *"日".encode(), 256]
    text = "".join(stream.push(token) for token in ids) + stream.finish()
    assert text.replace(REPLACEMENT, "") == "x aé日 a"


@pytest.mark.parametrize("stops", [("mat",), ("the mat", "zzz"), ("mat.", "ma")])
def test_text_ends_before_a_stop_string_and_never_shows_part_of_it(
    tokenizer: Any, stops: tuple[str, ...]
) -> None:
    text = "The cat is on the mat. It sleeps."
    given, stream = pieces(tokenizer, text, stops)
    end = min(text.find(stop) for stop in stops if stop in text)
    assert stream.stopped
    assert "".join(given) == stream.text == text[:end]


def test_the_beginning_of_a_stop_string_comes_at_the_end(tokenizer: Any) -> None:
    given, stream = pieces(tokenizer, "on the ma", ("mat",))
    assert not stream.stopped
    assert "".join(given) == "on the ma"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.9, "top_k": 0, "repetition_penalty": 1.8},
    ],
    ids=str,
)
def test_samples_come_from_the_distribution_of_generate(
    model: Any, settings: dict[str, Any]
) -> None:
    ids = torch.tensor([[7, 8, 9, 40, 41]])
    output = model.generate(
        input_ids=ids,
        do_sample=True,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    expected = output.scores[0][0].softmax(-1)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1]
        for seed in range(20):
            draw = torch.multinomial(expected, 1, generator=torch.Generator().manual_seed(seed))
            sampler = Sampler(model, GenerationOptions(seed=seed, **settings), ids)
            assert sampler.sample(logits)[0] == int(draw)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 1e-320},
        {"temperature": 1e-5},
        {"temperature": 1},
        {"temperature": 2},
        {"temperature": 5},
        {"temperature": 10},
        {"temperature": np.float16(2)},
        {"temperature": 1, "top_p": 1e-6},
        {"temperature": 1, "top_p": 1},
        {"temperature": 1, "top_k": 0},
        {"temperature": 1, "top_k": 1 << 20},
        {"temperature": 1, "top_k": 2.0},
        {"temperature": 1, "repetition_penalty": 2},
        {"temperature": 0, "repetition_penalty": 10},
        {"temperature": 1, "repetition_penalty": 0.01},
        {"temperature": 1, "seed": -(1 << 63)},
        {"temperature": 1, "seed": (1 << 63) - 1},
    ],
    ids=str,
)
def test_options_at_their_limits_and_of_both_number_types_give_a_token(
    model: Any, options: dict[str, Any]
) -> None:
    ids = torch.tensor([[7, 8, 9]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1]
        token, _ = Sampler(model, GenerationOptions(**options), ids).sample(logits)
    assert 0 <= token < len(logits)
    if options["temperature"] <= 1e-5 and "repetition_penalty" not in options:
        assert token == int(logits.argmax())


def test_a_generation_config_may_have_whole_numbers(model: Any) -> None:
    """As in the JSON file of a model."""
    ids = torch.tensor([[7, 8, 9]])
    config = model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty = True, 2, 3
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, -1]
            Sampler(model, GenerationOptions(), ids).sample(logits)
        assert default_options(model).temperature == 2
        config.temperature = 0
        assert default_options(model).temperature == 0
    finally:
        config.do_sample = config.temperature = config.repetition_penalty = None


def test_greedy_decoding_honours_the_repetition_penalty(model: Any) -> None:
    ids = torch.tensor([[7, 8, 9]])
    expected = model.generate(
        input_ids=ids, do_sample=False, max_new_tokens=8, repetition_penalty=1.5
    )[0, 3:].tolist()
    options = GenerationOptions(temperature=0.0, repetition_penalty=1.5)
    sampler = Sampler(model, options, ids)
    written: list[int] = []
    with torch.inference_mode():
        for _ in expected:
            whole = torch.cat((ids, torch.tensor([written], dtype=torch.long)), 1)
            written.append(sampler.sample(model(input_ids=whole).logits[0, -1])[0])
    assert written == expected


def test_the_log_probability_is_the_models_own(model: Any) -> None:
    ids = torch.tensor([[7, 8, 9]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1]
        sampler = Sampler(model, GenerationOptions(temperature=0.2, seed=1), ids)
        token, log_probability = sampler.sample(logits)
    assert log_probability == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-5)


def test_defaults_are_those_of_the_generation_config(model: Any) -> None:
    assert default_options(model).temperature == 0.0
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.6
    try:
        assert default_options(model).temperature == 0.6
    finally:
        model.generation_config.do_sample, model.generation_config.temperature = None, None
