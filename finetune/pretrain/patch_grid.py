"""The input of a picture encoder: its size, its patches, and how pictures are brought to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.pretrain import patch_targets
from finetune.pretrain.padding import padded_boxes, padded_pixels
from finetune.pretrain.world.scene import Scene


@dataclass(frozen=True)
class PatchGrid:
    """The encoder's input: `side` pixels and `patches` patches along an edge."""

    side: int
    patches: int
    padded: bool = True
    """Whether pictures are padded to a square, or stretched to one as by early checkpoints."""

    @classmethod
    def of(cls, vision_config: Any, image_processor: Any) -> "PatchGrid":
        """Return the grid of a checkpoint, from its vision tower and its image processor."""
        side = vision_config.image_size
        padded = bool(getattr(image_processor, "do_pad", False))
        return cls(side, side // vision_config.patch_size, padded)

    @property
    def tokens(self) -> int:
        """The number of patches of a picture."""
        return self.patches**2

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """Return an RGB picture as the image processor resizes it: [side, side, 3] uint8."""
        if self.padded:
            return padded_pixels(picture, self.side)
        if picture.size != (self.side, self.side):
            picture = picture.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return np.asarray(picture)

    def targets(self, scene: Scene) -> np.ndarray:
        """Return the patch targets of a scene: [tokens, COLUMNS] int16."""
        boxes = padded_boxes(scene) if self.padded else None
        return patch_targets.patches(scene, self.patches, boxes)


def normalised(batch: torch.Tensor) -> torch.Tensor:
    """Return the encoder's input: uint8 [n, side, side, 3] -> float [n, 3, side, side] in -1..1."""
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1
