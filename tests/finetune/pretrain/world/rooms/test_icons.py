"""The icons room, tested on noise."""

import random
from pathlib import Path

import pytest

from finetune.pretrain.world.rooms.icons.room import Icons
from finetune.pretrain.world.rooms.icons.store import IconStore
from tests.finetune.pretrain.packed_data import pack_noise_icons


@pytest.fixture
def icons(tmp_path: Path) -> Icons:
    return Icons(IconStore.open(pack_noise_icons(tmp_path / "icons")))


def test_held_out_sets_are_never_trained_on(icons: Icons) -> None:
    shown = {split: set() for split in ("train", "test")}
    for split, rows in shown.items():
        for seed in range(40):
            scene = icons.make(random.Random(seed), split)
            rows |= {item.extra["row"] for item in scene.items}
    assert shown["train"] == set(range(6))
    assert shown["test"] == set(range(6, 12))


def test_a_scene_has_the_given_number_of_icons_inside_the_picture(icons: Icons) -> None:
    for count in (1, 2, 5, 9):
        scene = icons.make(random.Random(count), "train", count)
        assert len(scene.items) == count
        assert all(0 <= edge <= 1.001 for item in scene.items for edge in item.box)
        picture = icons.draw(scene)
        assert picture.size == (scene.width, scene.height)
        assert picture.tobytes() == icons.draw(scene).tobytes()


def test_the_first_question_names_every_icon(icons: Icons) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        scene = icons.make(rng, "train")
        qas = icons.ask(scene, rng, "train")
        assert qas[0].skill == "name"
        assert all(item.kind in qas[0].sentence for item in scene.items)
        assert len({qa.question for qa in qas}) == len(qas)
