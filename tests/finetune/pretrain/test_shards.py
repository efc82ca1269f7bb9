"""Shards of packed data."""

import json
from pathlib import Path

import numpy as np

from finetune.pretrain.shards import read_shards, write_icon_shards, write_photo_shards
from tests.finetune.pretrain.packed_data import pack_noise_icons, pack_noise_photos


def test_shards_restore_the_packed_data(tmp_path: Path) -> None:
    photos = pack_noise_photos(tmp_path / "photos")
    # One colour per label, which survives lossy compression.
    labels = np.load(photos / "labels.npy")
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]], np.uint8)
    flat = np.broadcast_to(colours[labels][:, None, None], (len(labels), 64, 64, 3))
    np.save(photos / "images.npy", flat)
    icons = pack_noise_icons(tmp_path / "icons")
    shards = tmp_path / "shards"
    shards.mkdir()
    write_photo_shards(photos, shards, limit=600, held_out=4)
    write_icon_shards(icons, shards, limit=60_000)
    assert len(list(shards.glob("photos-*.npz"))) > 1
    assert len(list(shards.glob("icons-*.npz"))) > 1

    read_shards(shards, tmp_path / "restored photos", tmp_path / "restored icons")
    images = np.load(tmp_path / "restored photos/images.npy")
    restored = np.load(tmp_path / "restored photos/labels.npy")
    splits = np.load(tmp_path / "restored photos/splits.npy")
    assert np.abs(images.astype(int) - colours[restored][:, None, None]).max() < 30
    assert (splits == 1).sum() == 4
    assert (splits == 0).sum() == 16
    names = json.loads((tmp_path / "restored icons/icons.json").read_text())
    assert names == json.loads((icons / "icons.json").read_text())
    assert np.load(tmp_path / "restored icons/images.npy").shape == (12, 128, 128, 4)
