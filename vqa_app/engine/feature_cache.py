"""Cached image features, so that each picture is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from vqa_app.engine.cache_budget import CacheBudget


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
        budget: Memory that may be used; the least recently used pictures are dropped.
    """

    def __init__(self, budget: CacheBudget) -> None:
        self.nbytes = 0
        self._budget = budget
        self._entries: OrderedDict[tuple[str, int], tuple[ImageFeatures, int]] = OrderedDict()
        budget.register(self)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def oldest(self) -> int | None:
        """See `vqa_app.engine.cache_budget.Cache`."""
        return next((used for _, used in self._entries.values()), None)

    def get(self, digest: str, tokens: int) -> ImageFeatures | None:
        """Return the features of a picture that takes this many tokens; None if unknown."""
        with self._budget.lock:
            features, _ = self._entries.get((digest, tokens), (None, 0))
            if features is not None:
                self._entries[digest, tokens] = features, self._budget.now()
                self._entries.move_to_end((digest, tokens))
            return features

    def put(self, digest: str, features: ImageFeatures) -> None:
        """Add the features of a picture and drop the oldest entries beyond the budget."""
        key = (digest, len(features.embeddings))
        with self._budget.lock:
            if key in self._entries:
                self.nbytes -= self._entries.pop(key)[0].nbytes
            self._entries[key] = features, self._budget.now()
            self.nbytes += features.nbytes
            self._budget.trim()

    def drop_oldest(self) -> None:
        """Drop the least recently used picture."""
        self.nbytes -= self._entries.popitem(last=False)[1][0].nbytes

    def clear(self) -> None:
        """Drop all features."""
        with self._budget.lock:
            self._entries.clear()
            self.nbytes = 0
