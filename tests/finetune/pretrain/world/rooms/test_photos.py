"""The photographs room, tested on noise."""

import random
from pathlib import Path

import pytest

from finetune.pretrain.world.rooms.photos.room import Photos
from finetune.pretrain.world.rooms.photos.store import PhotoStore, photo_classes
from tests.finetune.pretrain.packed_data import pack_noise_photos


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(PhotoStore.open(pack_noise_photos(tmp_path / "photos")))


def test_crops_contain_the_object(photos: Photos) -> None:
    for seed in range(50):
        scene = photos.make(random.Random(seed), "train")
        left, top, right, bottom = scene.items[0].box
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        assert photos.draw(scene).size == (scene.width, scene.height)


def test_held_out_photographs_are_not_cropped_and_never_trained_on(photos: Photos) -> None:
    rows = {"train": set(), "test": set()}
    for split, used in rows.items():
        for seed in range(60):
            scene = photos.make(random.Random(seed), split)
            used.add(scene.extra["row"])
            assert split == "train" or (scene.width, scene.height) == (64, 64)
    assert not rows["train"] & rows["test"]


def test_questions_are_about_the_class_and_never_about_counts(photos: Photos) -> None:
    skills = set()
    for seed in range(60):
        rng = random.Random(seed)
        scene = photos.make(rng, "train")
        qas = photos.ask(scene, rng, "train")
        assert qas[0].short in (scene.items[0].kind, "")
        assert scene.items[0].kind in photos.kinds
        skills |= {qa.skill for qa in qas}
    assert {"name", "is_it", "existence", "position"} <= skills
    assert "count" not in skills


def test_absent_things_are_of_another_kind_than_the_object(photos: Photos) -> None:
    kinds = {name: c.kind for c in photo_classes() for name in c.names}
    for seed in range(80):
        rng = random.Random(seed)
        scene = photos.make(rng, "train")
        for qa in photos.ask(scene, rng, "train"):
            if qa.skill == "existence" and qa.short == "no":
                absent = qa.sentence.removeprefix("No, there is no ").rstrip(".")
                assert kinds.get(absent) != kinds[scene.items[0].kind]
