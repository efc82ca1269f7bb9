"""A rolling pool of drawn pictures: each is used by several steps before it is replaced."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from finetune.pretrain import patch_targets
from finetune.pretrain.world import QA, Room, Scene
from finetune.pretrain.world.mixture import World

SIZE = 128


def pixels(picture: Image.Image) -> np.ndarray:
    """Return a picture as the processor resizes it: [SIZE, SIZE, 3] uint8, bicubic, stretched."""
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def normalised(batch: torch.Tensor) -> torch.Tensor:
    """Return the encoder's input: uint8 [n, SIZE, SIZE, 3] -> float [n, 3, SIZE, SIZE] in -1..1."""
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def caption(room: Room, scene: Scene, seed: int) -> str:
    """Return a caption for contrastive training; "" where the room's questions yield none."""
    qas: list[QA] = room.ask(scene, random.Random(seed), "train")
    for skill in ("caption", "describe"):
        for qa in qas:
            if qa.skill == skill:
                return qa.sentence
    fact_skills = ("position", "colour", "shape", "read", "value", "outside")
    facts = list(dict.fromkeys(qa.sentence for qa in qas if qa.skill in fact_skills))
    return " ".join(facts[:3])


@dataclass
class ScenePool:
    """Up to `capacity` pictures with patch targets and captions; the oldest is replaced first.

    `next_seed` is the number of the next scene, so that a resumed run continues with new scenes.
    """

    capacity: int
    world: World
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
            scene = self.world.make_scene(seed)
            slot = self.drawn % self.capacity
            self.images[slot] = pixels(self.world.draw(scene))
            self.targets[slot] = patch_targets.patches(scene)
            self.texts[slot] = caption(self.world.rooms[scene.room], scene, seed)
            self.drawn += 1
            self.next_seed += 1

    def batch(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Return random slots for a batch."""
        return rng.integers(0, min(self.drawn, self.capacity), size)
