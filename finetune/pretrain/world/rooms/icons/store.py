"""Packed icons of several sets, and which sets are held out."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.pretrain.world.rooms.concepts import Concept, read_concepts
from finetune.pretrain.world.scene import Split

ICON_SIZE = 128
HELD_OUT_SETS = frozenset({"openmoji"})
"""Sets that are used for validation only, to measure recognition in an unseen drawing style."""
LEFT_OUT_SETS = frozenset({"emojione-v1"})
"""Sets that are not used: their licence is ShareAlike (CC BY-SA 4.0), as is that of OpenMoji."""


@functools.cache
def icon_concepts() -> tuple[Concept, ...]:
    """Return the concepts that icons show; their keys are names of icons."""
    return read_concepts(Path(__file__).with_name("concepts.txt"))


@functools.cache
def concepts_by_name() -> dict[str, Concept]:
    """Return a dictionary from a concept's first name to the concept."""
    return {concept.name: concept for concept in icon_concepts()}


@dataclass(frozen=True)
class IconStore:
    """Icons as RGBA pictures, by concept."""

    images: np.ndarray
    """[n, ICON_SIZE, ICON_SIZE, 4] uint8, with straight alpha."""
    rows: dict[Split, tuple[tuple[int, ...], ...]]
    """For each split and concept, the rows of its icons in `images`."""

    @classmethod
    def open(cls, folder: Path) -> "IconStore":
        """Open icons packed by `finetune.pretrain.pack_data`, memory-mapped."""
        concept_of = {key: k for k, c in enumerate(icon_concepts()) for key in c.keys}
        found: dict[Split, list[list[int]]] = {
            "train": [[] for _ in icon_concepts()],
            "test": [[] for _ in icon_concepts()],
        }
        for row, (icon_set, name) in enumerate(
            json.loads((folder / "icons.json").read_text("utf-8"))
        ):
            split: Split = "test" if icon_set in HELD_OUT_SETS else "train"
            if name in concept_of and icon_set not in LEFT_OUT_SETS:
                found[split][concept_of[name]].append(row)
        by_split = {split: tuple(map(tuple, rows)) for split, rows in found.items()}
        return cls(np.load(folder / "images.npy", mmap_mode="r"), by_split)

    def concepts(self, split: Split) -> tuple[int, ...]:
        """Return the indices of the concepts that the split has icons of."""
        return tuple(k for k, rows in enumerate(self.rows[split]) if rows)
