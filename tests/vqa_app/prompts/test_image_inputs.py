"""What a model gets of a picture: its resolution, and fewer tokens at low detail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import picture
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.pictures.picture import LOW_DETAIL_SIDE, at_low_detail
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.image_inputs import has_low_detail, process_images, resolution

LARGE = picture(0, (1200, 900))


def test_a_picture_at_low_detail_is_smaller_and_another_picture() -> None:
    low = at_low_detail(LARGE)
    assert low.image.size == (LOW_DETAIL_SIDE, LOW_DETAIL_SIDE * 3 // 4)
    assert low != LARGE
    assert low == at_low_detail(LARGE)
    assert LARGE.image.size == (1200, 900)
    small = picture(0, (48, 40))
    assert at_low_detail(small).image.size == (48, 40)
    assert at_low_detail(small) != small, "models process it in another way"


@pytest.mark.parametrize(
    ("name", "expected"), [("llava-siglip", False), ("smolvlm", True), ("idefics3", True)]
)
def test_models_that_split_pictures_have_low_detail(
    tiny_checkpoint: Callable[[str], Path], name: str, expected: bool
) -> None:
    processor = load_model(str(tiny_checkpoint(name))).processor
    assert has_low_detail(processor) is expected
    assert resolution(processor, LARGE) == (5 if expected else 1, 32, 32)
    assert resolution(processor, at_low_detail(LARGE)) == (1, 32, 32)


def test_models_that_take_pictures_in_their_own_size_have_low_detail(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    processor = load_model(str(tiny_checkpoint("qwen2-vl"))).processor
    processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 1 << 20}
    assert has_low_detail(processor)
    images, width, height = resolution(processor, at_low_detail(LARGE)) or (0, 0, 0)
    assert images == 1
    assert max(width, height) <= LOW_DETAIL_SIDE + 32


def test_low_and_standard_detail_do_not_share_what_is_cached(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    def ask(engine: LocalEngine, low: bool) -> Answer:
        shown = at_low_detail(LARGE) if low else LARGE
        options = GenerationOptions(temperature=0.0, max_new_tokens=6)
        *_, answer = engine.stream(Conversation.ask("What is it?", shown), options)
        assert isinstance(answer, Answer)
        return answer

    directory = str(tiny_checkpoint("smolvlm"))
    fresh, used = LocalEngine(load_model(directory)), LocalEngine(load_model(directory))
    assert used.info.low_detail
    standard = ask(used, low=False)
    low = ask(used, low=True)
    assert low.image_tokens < standard.image_tokens
    assert low.text == ask(fresh, low=True).text
    counted = used.count_tokens(Conversation.ask("What is it?", at_low_detail(LARGE)))
    assert (counted.image, counted.pictures[0].tokens) == (low.image_tokens, low.image_tokens)
    assert (counted.pictures[0].images, counted.pictures[0].width) == (1, 32)
    fresh.close()
    used.close()


def test_the_view_of_a_picture_is_what_the_model_gets(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    loaded = load_model(str(tiny_checkpoint("smolvlm")))
    engine = LocalEngine(loaded)
    assert len(engine.model_view(LARGE)) == 5
    assert len(engine.model_view(at_low_detail(LARGE))) == 1
    pixels = process_images(loaded.processor, (LARGE,)).inputs["pixel_values"]
    assert tuple(pixels.shape[-2:]) == engine.model_view(LARGE)[0].size
    engine.close()


@pytest.mark.parametrize("size", [(48, 40), (200, 50), (60, 100)])
def test_the_stand_in_for_lfm2_vl_returns_what_the_real_processor_returns(
    size: tuple[int, int],
) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor as Real

    from tests.lfm2_pictures import Lfm2VlImageProcessor as StandIn

    settings = {
        "encoder_patch_size": 8,
        "tile_size": 32,
        "min_image_tokens": 2,
        "max_image_tokens": 4,
        "max_tiles": 4,
    }
    options = {"return_tensors": "pt", "return_row_col_info": True}
    expected = Real(**settings)([picture(0, size).image], **options)
    actual = StandIn(**settings)([picture(0, size).image], **options)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= (0.02 if name == "pixel_values" else 0)
