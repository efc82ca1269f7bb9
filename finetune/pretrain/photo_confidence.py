"""How sure the encoder is of what a photograph shows, so that answers learn to say "may".

The name head classifies the very picture that the language model gets. Of a training photograph
whose class it is not sure of, the answer is "It may be a goldfish."; so the language model learns
to hedge from the features that it will have of users' photographs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from finetune.pretrain.patch_targets import FIRST_ICON_CLASS, FIRST_PHOTO_CLASS, KIND_INDEX
from finetune.pretrain.world.rooms.photos.store import TINY_IMAGENET_CLASSES, photo_classes
from finetune.pretrain.world.scene import Scene

PRECISION = 0.85
"""The share of right names to reach among those that are said without "may"."""


@dataclass(frozen=True)
class PhotoConfidence:
    """The name head of the towers, and the least probability that counts as sure."""

    name_head: nn.Linear
    threshold: float = 0.5

    @torch.no_grad()
    def beliefs(
        self, pooled: torch.Tensor, scenes: Sequence[Scene]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return for photographs the probability of the most likely class, and whether it is right.

        Args:
            pooled: The encoder's pooled features of the pictures, [n, width].
            scenes: The photographs.

        Classes compete within their data set, as in training.
        """
        first = FIRST_PHOTO_CLASS - FIRST_ICON_CLASS
        logits = self.name_head(pooled.float()).float()[:, first:]
        labels = torch.tensor([photo_label(scene) for scene in scenes], device=logits.device)
        in_first = torch.arange(len(photo_classes()), device=logits.device) < TINY_IMAGENET_CLASSES
        other = in_first[None, :] != (labels < TINY_IMAGENET_CLASSES)[:, None]
        best = logits.masked_fill(other, float("-inf")).softmax(-1).max(-1)
        return best.values.cpu().numpy(), (best.indices == labels).cpu().numpy()

    def calibrated(self, pooled: torch.Tensor, scenes: Sequence[Scene]) -> "PhotoConfidence":
        """Return the same with the threshold at which `PRECISION` is reached on photographs."""
        return replace(self, threshold=threshold_for(*self.beliefs(pooled, scenes)))

    def judge(self, pooled: torch.Tensor, scenes: Sequence[Scene]) -> list[Scene]:
        """Return the scenes; photographs get `extra["sure"]`, which their questions depend on."""
        judged = list(scenes)
        photos = [k for k, scene in enumerate(scenes) if scene.room == "photos"]
        if photos:
            probabilities, _ = self.beliefs(pooled[photos], [scenes[k] for k in photos])
            for k, probability in zip(photos, probabilities.tolist(), strict=True):
                sure = probability >= self.threshold
                judged[k] = replace(scenes[k], extra={**scenes[k].extra, "sure": sure})
        return judged


def threshold_for(
    probabilities: np.ndarray, right: np.ndarray, precision: float = PRECISION
) -> float:
    """Return the least threshold above which a share `precision` is right; above 1 if none is."""
    order = np.argsort(-probabilities)
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    reached = np.flatnonzero(share >= precision)
    return float(probabilities[order[reached[-1]]]) if len(reached) else 1.01


def photo_label(scene: Scene) -> int:
    """Return the index of a photograph's class among `photo_classes`.

    A name that both data sets use counts as Tiny ImageNet's.
    """
    return KIND_INDEX["photos", scene.items[0].kind] - FIRST_PHOTO_CLASS
