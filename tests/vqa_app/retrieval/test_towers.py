"""Towers of each architecture on tiny checkpoints, and the built-in ones on drawings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vqa_app.builtin
from finetune.pretrain.world.rooms.shapes.room import SHAPES
from finetune.pretrain.world.wording.phrasing import with_article
from tests import tiny
from vqa_app.errors import ModelError, UsageError
from vqa_app.retrieval.towers import NEUTRAL_TEXTS, Towers, load_towers

TEXTS = ["A red circle .", "What is in the picture ?", "no"]
IMAGES = [tiny.picture(seed, (40 + seed, 30)).image for seed in range(5)]


def make_checkpoint(kind: str, folder: Path) -> Path:
    """Save a tiny model with two towers."""
    from transformers import (
        AlignConfig,
        AlignModel,
        CLIPConfig,
        CLIPModel,
        Siglip2Config,
        Siglip2Model,
        SiglipConfig,
        SiglipModel,
    )  # fmt: skip
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    # Tokenizers of SigLIP 2 are Gemma's, which transformers builds from pieces with <unk>.
    special = ("<pad>", "<eos>", "<bos>", "<unk>")
    tokenizer = tiny.make_tokenizer(
        special, eos="<eos>", bos="<bos>", metaspace=kind == "siglip2", template=None
    )
    tokenizer.model_max_length = 24
    small = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    text = {
        **small, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": 2,
        "bos_token_id": 1, "pad_token_id": 0, "projection_size": 32,
    }  # fmt: skip
    vision = {**small, "image_size": 32, "patch_size": 8}
    model: Any
    match kind:
        case "siglip":
            config = SiglipConfig(text_config=text, vision_config=vision)
            model, images = tiny.seeded(SiglipModel, config), tiny.image_processor("siglip")
        case "siglip2":
            config = Siglip2Config(text_config=text, vision_config=vision | {"num_patches": 16})
            model = tiny.seeded(Siglip2Model, config)
            images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
        case "clip":
            config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
            model, images = tiny.seeded(CLIPModel, config), tiny.image_processor("clip")
        case _:
            eye = {
                "image_size": 32, "hidden_dim": 32, "kernel_sizes": [3], "in_channels": [32],
                "out_channels": [32], "strides": [2], "num_block_repeats": [1],
                "expand_ratios": [1], "depthwise_padding": [], "width_coefficient": 1.0,
                "depth_coefficient": 1.0,
            }  # fmt: skip
            config = AlignConfig(text_config=text, vision_config=eye, projection_dim=32)
            model = tiny.seeded(AlignModel, config)
            side = {"height": 32, "width": 32}
            images = EfficientNetImageProcessorPil(size=side, do_center_crop=False)
    for part in (tokenizer, images, model.eval()):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["siglip", "siglip2", "clip", "align"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def towers(checkpoint: Path) -> Towers:
    return load_towers(str(checkpoint), device="cpu")


@torch.inference_mode()
def logits_of_transformers(folder: Path, texts: list[str]) -> torch.Tensor:
    """Return what the plain model says of each picture and text, [pictures, texts]."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    siglip = model.config.model_type.startswith("siglip")
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", padding_side="right", max_length=24, return_tensors="pt"
    )
    inputs = {"input_ids": tokens["input_ids"]}
    if not siglip:
        inputs["attention_mask"] = tokens["attention_mask"]
    pictures = AutoImageProcessor.from_pretrained(folder, backend="pil")(
        IMAGES, return_tensors="pt"
    )
    logits: torch.Tensor = model(**inputs, **pictures).logits_per_image
    return logits


