"""A rolling pool of drawn pictures: drawing is shared by several steps, nothing grows stale."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from finetune.pretrain import patch_targets
from finetune.pretrain.world import QA, ROOMS, Scene, make_scene

SIZE = 128


def pixels(picture: Image.Image) -> np.ndarray:
    """As the processor resizes it: [SIZE, SIZE, 3] uint8 (squashed, bicubic)."""
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def normalised(batch: torch.Tensor) -> torch.Tensor:
    """uint8 [n, SIZE, SIZE, 3] -> the encoder's input, float [n, 3, SIZE, SIZE] in -1..1."""
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_room(seed: int, weights: Mapping[str, float]) -> str:
    """Which room scene number `seed` is of."""
    rng = random.Random(f"room-{seed}")
    return rng.choices(list(weights), list(weights.values()))[0]


def caption(scene: Scene, seed: int) -> str:
    """A description to contrast pictures with; "" where the room has none for the scene."""
    qas: list[QA] = ROOMS[scene.room].ask(scene, random.Random(seed), "train")
    for skill in ("caption", "describe"):
        for qa in qas:
            if qa.skill == skill:
                return qa.sentence
    telling = ("position", "colour", "shape", "read", "value", "outside")
    facts = list(dict.fromkeys(qa.sentence for qa in qas if qa.skill in telling))
    return " ".join(facts[:3])


@dataclass
class Pool:
    """`capacity` pictures with their patch targets, the oldest replaced first.

    `next_seed` counts scenes from the start, so that a resumed run goes on with new ones.
    """

    capacity: int
    weights: Mapping[str, float]
    next_seed: int = 0

    def __post_init__(self) -> None:
        self.images = np.zeros((self.capacity, SIZE, SIZE, 3), np.uint8)
        self.targets = np.zeros(
            (self.capacity, patch_targets.PATCHES, patch_targets.COLUMNS), np.int16
        )
        self.texts = [""] * self.capacity
        self.drawn = 0

    def refill(self, count: int) -> None:
        """Draw `count` new scenes into the pool."""
        for _ in range(count):
            seed = self.next_seed
            scene = make_scene(seed, draw_room(seed, self.weights))
            slot = self.drawn % self.capacity
            self.images[slot] = pixels(ROOMS[scene.room].draw(scene))
            self.targets[slot] = patch_targets.patches(scene)
            self.texts[slot] = caption(scene, seed)
            self.drawn += 1
            self.next_seed += 1

    def batch(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Slots of a batch."""
        return rng.integers(0, min(self.drawn, self.capacity), size)
