"""Cached image features, so that each picture is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Output of encoder and projector for one picture."""

    embeddings: Tensor
    """[image tokens, width], in the order of the prompt's placeholders."""
    deepstack: tuple[Tensor, ...] = ()
    """The same shape for each early layer that adds image features again (Qwen3-VL)."""

    @property
    def nbytes(self) -> int:
        """Memory, in bytes."""
        return self.embeddings.nbytes + sum(layer.nbytes for layer in self.deepstack)


class FeatureCache:
    """Features of the most recent pictures, by digest and number of tokens.

    The number is part of the key because some models tile a picture differently when there are
    others beside it.

    Args:
        budget: Bytes to keep; the least recently used pictures are dropped.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._entries: OrderedDict[tuple[str, int], ImageFeatures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: str, tokens: int) -> ImageFeatures | None:
        """Return the features of a picture that takes this many tokens; None if unknown."""
        features = self._entries.get((digest, tokens))
        if features is not None:
            self._entries.move_to_end((digest, tokens))
        return features

    def put(self, digest: str, features: ImageFeatures) -> None:
        """Add the features of a picture and drop the oldest ones beyond the budget."""
        key = (digest, len(features.embeddings))
        if key in self._entries:
            self.nbytes -= self._entries.pop(key).nbytes
        self._entries[key] = features
        self.nbytes += features.nbytes
        while self.nbytes > self.budget:
            self.nbytes -= self._entries.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Drop all features."""
        self._entries.clear()
        self.nbytes = 0
