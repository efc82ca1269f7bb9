"""Batches of photographs, tested on noise."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.pretrain.world.rooms.photos.batches import PhotoBatches
from finetune.pretrain.world.rooms.photos.store import PhotoStore
from tests.finetune.pretrain.packed_data import pack_noise_photos


@pytest.fixture
def photos(tmp_path: Path) -> PhotoBatches:
    return PhotoBatches(PhotoStore.open(pack_noise_photos(tmp_path / "photos")), side=64)


def test_a_photograph_without_augmentation_keeps_its_pixels(photos: PhotoBatches) -> None:
    rows = photos.held_out(classes=2)
    assert set(photos.store.labels[rows]) == {0, 1}
    batch = photos.whole(rows)
    original = torch.from_numpy(photos.store.images[rows]).permute(0, 3, 1, 2)
    assert torch.allclose(batch.pixels, original / 127.5 - 1, atol=1e-4)
    assert batch.boxes[0].tolist() == pytest.approx([64 / 255, 64 / 255, 191 / 255, 191 / 255])


def test_augmented_photographs_and_their_boxes_stay_in_range(photos: PhotoBatches) -> None:
    batch = photos.batch(32, np.random.default_rng(0))
    assert batch.pixels.shape == (32, 3, 64, 64)
    assert batch.pixels.abs().max() <= 1
    left, top, right, bottom = batch.boxes.unbind(1)
    assert ((left <= right) & (top <= bottom)).all()
    assert ((batch.boxes >= 0) & (batch.boxes <= 1)).all()
