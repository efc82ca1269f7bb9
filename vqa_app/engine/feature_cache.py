"""Encoder outputs of pictures, kept so that a picture is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder and the projector made of one picture."""

    rows: Tensor
    """[image tokens, width], in the order of the prompt's placeholders."""
    deepstack: tuple[Tensor, ...] = ()
    """More of the same shape for the first layers of models that add them there (Qwen3-VL)."""

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + sum(layer.nbytes for layer in self.deepstack)


class FeatureCache:
    """Features of the pictures seen last, by digest and number of tokens (tiling may depend on the
    company).
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._entries: OrderedDict[tuple[str, int], Features] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: str, tokens: int) -> Features | None:
        features = self._entries.get((digest, tokens))
        if features is not None:
            self._entries.move_to_end((digest, tokens))
        return features

    def put(self, digest: str, features: Features) -> None:
        key = (digest, len(features.rows))
        if key in self._entries:
            self.nbytes -= self._entries.pop(key).nbytes
        self._entries[key] = features
        self.nbytes += features.nbytes
        while self.nbytes > self.budget:
            self.nbytes -= self._entries.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self._entries.clear()
        self.nbytes = 0
