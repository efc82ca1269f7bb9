"""Packed small photographs of everyday things, with their classes and boxes."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.pretrain.world.rooms.concepts import Concept, read_concepts
from finetune.pretrain.world.scene import Split

PHOTO_SIZE = 64
TINY_IMAGENET_CLASSES = 200
"""These come first in the table, followed by those of CIFAR-10."""


@functools.cache
def photo_classes() -> tuple[Concept, ...]:
    """Return the classes of photographs; their keys are folders of the published data."""
    return read_concepts(Path(__file__).with_name("classes.txt"))


@functools.cache
def class_by_name() -> dict[str, Concept]:
    """Return a dictionary from a class's first name to the class.

    A name that both data sets use means the class of Tiny ImageNet.
    """
    return {c.name: c for c in reversed(photo_classes())}


@dataclass(frozen=True)
class PhotoStore:
    """Photographs with their labels and boxes."""

    images: np.ndarray
    """[n, PHOTO_SIZE, PHOTO_SIZE, 3] uint8."""
    labels: np.ndarray
    """[n], indices of `photo_classes`."""
    boxes: np.ndarray
    """[n, 4] uint8: left, top, right, bottom of the object; 255 is the photograph's edge."""
    rows: dict[Split, np.ndarray]
    """The rows of each split's photographs."""

    @classmethod
    def open(cls, folder: Path) -> "PhotoStore":
        """Open photographs packed by `finetune.pretrain.pack_data`, memory-mapped."""
        splits = np.load(folder / "splits.npy")
        return cls(
            np.load(folder / "images.npy", mmap_mode="r"),
            np.load(folder / "labels.npy").astype(np.int64),
            np.load(folder / "boxes.npy"),
            {"train": np.flatnonzero(splits == 0), "test": np.flatnonzero(splits == 1)},
        )
