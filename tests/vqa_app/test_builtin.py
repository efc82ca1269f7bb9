"""The built-in model: plain transformers runs it, and its answers depend on the picture."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    SiglipModel,
    SiglipVisionModel,
)

import vqa_app.builtin
from finetune.pretrain.sequences import turns_of
from finetune.pretrain.world.rooms.shapes.room import SHAPES
from finetune.pretrain.world.wording.phrasing import with_article
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer
from vqa_app.engine.scoring import log_probabilities
from vqa_app.prompts.conversation import Conversation

FOLDER = Path(vqa_app.builtin.__file__).parent
MB = 10**6

Parts = tuple[Any, LlavaForConditionalGeneration]


@pytest.fixture(scope="module")
def parts(one_thread: None) -> Parts:
    processor = AutoProcessor.from_pretrained(FOLDER)
    return processor, AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)


def answer(parts: Parts, picture: Image.Image | None, *turns: str) -> str:
    """Answer the last of the turns, which alternate between questions and answers."""
    processor, model = parts
    messages: list[dict[str, Any]] = []
    for k, text in enumerate(turns):
        part = {"type": "text", "text": text}
        content = [{"type": "image"}, part] if k == 0 and picture else [part]
        messages.append({"role": "assistant" if k % 2 else "user", "content": content})
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=40)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True)


def test_it_is_a_standard_llava_with_siglip(parts: Parts) -> None:
    _, model = parts
    assert type(model) is LlavaForConditionalGeneration
    assert isinstance(model.model.vision_tower, SiglipVisionModel)
    assert model.config.vision_feature_select_strategy == "full"
    assert model.config.vision_feature_layer == -1


def test_it_is_small() -> None:
    shards = list(FOLDER.rglob("*.safetensors"))
    assert shards
    assert max(shard.stat().st_size for shard in shards) <= 15 * MB
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 40 * MB


def test_its_calibration_was_measured_with_the_shipped_weights() -> None:
    calibration = load_model("builtin").calibration
    assert calibration is not None, "run `vqa-app eval --calibrate` again; see MODEL_CARD.md"
    assert calibration.error <= 0.05
    assert calibration.questions >= 1000


def test_a_calibration_of_ones_own_replaces_the_shipped_one_and_is_not_written_into_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    loaded = load_model("builtin")
    assert loaded.calibration is not None
    own = replace(loaded.calibration, questions=200)
    assert own.save(loaded.own_folder).is_relative_to(tmp_path)
    assert load_model("builtin").calibration == own


def test_an_answer_has_the_confidence_that_was_calibrated_for_its_probability() -> None:
    loaded = load_model("builtin")
    engine = LocalEngine(loaded)
    scene = SHAPES.make(random.Random(3), "test")
    question = Conversation.ask("How many objects are there?", SHAPES.draw(scene))
    *_, said = engine.stream(question)
    assert isinstance(said, Answer)
    words = engine._run(lambda: log_probabilities(engine._runtime, question, said.text), None)
    assert loaded.calibration is not None
    assert said.calibrated
    assert said.confidence == pytest.approx(
        loaded.calibration.probability(float(words.sum())), abs=1e-3
    )
    engine.close()


def test_its_tokenizer_round_trips_any_text(parts: Parts) -> None:
    tokenizer = parts[0].tokenizer
    for text in ("Wie heißt das? 東京 🙂", "tabs\tand\n\nlines", "STOP at 10:45!"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("skill", ["colour", "shape", "existence"])
def test_it_answers_questions_about_held_out_scenes(parts: Parts, skill: str) -> None:
    """Ask about single shapes of the held-out split, in the single-word style."""
    right = count = blind = 0
    for seed in range(60):
        if count == 20:
            break
        rng = random.Random(f"shipped-{skill}-{seed}")
        scene = SHAPES.make(rng, "test", layout="single")
        qas = [q for q in SHAPES.ask(scene, rng, "test") if q.skill == skill and q.short]
        if not qas:
            continue
        ((question, expected),) = turns_of(qas[0], rng, short=True, plain=True)
        picture = SHAPES.draw(scene)
        right += answer(parts, picture, question) == expected
        blind += answer(parts, Image.new("RGB", picture.size, "gray"), question) == expected
        count += 1
    assert count == 20
    assert right >= 17
    assert blind < right


def test_it_resolves_references_in_follow_ups(parts: Parts) -> None:
    scene = SHAPES.make(random.Random("single"), "train", layout="single")
    picture, (item,) = SHAPES.draw(scene), scene.items
    reply = answer(
        parts, picture, "Is there a shape?", "Yes, there is a shape.", "What colour is it?"
    )
    assert item.colour in reply


def test_its_two_towers_match_pictures_and_captions() -> None:
    """With sixteen held-out scenes, chance is one in sixteen."""
    towers = SiglipModel.from_pretrained(FOLDER / "siglip", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(FOLDER / "siglip")
    captions: dict[str, Image.Image] = {}
    for seed in range(60):
        scene = SHAPES.make(random.Random(f"towers-{seed}"), "test", layout="single")
        (item,) = scene.items
        text = f"The picture shows {with_article(f'{item.colour} {item.kind}')}."
        captions.setdefault(text, SHAPES.draw(scene))
        if len(captions) == 16:
            break
    inputs = processor(
        text=list(captions),
        images=list(captions.values()),
        padding="max_length",
        max_length=towers.config.text_config.max_position_embeddings,
        return_tensors="pt",
    )
    with torch.no_grad():
        best = towers(**inputs).logits_per_image.argmax(1)
    assert (best == torch.arange(16)).sum() >= 11


def test_it_says_so_when_there_is_no_picture(parts: Parts) -> None:
    assert "no picture" in answer(parts, None, "What colour is the star?")
