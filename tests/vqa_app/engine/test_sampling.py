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
from vqa_app.engine.detokenizer import Detokenizer, TokenBytes
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.engine.sampling import OccurrencePenalty, Sampler, default_options
from vqa_app.errors import UsageError


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


def test_penalties_are_those_of_openai(model: Any) -> None:
    """Logits less count * frequency and (count > 0) * presence, over the answer's tokens alone."""
    penalise = OccurrencePenalty(prompt_length=2, presence=0.5, frequency=0.25)
    ids = torch.tensor([[4, 5, 3, 3, 1]])
    expected = [0.0, -0.75, 0.0, -1.0, 0.0, 0.0]
    assert penalise(ids, torch.zeros(1, 6))[0].tolist() == expected


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_penalties_apply_before_the_temperature_and_not_to_the_prompt(
    model: Any, name: str
) -> None:
    ids = torch.tensor([[7, 8, 9]])
    logits = torch.zeros(model.config.get_text_config().vocab_size)
    logits[7], logits[40], logits[41] = 0.0, 3.0, 2.5
    sampler = Sampler(model, GenerationOptions(temperature=0.0, **{name: 2.0}), ids)
    with torch.inference_mode():
        first, second, third = (sampler.sample(logits) for _ in range(3))
    assert [first[0], second[0]] == [40, 41], "40 is at 1.0 after it occurred once"
    assert third[0] == 40
    assert second[1] == pytest.approx(float(logits.log_softmax(-1)[41])), "unpenalised"
    cold = GenerationOptions(temperature=0.01, seed=1, **{name: 0.4})
    sampler = Sampler(model, cold, ids)
    with torch.inference_mode():
        assert [sampler.sample(logits)[0] for _ in range(2)] == [40, 40]


@pytest.mark.parametrize("value", [2.1, -2.1, float("nan"), "1", True])
def test_penalties_out_of_range_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="presence_penalty"):
        GenerationOptions(presence_penalty=value)


@pytest.mark.parametrize("value", [-1, 21, 1.5, "3"])
def test_a_number_of_log_probabilities_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="top_log_probabilities"):
        GenerationOptions(top_log_probabilities=value)


def test_the_bytes_of_tokens_joined_are_the_text(tokenizer: Any) -> None:
    to_bytes = TokenBytes(tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert b"".join(map(to_bytes, ids)).decode().strip() == TEXT
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert to_bytes(end) == b"<|im_end|>"


def test_the_bytes_of_a_byte_fallback_tokenizer_are_those_of_the_text() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁cat": 256, "é": 257}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    to_bytes = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=backend))
    ids = [256, 257, *"日".encode()]
    assert b"".join(map(to_bytes, ids)).decode() == " caté日"
