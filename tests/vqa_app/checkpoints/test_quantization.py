"""Load in 4 and 8 bits with bitsandbytes, as for QLoRA; here on its CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import tiny_llava
from tests.vqa_app.checkpoints.test_loader import QUESTION, logits, make_lora
from vqa_app.checkpoints.loader import load_config, load_model
from vqa_app.checkpoints.source import Source
from vqa_app.checkpoints.validation import skeleton
from vqa_app.errors import ModelError
from vqa_app.models.anatomy import anatomy
from vqa_app.prompts.prompt import encode

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Make a model wide enough for bitsandbytes, which needs blocks of 64 weights."""
    directory = tmp_path_factory.mktemp("wide") / "llava"
    return tiny_llava(directory, hidden_size=64, intermediate_size=128, head_dim=32)


def quantised(model: object) -> list[str]:
    return [
        name
        for name, module in model.named_modules()  # type: ignore[attr-defined]
        if type(module).__module__.startswith("bitsandbytes")
    ]


@pytest.mark.parametrize(("bits", "similarity"), [("4bit", 0.75), ("8bit", 0.98)])
def test_a_quantised_model_gives_similar_logits(
    wide: Path, bits: str, similarity: float, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    loaded = load_model(str(wide), quantize=bits, trainable=True)
    assert capfd.readouterr() == ("", "")
    assert loaded.quantization == bits
    inputs = encode(loaded.processor, QUESTION, answer_next=True).inputs
    assert loaded.model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]
    whole = logits(load_model(str(wide)))
    near = torch.nn.functional.cosine_similarity(logits(loaded), whole, dim=-1)
    assert near.mean() > similarity  # random weights amplify rounding errors


@pytest.mark.parametrize(
    "name", ["llava-siglip", "idefics3", "qwen2-vl", "gemma3", "internvl", "mllama", "blip-2"]
)
def test_encoder_projector_and_head_are_never_quantised(
    name: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    loaded = load_model(str(tiny_checkpoint(name)), quantize="4bit", trainable=True)
    parts = anatomy(loaded.model)
    names = quantised(loaded.model)
    assert names
    assert all(layer.startswith(f"{parts.language_model}.") for layer in names)
    assert not any(layer == parts.head for layer in names)


def test_an_adapter_is_not_merged_into_a_quantised_base(wide: Path, tmp_path: Path) -> None:
    import torch

    adapter = make_lora(wide, tmp_path / "lora")
    base = load_model(str(wide), quantize="4bit", trainable=True)
    loaded = load_model(str(wide), adapter=str(adapter), quantize="4bit", trainable=True)
    assert type(loaded.model) is type(base.model)
    assert quantised(loaded.model)
    whole = logits(load_model(str(wide), adapter=str(adapter)))
    near = torch.nn.functional.cosine_similarity(logits(loaded), whole, dim=-1)
    assert near.mean() > 0.75
    assert not torch.allclose(logits(loaded), logits(base), atol=1e-2)


def test_a_model_without_a_head_module_can_be_quantised(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty name in the list of skipped modules would match every layer."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with monkeypatch.context() as patch:
        patch.setattr(
            LlavaForConditionalGeneration, "get_output_embeddings", lambda _: torch.nn.Identity()
        )
        config = load_config(Source("wide", wide))
        parts = anatomy(skeleton("wide", config))
    assert parts.head == ""
    assert parts.never_quantized == [parts.encoder, *parts.projector]


def test_a_model_without_quantised_layers_is_rejected(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa_app.models.anatomy.Anatomy.never_quantized", ["model", "lm_head"])
    with pytest.raises(ModelError, match=r"No layer of .* was quantised"):
        load_model(str(wide), quantize="4bit", trainable=True)


def test_the_error_without_bitsandbytes_names_the_package(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        load_model(str(tiny_llava_dir), quantize="4bit", trainable=True)
