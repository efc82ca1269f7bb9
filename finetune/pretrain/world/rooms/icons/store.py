"""Packed icons of several hands: where they lie, and which are held out."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.pretrain.world.rooms.concepts import Concept, read_concepts
from finetune.pretrain.world.scene import Split

ICON_SIZE = 128
HELD_OUT_SETS = frozenset({"openmoji"})
"""The sets that training never sees: whether an icon is known in another hand is asked on these."""
LEFT_OUT_SETS = frozenset({"emojione-v1"})
"""Sets under a ShareAlike licence (CC BY-SA 4.0, as the held-out one): weights never see them."""


@functools.cache
def icon_concepts() -> tuple[Concept, ...]:
    """Read the table of what icons show; keys are the icons' names."""
    return read_concepts(Path(__file__).with_name("concepts.txt"))


@functools.cache
def concepts_by_name() -> dict[str, Concept]:
    """Return the concepts by their first names."""
    return {concept.name: concept for concept in icon_concepts()}


@dataclass(frozen=True)
class IconStore:
    """Icons as RGBA pictures, by concept.

    images: [n, ICON_SIZE, ICON_SIZE, 4] uint8, straight alpha.
    numbers: for each split and concept the rows of its icons.
    """

    images: np.ndarray
    numbers: dict[Split, tuple[tuple[int, ...], ...]]

    @classmethod
    def open(cls, folder: Path) -> "IconStore":
        """Map what `finetune.pretrain.pack_data` wrote."""
        concept_of = {key: k for k, c in enumerate(icon_concepts()) for key in c.keys}
        found: dict[Split, list[list[int]]] = {
            "train": [[] for _ in icon_concepts()],
            "test": [[] for _ in icon_concepts()],
        }
        for number, (style, name) in enumerate(json.loads((folder / "icons.json").read_text())):
            split: Split = "test" if style in HELD_OUT_SETS else "train"
            if name in concept_of and style not in LEFT_OUT_SETS:
                found[split][concept_of[name]].append(number)
        numbers = {split: tuple(map(tuple, rows)) for split, rows in found.items()}
        return cls(np.load(folder / "images.npy", mmap_mode="r"), numbers)

    def concepts(self, split: Split) -> tuple[int, ...]:
        """Return the numbers of the concepts that the split has an icon of."""
        return tuple(k for k, rows in enumerate(self.numbers[split]) if rows)
