"""matplotlib's charts: boxes, colours and answers agree with what is drawn."""

import random

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from finetune.pretrain import patch_targets
from finetune.pretrain.world.rooms.charts.plots import CYCLE, PLOTS
from finetune.pretrain.world.rooms.charts.room import held_out


def scenes(split, count):
    return [PLOTS.make(random.Random(seed), split) for seed in range(count)]


def test_a_seed_repeats_its_scene_and_its_picture() -> None:
    for seed in range(3):
        one, other = (PLOTS.make(random.Random(seed), "train") for _ in range(2))
        assert one == other
        assert np.array_equal(np.asarray(PLOTS.draw(one)), np.asarray(PLOTS.draw(other)))


@pytest.mark.slow
def test_objects_have_their_colour_where_their_boxes_are() -> None:
    layouts = set()
    for scene in scenes("train", 24):
        picture = np.asarray(PLOTS.draw(scene))
        assert picture.shape == (scene.height, scene.width, 3)
        for item in scene.items:
            left, top, right, bottom = (
                round(v * side)
                for v, side in zip(item.box, (scene.width, scene.height) * 2, strict=True)
            )
            inside = picture[max(0, top) : bottom, max(0, left) : right].reshape(-1, 3)
            expected = np.array(to_rgb(CYCLE[item.colour])) * 255
            near = (np.abs(inside - expected).max(1) < 12).mean()
            assert near > 0.15, (scene.layout, item)
        layouts.add(scene.layout)
    assert layouts == {"bars", "flat", "line", "pie"}


@pytest.mark.slow
def test_what_is_written_is_what_is_answered() -> None:
    read, missing = 0, 0
    for seed, scene in enumerate(scenes("train", 40)):
        for qa in PLOTS.ask(scene, random.Random(seed), "train"):
            if "title" in qa.question or "called" in qa.question:
                assert qa.short == (scene.extra["title"] or "none")
                read, missing = read + bool(scene.extra["title"]), missing + (qa.short == "none")
            if "y axis" in qa.question:
                assert qa.short == (scene.extra["y"] or "none")
    assert read > 10
    assert missing > 3


@pytest.mark.parametrize("seed", range(4))
def test_training_leaves_out_the_held_out_combinations(seed: int) -> None:
    scene = PLOTS.make(random.Random(seed), "train")
    values = scene.extra["values"]
    assert not any(held_out(i.colour, v) for i, v in zip(scene.items, values, strict=True))
    assert all((scene.room, item.kind) in patch_targets.KIND_INDEX for item in scene.items)
