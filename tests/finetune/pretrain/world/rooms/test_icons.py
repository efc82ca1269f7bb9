"""The icons room, on icons of noise."""

import random
from pathlib import Path

import pytest

from finetune.pretrain.world.rooms.icons.room import Icons
from finetune.pretrain.world.rooms.icons.store import IconStore
from tests.finetune.pretrain.packed_data import pack_noise_icons


@pytest.fixture
def icons(tmp_path: Path) -> Icons:
    return Icons(IconStore.open(pack_noise_icons(tmp_path / "icons")))


def test_training_never_sees_the_held_out_hand(icons: Icons) -> None:
    shown = {split: set() for split in ("train", "test")}
    for split, rows in shown.items():
        for seed in range(40):
            scene = icons.make(random.Random(seed), split)
            rows |= {item.extra["row"] for item in scene.items}
    assert shown["train"] == set(range(6))
    assert shown["test"] == set(range(6, 12))


def test_a_scene_has_as_many_icons_as_asked_for_within_the_picture(icons: Icons) -> None:
    for count in (1, 2, 5, 9):
        scene = icons.make(random.Random(count), "train", count)
        assert len(scene.items) == count
        assert all(0 <= edge <= 1.001 for item in scene.items for edge in item.box)
        picture = icons.draw(scene)
        assert picture.size == (scene.width, scene.height)
        assert picture.tobytes() == icons.draw(scene).tobytes()


def test_questions_name_what_is_there(icons: Icons) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        scene = icons.make(rng, "train")
        asked = icons.ask(scene, rng, "train")
        assert asked[0].skill == "name"
        assert all(item.kind in asked[0].sentence for item in scene.items)
        assert len({qa.question for qa in asked}) == len(asked)