def test_matches_are_those_of_plain_transformers(checkpoint: Path, towers: Towers) -> None:
    pictures, texts = towers.pictures(IMAGES), towers.texts(TEXTS)
    found = towers.match_probabilities(pictures, texts)
    assert found.shape == (len(IMAGES), len(TEXTS))
    if "siglip" in checkpoint.name:
        expected = logits_of_transformers(checkpoint, TEXTS).sigmoid().numpy()
    else:
        among = [
            logits_of_transformers(checkpoint, [text, *NEUTRAL_TEXTS]).softmax(1)[:, 0].numpy()
            for text in TEXTS
        ]
        expected = np.stack(among, 1)
    assert found == pytest.approx(expected, abs=1e-5)


def test_embeddings_have_length_one_and_do_not_depend_on_the_batch(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, texts = towers.pictures(IMAGES), towers.texts(TEXTS)
    for found in (pictures, texts):
        assert found.dtype == np.float32
        assert found.shape[1] == towers.width
        assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)
    monkeypatch.setattr("vqa_app.retrieval.towers.PICTURES_AT_ONCE", 2)
    monkeypatch.setattr("vqa_app.retrieval.towers.TEXTS_AT_ONCE", 1)
    assert towers.pictures(IMAGES) == pytest.approx(pictures, abs=1e-5)
    assert towers.texts(TEXTS) == pytest.approx(texts, abs=1e-5)
    assert towers.pictures([]).shape == (0, towers.width)


def test_a_text_that_is_too_long_is_refused_with_the_numbers(towers: Towers) -> None:
    assert towers.max_text_tokens == 24
    text = "zebra " * 30
    with pytest.raises(UsageError, match=r"has \d\d+ tokens.* reads 24"):
        towers.texts(["fine", text])
    assert 0 < towers.checked_length("fine") <= 24
    assert towers.texts(["", "\ud800"]).shape == (2, towers.width)


def test_texts_are_in_lower_case_where_the_tokenizer_knows_no_other(
    towers: Towers, checkpoint: Path
) -> None:
    one, other = towers.texts(["A RED circle", "a red circle"])
    assert np.allclose(one, other, atol=1e-6) == (checkpoint.name[:-1] == "siglip2")


def test_models_without_two_towers_are_refused_by_name(tmp_path: Path) -> None:
    llava = tiny.tiny_llava(tmp_path / "llava")
    with pytest.raises(ModelError, match=r"llava.*'llava'"):
        load_towers(str(llava))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        load_towers(str(tmp_path / "empty"))
    broken = make_checkpoint("clip", tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="broken"):
        load_towers(str(broken))


@pytest.fixture(scope="module")
def drawings() -> dict[str, Image.Image]:
    """Return held-out drawings of single shapes by their captions."""
    found: dict[str, Image.Image] = {}
    for seed in range(40):
        scene = SHAPES.make(random.Random(f"towers-{seed}"), "test", layout="single")
        (item,) = scene.items
        found.setdefault(with_article(f"{item.colour} {item.kind}"), SHAPES.draw(scene))
    return dict(list(found.items())[:12])


def test_the_built_in_towers_find_what_a_text_says(drawings: dict[str, Image.Image]) -> None:
    towers = load_towers(device="cpu")
    pictures = towers.pictures(list(drawings.values()))
    texts = towers.texts([f"The picture shows {name}." for name in drawings])
    found = towers.match_probabilities(pictures, texts)
    assert (found.argmax(0) == np.arange(12)).sum() >= 11
    assert np.median(found.diagonal()) > 0.5
    assert np.median(found[~np.eye(12, dtype=bool)]) < 0.1


def test_the_built_in_tokenizer_reads_as_much_as_its_tower() -> None:
    """By itself, so that plain transformers needs no lengths either."""
    from transformers import AutoProcessor, SiglipModel

    folder = Path(vqa_app.builtin.__file__).parent / "siglip"
    model = SiglipModel.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(text=["a red circle " * 50], padding="max_length", truncation=True)
    assert len(inputs["input_ids"][0]) == model.config.text_config.max_position_embeddings
    short = processor(text=["a"], padding="max_length")["input_ids"][0]
    assert short[-1] == processor.tokenizer.pad_token_id, "padded on the right, as in training"
