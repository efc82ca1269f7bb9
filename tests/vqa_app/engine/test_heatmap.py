"""Attention maps drawn over pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vqa_app.engine.heatmap import SHORTEST_LONG_SIDE, draw_overlay, whole_answer
from vqa_app.engine.protocol import AttentionMap


@pytest.mark.parametrize("cell", [(0, 0), (1, 3), (3, 2)])
def test_the_largest_weight_is_drawn_at_its_position(cell: tuple[int, int]) -> None:
    weights = np.full((4, 4), 0.01)
    weights[cell] = 1.0
    drawn = np.asarray(draw_overlay(Image.new("RGB", (800, 400), (0, 0, 0)), weights))
    row, column = np.unravel_index(drawn.sum(-1).argmax(), drawn.shape[:2])
    assert (row // 100, column // 200) == cell


def test_only_small_pictures_are_enlarged() -> None:
    weights = np.ones((2, 2))
    assert draw_overlay(Image.new("RGB", (10, 5)), weights).size == (SHORTEST_LONG_SIDE, 256)
    assert draw_overlay(Image.new("RGB", (900, 300)), weights).size == (900, 300)
    assert draw_overlay(Image.new("RGB", (1, 2000)), weights).size == (1, 2000)


def test_a_map_of_zeros_can_be_drawn() -> None:
    assert draw_overlay(Image.new("RGB", (600, 600)), np.zeros((3, 3))).size == (600, 600)


def test_without_opacity_the_picture_is_unchanged() -> None:
    picture = tiny.picture(0, (600, 400)).image
    assert np.array_equal(np.asarray(draw_overlay(picture, np.eye(3), 0.0)), np.asarray(picture))


def test_the_map_of_an_answer_is_the_mean_over_its_tokens() -> None:
    maps = np.stack([np.eye(2) / 2, np.full((2, 2), 0.25)])
    attention = AttentionMap(("a", " b"), (maps, maps * 0))
    assert np.allclose(whole_answer(attention, 0), [[0.375, 0.125], [0.125, 0.375]])
    assert np.allclose(whole_answer(attention, 1), 0)
