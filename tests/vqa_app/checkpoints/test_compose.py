"""Composed models, from several encoders and language models, also in plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.chat_templates import FAMILIES
from tests.tiny import (
    edit_json,
    image_processor,
    llm_config,
    make_tokenizer,
    picture,
    save,
    seeded,
    vision_config,
)
from vqa_app.checkpoints import source
from vqa_app.checkpoints.compose import compose
from vqa_app.checkpoints.loader import load_model
from vqa_app.errors import ModelError, UsageError
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import encode

LLMS = {
    "llama": "llama-3",
    "qwen2": "qwen-2",
    "qwen3": "qwen-3",
    "gemma": "gemma",
    "mistral": "mistral",
    "phi3": "phi-3",
}
"""Architectures and their chat templates."""

DIALOGUE = Conversation.ask("What is this?", [picture(0)], system="Be brief.").then(
    Message.assistant("A red circle."), Message.user("And that?", [picture(1), picture(2)])
)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Callable[[str], Path]:
    """Return a function that makes the checkpoint of an encoder or language model."""
    root = tmp_path_factory.mktemp("parts")
    return lru_cache(lambda name: _make(name, root / name))


def _make(name: str, directory: Path) -> Path:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        CLIPVisionModel,
        SiglipModel,
        SiglipVisionModel,
    )

    if name in LLMS:
        family = FAMILIES[LLMS[name]]
        words = make_tokenizer(
            family.special,
            eos=family.eos,
            bos=family.bos,
            adds_bos=family.adds_bos,
            metaspace=family.metaspace,
            template=family.template,
        )
        values = llm_config(name, len(words), eos_token_id=words.eos_token_id)
        if name == "gemma":
            values |= {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}
        config = AutoConfig.for_model(**values)
        model = seeded(AutoModelForCausalLM.from_config, config)
        model.generation_config.eos_token_id = [words.eos_token_id]
        return save(model, words, directory)
    kind, _, whole = name.partition("-")
    config = AutoConfig.for_model(**vision_config(kind))
    if whole:
        text = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 64,
            "projection_size": 32,
        }
        model = seeded(
            SiglipModel,
            AutoConfig.for_model("siglip", vision_config=config.to_dict(), text_config=text),
        )
    else:
        model = seeded({"siglip": SiglipVisionModel, "clip": CLIPVisionModel}[kind], config)
    return save(model, image_processor(kind), directory)


@pytest.mark.parametrize("llm", LLMS)
def test_plain_transformers_runs_a_llava_with_any_language_model(
    llm: str, parts: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    out = compose(str(parts("siglip")), str(parts(llm)), tmp_path / "new")
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(out)
    parts_of_message = [
        {"type": "image", "image": picture(0).image},
        {"type": "text", "text": "What is this?"},
    ]
    messages = [{"role": "user", "content": parts_of_message}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    with torch.inference_mode():
        plain = model(**inputs).logits
    loaded = load_model(str(out))
    prompt = encode(
        loaded.processor, Conversation.ask("What is this?", [picture(0)]), answer_next=True
    )
    assert torch.equal(prompt.inputs["input_ids"], inputs["input_ids"]) or llm == "qwen3"
    if llm != "qwen3":  # our prompt switches reasoning off
        assert torch.equal(loaded.model(**prompt.inputs).logits, plain)
    several = encode(loaded.processor, DIALOGUE, answer_next=True)
    assert loaded.model.generate(**several.inputs, max_new_tokens=3).shape[1] > len(several)


@pytest.mark.parametrize("llm", LLMS)
def test_without_pictures_the_language_model_is_unchanged(
    llm: str, parts: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    out = compose(str(parts("siglip")), str(parts(llm)), tmp_path / "new")
    before = AutoModelForCausalLM.from_pretrained(parts(llm))
    loaded = load_model(str(out))
    ids = encode(loaded.processor, Conversation.ask("What is a cat?"), answer_next=True).inputs
    with torch.inference_mode():
        expected = before(ids["input_ids"]).logits
        logits = loaded.model(**ids).logits
    assert torch.allclose(logits[..., : expected.shape[-1]], expected, atol=1e-4)
    assert loaded.model.generation_config.eos_token_id == before.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("encoder", "strategy", "layer"),
    [("siglip", "full", -1), ("siglip-whole", "full", -1), ("clip", "default", -2)],
)
def test_the_patches_of_any_encoder_are_used(
    encoder: str, strategy: str, layer: int, parts: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    out = compose(str(parts(encoder)), str(parts("llama")), tmp_path / "new")
    loaded = load_model(str(out))
    config = loaded.model.config
    assert (config.vision_feature_select_strategy, config.vision_feature_layer) == (strategy, layer)
    prompt = encode(loaded.processor, DIALOGUE, answer_next=True)
    assert [end - start for start, end in prompt.image_spans] == [16, 16, 16]
    assert torch.isfinite(loaded.model(**prompt.inputs).logits).all()
    wide = picture(3, (96, 24))
    pixels = encode(loaded.processor, Conversation.ask("?", [wide]), answer_next=True).inputs
    assert pixels["pixel_values"].shape == (1, 3, 32, 32)


def test_a_wide_picture_is_not_cropped_with_clip(
    parts: Callable[[str], Path], tmp_path: Path
) -> None:
    from PIL import Image

    from vqa_app.pictures.picture import open_picture

    out = compose(str(parts("clip")), str(parts("llama")), tmp_path / "new")
    processor = load_model(str(out)).processor
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste("white", (0, 0, 8, 32))
    pixels = encode(
        processor, Conversation.ask("?", [open_picture(wide)]), answer_next=True
    ).inputs["pixel_values"]
    assert pixels[0, :, 14:18, 0].min() > 1.0, "the white edge was cut off"


def test_the_encoders_weights_are_kept(parts: Callable[[str], Path], tmp_path: Path) -> None:
    import torch
    from transformers import SiglipVisionModel

    out = compose(str(parts("siglip-whole")), str(parts("llama")), tmp_path / "new")
    tower = load_model(str(out)).model.model.vision_tower
    before = SiglipVisionModel.from_pretrained(parts("siglip-whole"))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = before(pixels).last_hidden_state
    assert torch.allclose(tower(pixels).last_hidden_state, expected, atol=1e-5)


def test_the_projector_depends_on_the_seed(parts: Callable[[str], Path], tmp_path: Path) -> None:
    import torch

    def projector(name: str, seed: int) -> Any:
        out = compose(str(parts("siglip")), str(parts("llama")), tmp_path / name, seed=seed)
        return load_model(str(out)).model.model.multi_modal_projector.linear_1.weight

    first, again, other = projector("a", 1), projector("b", 1), projector("c", 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_existing_folder_is_rejected(parts: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        compose(str(parts("siglip")), str(parts("llama")), tmp_path)


def test_parts_of_the_wrong_type_are_rejected_by_name(
    parts: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"Expected a SigLIP or CLIP model, but .*llama"):
        compose(str(parts("llama")), str(parts("llama")), tmp_path / "new")
    with pytest.raises(ModelError, match=r"Expected a causal language model, but .*siglip"):
        compose(str(parts("siglip")), str(parts("siglip")), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_language_model_without_chat_template_is_rejected(
    parts: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(parts("llama"), bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        compose(str(parts("siglip")), str(bare), tmp_path / "new")


def test_code_from_a_repository_is_never_run(parts: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    foreign = Path(shutil.copytree(parts("llama"), tmp_path / "foreign"))
    (foreign / "evil.py").write_text("raise SystemExit('run')")
    edit_json(foreign / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(ModelError, match=r"Could not load .*foreign"):
        compose(str(parts("siglip")), str(foreign), tmp_path / "new")


def test_siglip_2_with_variable_resolution_is_rejected(tmp_path: Path) -> None:
    from transformers import Siglip2VisionConfig

    Siglip2VisionConfig().save_pretrained(tmp_path / "naflex")
    with pytest.raises(ModelError, match="NaFlex"):
        compose(str(tmp_path / "naflex"), str(tmp_path / "naflex"), tmp_path / "new")


def test_a_gguf_file_needs_its_package(
    parts: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install"):
        compose(str(parts("siglip")), str(file), tmp_path / "new")


def test_a_damaged_gguf_file_is_reported_by_name(
    parts: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"no such format" * 100)
    monkeypatch.setattr(source, "find_spec", lambda name: name)
    with pytest.raises(ModelError, match=r"Could not load .*model\.gguf"):
        compose(str(parts("siglip")), str(file), tmp_path / "new")


def test_blocks_of_a_gguf_file_keep_their_codes_in_4_bits(
    parts: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    file = tmp_path / "model.gguf"
    stored = _write_gguf(parts("llama"), file)
    out = compose(str(parts("siglip")), str(file), tmp_path / "new")
    layers = load_model(str(out), quantize="4bit").model.model.language_model.layers
    for number, layer in enumerate(layers):
        codes = torch.cat([*layer.mlp.up_proj.slices(torch.float32)], 1).t()
        expected = torch.from_numpy(stored[f"blk.{number}.ffn_up.weight"])
        assert (codes - expected).norm() / expected.norm() < 0.01  # of new levels: 0.08


def _write_gguf(llm: Path, file: Path) -> dict[str, Any]:
    """Write a Llama as llama.cpp's converter does, in Q4_0; return what its tensors stand for."""
    import json

    import gguf
    from safetensors.numpy import load_file

    config = json.loads((llm / "config.json").read_text(encoding="utf-8"))
    words = json.loads((llm / "tokenizer.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = {one["content"]: one["id"] for one in words["added_tokens"]} | words["model"]["vocab"]
    special = {one["content"] for one in words["added_tokens"]}
    names = sorted(tokens, key=lambda name: tokens[name])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(names)
    writer.add_token_types([3 if name in special else 1 for name in names])
    merges = words["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_chat_template((llm / "chat_template.jinja").read_text(encoding="utf-8"))
    parts_of_layers = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    stored: dict[str, Any] = {}
    for name, tensor in load_file(llm / "model.safetensors").items():
        name = name.removeprefix("model.")
        name = name.replace("embed_tokens", "token_embd").replace("lm_head", "output")
        name = "output_norm.weight" if name == "norm.weight" else name
        for theirs, ours in parts_of_layers.items():
            name = name.replace(theirs, ours)
        name = name.replace("layers.", "blk.")
        tensor = tensor.astype("float32")
        if tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q4_0
            blocks = gguf.quants.quantize(tensor, kind)
            stored[name] = gguf.quants.dequantize(blocks, kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored
