"""Packed icons and photographs of random noise, in the format of `pack_data`."""

import json
from pathlib import Path

import numpy as np

from finetune.pretrain.world.rooms.icons.store import icon_concepts


def pack_noise_icons(folder: Path, concepts: int = 6) -> Path:
    """Pack icons of the first few concepts, each from a training set and from a held-out set."""
    folder.mkdir()
    names = [concept.keys[0] for concept in icon_concepts()[:concepts]]
    rows = [[icon_set, name] for icon_set in ("noto", "openmoji") for name in names]
    images = np.random.default_rng(0).integers(0, 255, (len(rows), 128, 128, 4), np.uint8)
    np.save(folder / "images.npy", images)
    (folder / "icons.json").write_text(json.dumps(rows))
    return folder


def pack_noise_photos(folder: Path, count: int = 24) -> Path:
    """Pack photographs of the first four classes, a third of them held out."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 255, (count, 64, 64, 3), np.uint8))
    np.save(folder / "labels.npy", (np.arange(count) % 4).astype(np.int16))
    np.save(folder / "splits.npy", (np.arange(count) % 3 == 0).astype(np.uint8))
    np.save(folder / "boxes.npy", np.tile(np.array([64, 64, 191, 191], np.uint8), (count, 1)))
    return folder
