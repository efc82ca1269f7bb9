"""Attention maps: the model's own attention, over the whole of the right picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tests.architectures import ARCHITECTURES
from tests.benchmarks.attention_peak import peaks_on_objects
from tests.tiny import picture
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.attention_map import PARTS, _relative_attention
from vqa_app.engine.cache_budget import CacheBudget
from vqa_app.engine.heatmap import whole_answer
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.runtime import Runtime
from vqa_app.engine.scheduler import run_to_end
from vqa_app.errors import ModelError, UsageError
from vqa_app.models.architecture import Capabilities
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import encode

WITH_MAPS = ["llava-siglip", "llava-clip", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma3"]
"""Architectures whose pictures are one grid of tokens."""
ANSWER = "red circle 日"
TWO_PICTURES = Conversation.ask("What is it?", [picture(0)]).then(
    Message.assistant("A cat."), Message.user("And here?", [picture(1, (60, 30))])
)


@pytest.mark.parametrize("name", WITH_MAPS)
def test_the_weights_are_those_of_the_whole_forward_pass(
    name: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    loaded = load_model(str(tiny_checkpoint(name)))
    model = loaded.model
    prompt = encode(loaded.processor, TWO_PICTURES, answer_next=True)
    before = model.get_decoder().config._attn_implementation
    with torch.inference_mode():
        runtime = Runtime(
            model,
            loaded.processor,
            loaded.capabilities,
            budget=CacheBudget.fixed(1 << 20),
        )
        start = prompt.image_spans[-1][1]
        logits, weights = run_to_end(runtime.attention_weights(prompt, start))
        assert model.get_decoder().config._attn_implementation == before
        model.set_attn_implementation("eager")
        whole = model(**prompt.inputs, output_attentions=True)
    for got, expected in zip(weights, whole.attentions, strict=True):
        torch.testing.assert_close(got, expected[:, :, start:], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(logits, whole.logits[0, start:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", WITH_MAPS)
def test_each_token_has_a_map_on_each_picture(
    name: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    engine = LocalEngine(load_model(str(tiny_checkpoint(name))))
    assert engine.info.attention_maps
    result = engine.attention_map(TWO_PICTURES, ANSWER)
    assert "".join(result.tokens) == ANSWER
    assert len(result.maps) == 2
    for grid in result.maps:
        assert grid.ndim == 3
        assert len(grid) == len(result.tokens)
        assert (grid >= 0).all()
        assert np.allclose(grid.sum((1, 2)), 1.0, atol=1e-4)
    engine.close()


def test_parts_cut_off_by_a_centre_crop_have_no_attention(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    engine = LocalEngine(load_model(str(tiny_checkpoint("llava-clip"))))
    (square,) = engine.attention_map(Conversation.ask("Hm?", [picture(1, (40, 40))]), "red").maps
    (wide,) = engine.attention_map(Conversation.ask("Hm?", [picture(1, (80, 40))]), "red").maps
    assert square.shape[1:] == (4, 4)
    assert wide.shape[1:] == (4, 8)
    assert not wide[:, :, [0, 1, 6, 7]].any()
    engine.close()


def test_padding_to_a_square_is_no_part_of_the_map(tiny_llava_dir: Path) -> None:
    loaded = load_model(str(tiny_llava_dir))
    side = loaded.model.config.vision_config.image_size
    processor = loaded.processor
    processor.image_processor = LlavaImageProcessorPil(
        do_pad=True, do_center_crop=False, size={"height": side, "width": side}
    )
    capabilities = Capabilities.of(loaded.model, processor)
    assert capabilities.maps_attention
    engine = LocalEngine(replace(loaded, capabilities=capabilities))
    (square,) = engine.attention_map(Conversation.ask("Hm?", [picture(1, (40, 40))]), "red").maps
    (wide,) = engine.attention_map(Conversation.ask("Hm?", [picture(1, (80, 40))]), "red").maps
    (narrow,) = engine.attention_map(Conversation.ask("Hm?", [picture(1, (4, 80))]), "red").maps
    _, rows, columns = square.shape
    assert rows == columns
    assert wide.shape[1:] == (PARTS * rows // 2, PARTS * columns)
    assert narrow.shape[1:] == (PARTS * rows, 1)
    for grid in (wide, narrow):
        assert np.allclose(grid.sum((1, 2)), 1.0, atol=1e-4)
    engine.close()


def test_maps_do_not_depend_on_caches(tiny_llava_dir: Path) -> None:
    loaded = load_model(str(tiny_llava_dir))
    fast, slow = LocalEngine(loaded), LocalEngine(loaded, cache_bytes=0)
    list(fast.stream(TWO_PICTURES))
    for a, b in zip(
        fast.attention_map(TWO_PICTURES, ANSWER).maps,
        slow.attention_map(TWO_PICTURES, ANSWER).maps,
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    fast.close()
    slow.close()


def test_packed_weights_pass_gradients(tiny_llava_dir: Path) -> None:
    maps = []
    for fast in (True, False):
        loaded = load_model(str(tiny_llava_dir), dtype="bfloat16")
        engine = LocalEngine(loaded, fast_decoding=fast)
        maps += engine.attention_map(Conversation.ask("Hm?", [picture(0)]), ANSWER).maps
        engine.close()
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.9


def test_the_builtin_models_attention_is_on_the_object_in_question(one_thread: None) -> None:
    engine = LocalEngine(load_model())
    hits, chance = peaks_on_objects(engine, 40)
    engine.close()
    assert hits > 2.5 * chance, f"{hits:.2f}, {chance:.2f}"


def test_a_conversation_without_pictures_has_no_map(tiny_llava_dir: Path) -> None:
    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    with pytest.raises(UsageError, match="no picture"):
        engine.attention_map(Conversation.ask("Hm?"), "red")
    engine.close()


def test_an_empty_answer_has_empty_maps(tiny_llava_dir: Path) -> None:
    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    found = engine.attention_map(TWO_PICTURES, "")
    assert found.tokens == ()
    assert [grid.shape for grid in found.maps] == [(0, 4, 4)] * 2
    assert not whole_answer(found, 0).any()
    engine.close()


def test_attention_sinks_are_removed() -> None:
    baseline = torch.full((64,), 0.01)
    baseline[5] = 0.5  # a sink
    weighted = baseline.repeat(2, 1)
    weighted[0, 20] = 0.04  # more than usual for the first token
    relative = _relative_attention(weighted, baseline)
    assert relative[0].argmax() == 20
    assert relative[0, 5] == relative[1, 5] == 0
    assert torch.allclose(relative.sum(-1), torch.ones(2))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - set(WITH_MAPS)))
def test_models_without_attention_maps_raise(
    name: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    engine = LocalEngine(load_model(str(tiny_checkpoint(name))))
    assert not engine.info.attention_maps
    with pytest.raises(ModelError, match="does not support attention maps"):
        engine.attention_map(Conversation.ask("Hm?", [picture(0)]), "red")
    engine.close()
