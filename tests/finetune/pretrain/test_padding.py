"""Padding to a square."""

import numpy as np
import pytest
from PIL import Image

from finetune.pretrain import patch_targets
from finetune.pretrain.padding import (
    make_image_processor,
    padded_boxes,
    padded_pixels,
)
from finetune.pretrain.world import Item, Scene


@pytest.mark.parametrize("size", [(90, 20), (31, 120), (64, 64), (10, 10)])
def test_padded_pixels_equal_those_of_the_image_processor(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), np.uint8))
    theirs = make_image_processor(64)(images=picture, return_tensors="np")["pixel_values"][0]
    ours = padded_pixels(picture, 64).transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(theirs, ours, atol=1e-5)


def test_boxes_are_fractions_of_the_padded_picture() -> None:
    item = Item("circle", (0.0, 0.0, 0.5, 1.0))
    scene = Scene("shapes", "single", 200, 50, (item,), 0)
    assert padded_boxes(scene)[0] == pytest.approx((0.0, 0.375, 0.5, 0.625))


def test_targets_give_positions_in_the_picture_without_padding() -> None:
    item = Item("circle", (0.5, 0.0, 1.0, 0.5))
    scene = Scene("shapes", "single", 200, 50, (item,), 0)
    rows = patch_targets.patches(scene, 8, boxes=padded_boxes(scene))
    centre = np.flatnonzero(rows[:, patch_targets.CENTRE] == 1)
    assert rows[centre[0], patch_targets.X :].tolist() == [750, 250, 500, 500]
    assert divmod(int(centre[0]), 8) == (3, 6)  # the patch in the padded square
