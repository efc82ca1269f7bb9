"""Validation of the two towers on pictures that are held out of training."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedTokenizerBase, SiglipModel

from finetune.pretrain import patch_targets
from finetune.pretrain.optim import fast_autocast
from finetune.pretrain.patch_grid import normalised
from finetune.pretrain.picture_pool import PictureSources
from finetune.pretrain.tower_batches import drawn_batch
from finetune.pretrain.towers import (
    TowerHeads,
    TowerTrainingConfig,
    encode_pictures,
    encode_texts,
)
from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.concepts import noun_phrase
from finetune.pretrain.world.rooms.icons.room import Icons
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.batches import PhotoBatches
from finetune.pretrain.world.rooms.photos.store import TINY_IMAGENET_CLASSES, photo_classes
from finetune.pretrain.world.rooms.shapes import wide


@dataclass(frozen=True)
class TowerValidator:
    """The towers with their heads, and the sources of held-out pictures.

    Names of figures end in "/read" where a picture is classified by the most similar of the text
    tower's embeddings (zero-shot), and in "/head" where the name head classifies it.
    """

    model: SiglipModel
    heads: TowerHeads
    tokenizer: PreTrainedTokenizerBase
    config: TowerTrainingConfig
    sources: PictureSources

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return accuracies, and the mean error of positions; no patches are dropped."""
        self.model.eval()
        figures = {"shape pairs/read": self._held_out_shapes()}
        for room in self.sources.rooms:
            figures |= self._patches_of(room)
        if self.sources.photos:
            figures |= self._photographs(self.sources.photos, 15 * self.config.validation_scenes)
        if isinstance(icons := self.sources.rooms.get("icons"), Icons):
            figures |= self._held_out_icons(icons)
        self.model.train()
        return {name: round(value, 4) for name, value in figures.items()}

    def _held_out_shapes(self) -> float:
        """Return the zero-shot accuracy on single shapes in held-out pairs of colour and kind."""
        count = self.config.validation_scenes
        pairs = sorted(wide.HELD_OUT_PAIRS | wide.MORE_HELD_OUT_PAIRS)
        scenes = [wide.single(*pairs[k % len(pairs)], seed=k) for k in range(count)]
        pooled = self._pooled([wide.WIDE_SHAPES.draw(scene) for scene in scenes])
        candidates = [(c, k) for c in COLOURS for k in wide.WIDE_KINDS]
        texts = self._texts(wide.phrase("solid", c, k) for c, k in candidates)
        best = _most_similar(pooled, texts)
        return sum(candidates[b] == pairs[k % len(pairs)] for k, b in enumerate(best)) / count

    def _patches_of(self, room: str) -> dict[str, float]:
        """Return how well a room's objects are known from the patches at their centres."""
        pictures = [
            self.sources.draw(k, self.config.grid, "test", room)
            for k in range(self.config.validation_scenes)
        ]
        found: dict[str, list[torch.Tensor]] = {"kind": [], "colour": [], "place": []}
        for start in range(0, len(pictures), 50):
            batch = drawn_batch(pictures[start : start + 50], self.config.device)
            features, _ = self._encode(batch.pixels)
            centres = (batch.rows[..., patch_targets.CENTRE] == 1) & (
                batch.rows[..., patch_targets.OWNED] == 1
            )
            rows, features = batch.rows[centres], features[centres].float()
            outputs = self.heads.patch_head(features).float().split(self.heads.sizes, -1)
            _, _, *classes, places = outputs
            kinds = self.heads.kind_head(features).argmax(-1)
            colours = classes[self.heads.columns.index(patch_targets.COLOUR)].argmax(-1)
            found["kind"].append((kinds == rows[:, patch_targets.KIND]).float())
            found["colour"].append((colours == rows[:, patch_targets.COLOUR]).float())
            error = places[:, :2] - patch_targets.geometry(rows)[:, :2]
            found["place"].append(error.abs().mean(-1) / 2)
        return {f"{room}/{name}": torch.cat(v).mean().item() for name, v in found.items()}

    def _photographs(self, photos: PhotoBatches, count: int) -> dict[str, float]:
        """Return top-1 accuracies over Tiny ImageNet's 200 classes, and over their kinds."""
        rows = photos.held_out(TINY_IMAGENET_CLASSES)
        rows = np.sort(np.random.default_rng(0).choice(rows, min(count, len(rows)), replace=False))
        classes = photo_classes()[:TINY_IMAGENET_CLASSES]
        texts = self._texts(f"a photo of {noun_phrase(c.name)}" for c in classes)
        first = len(icon_concepts())
        hits: dict[str, list[bool]] = {"photos/read": [], "photos/head": [], "photos/kind": []}
        for start in range(0, len(rows), 100):
            batch = photos.whole(rows[start : start + 100])
            _, pooled = self._encode(batch.pixels)
            logits = self.heads.name_head(pooled.float())[:, first : first + TINY_IMAGENET_CLASSES]
            for label, by_text, by_head in zip(
                batch.labels.tolist(),
                _most_similar(pooled, texts),
                logits.argmax(-1).tolist(),
                strict=True,
            ):
                hits["photos/read"].append(by_text == label)
                hits["photos/head"].append(by_head == label)
                hits["photos/kind"].append(classes[by_head].kind == classes[label].kind)
        return {name: sum(h) / len(h) for name, h in hits.items()}

    def _held_out_icons(self, room: Icons) -> dict[str, float]:
        """Return top-1 accuracies over all concepts, on single icons of the held-out sets."""
        rng = random.Random(0)
        scenes = [room.make_single(index, rng, "test") for index in room.store.concepts("test")]
        texts = self._texts(f"an icon of {noun_phrase(c.name)}" for c in icon_concepts())
        index_of = {c.name: k for k, c in enumerate(icon_concepts())}
        hits: dict[str, list[bool]] = {"icons/read": [], "icons/head": []}
        for start in range(0, len(scenes), 100):
            part = scenes[start : start + 100]
            pooled = self._pooled([room.draw(scene) for scene in part])
            by_text = _most_similar(pooled, texts)
            by_head = self.heads.name_head(pooled.float())[:, : len(texts)].argmax(-1).tolist()
            labels = [index_of[scene.items[0].kind] for scene in part]
            hits["icons/read"] += [a == b for a, b in zip(by_text, labels, strict=True)]
            hits["icons/head"] += [a == b for a, b in zip(by_head, labels, strict=True)]
        return {name: sum(h) / len(h) for name, h in hits.items()}

    def _encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with fast_autocast(self.config.device):
            return encode_pictures(self.model, pixels)

    def _pooled(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Return the pooled features of pictures [n, width]."""
        pixels = np.stack([self.config.grid.pixels(picture) for picture in pictures])
        return self._encode(normalised(torch.from_numpy(pixels).to(self.config.device)))[1]

    def _texts(self, texts: Iterable[str]) -> torch.Tensor:
        """Return the normalised embeddings of texts [texts, width]."""
        texts = list(texts)
        with fast_autocast(self.config.device):
            parts = [
                encode_texts(self.model, self.tokenizer, texts[k : k + 256])
                for k in range(0, len(texts), 256)
            ]
        return torch.cat(parts)


def _most_similar(pooled: torch.Tensor, texts: torch.Tensor) -> list[int]:
    """Return the index of the most similar text for every picture."""
    return (F.normalize(pooled.float(), dim=-1) @ texts.T).argmax(-1).tolist()
