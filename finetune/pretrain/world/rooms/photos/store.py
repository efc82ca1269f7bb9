"""Packed small photographs of everyday things, with their classes and boxes."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.pretrain.world.rooms.concepts import Concept, read_concepts
from finetune.pretrain.world.scene import Split

PHOTO_SIZE = 64
TINY_IMAGENET_CLASSES = 200
"""These come first in the table; what follows is CIFAR-10's."""


@functools.cache
def photo_classes() -> tuple[Concept, ...]:
    """Read the table of what photographs show; keys are folders of the published data."""
    return read_concepts(Path(__file__).with_name("classes.txt"))


@functools.cache
def class_by_name() -> dict[str, Concept]:
    """Return the classes by their first names; names are Tiny ImageNet's where both have them."""
    return {c.name: c for c in reversed(photo_classes())}


@dataclass(frozen=True)
class PhotoStore:
    """Photographs [n, 64, 64, 3] uint8, their labels [n], and boxes [n, 4] in 255ths of a side."""

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    numbers: dict[Split, np.ndarray]

    @classmethod
    def open(cls, folder: Path) -> "PhotoStore":
        """Map what `finetune.pretrain.pack_data` wrote."""
        splits = np.load(folder / "splits.npy")
        return cls(
            np.load(folder / "images.npy", mmap_mode="r"),
            np.load(folder / "labels.npy").astype(np.int64),
            np.load(folder / "boxes.npy"),
            {"train": np.flatnonzero(splits == 0), "test": np.flatnonzero(splits == 1)},
        )
