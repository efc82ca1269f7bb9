"""What the two towers know of pictures that training never saw."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase, SiglipModel

from finetune.pretrain import patch_targets
from finetune.pretrain.optim import fast_autocast
from finetune.pretrain.padding import padded_pixels
from finetune.pretrain.picture_mix import Sources
from finetune.pretrain.tower_batches import drawn_batch
from finetune.pretrain.towers import Heads, Settings, read, see
from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.concepts import noun_phrase
from finetune.pretrain.world.rooms.icons.room import Icons
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import TINY_IMAGENET_CLASSES, photo_classes
from finetune.pretrain.world.rooms.shapes import wide


@dataclass(frozen=True)
class Examined:
    """The towers and their heads, and what they are asked about."""

    model: SiglipModel
    heads: Heads
    tokenizer: PreTrainedTokenizerBase
    settings: Settings
    sources: Sources


@torch.no_grad()
def validate(asked: Examined) -> dict[str, float]:
    """Figures on what training never sees, with no patch dropped.

    Photographs and held-out icons are named by the text tower (`.../read`) and by the heads; drawn
    rooms' held-out scenes are asked at their objects' centres.
    """
    asked.model.eval()
    figures = {"shape pairs/read": _named_shapes(asked)}
    for room in asked.sources.rooms:
        figures |= _room_figures(asked, room)
    if asked.sources.photos:
        figures |= _photo_figures(asked, 15 * asked.settings.exam)
    if "icons" in asked.sources.rooms:
        figures |= _icon_figures(asked)
    asked.model.train()
    return {name: round(value, 4) for name, value in figures.items()}


def _seen(asked: Examined, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with fast_autocast(asked.settings.device):
        return see(asked.model, pixels, None)


def _texts(asked: Examined, texts: Iterable[str]) -> torch.Tensor:
    texts = list(texts)
    with fast_autocast(asked.settings.device):
        parts = [
            read(asked.model, asked.tokenizer, texts[k : k + 256])
            for k in range(0, len(texts), 256)
        ]
    return torch.cat(parts)


def _named_shapes(asked: Examined) -> float:
    """Share of single shapes of held-out pairs that the text tower names, of all pairs."""
    count = asked.settings.exam
    pairs = sorted(wide.HELD_OUT_PAIRS | wide.MORE_HELD_OUT_PAIRS)
    scenes = [wide.single(*pairs[k % len(pairs)], seed=k) for k in range(count)]
    drawn = [wide.WIDE_SHAPES.draw(scene) for scene in scenes]
    pixels = torch.from_numpy(np.stack([padded_pixels(p, asked.settings.side) for p in drawn]))
    pixels = pixels.to(asked.settings.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    names = [(c, k) for c in COLOURS for k in wide.WIDE_KINDS]
    texts = _texts(asked, (wide.phrase("solid", c, k) for c, k in names))
    pooled = F.normalize(_seen(asked, pixels)[1].float(), dim=-1)
    best = (pooled @ texts.T).argmax(-1).tolist()
    return sum(names[b] == pairs[k % len(pairs)] for k, b in enumerate(best)) / count


def _room_figures(asked: Examined, room: str) -> dict[str, float]:
    """Kind, colour and place at objects' centres of a room's held-out scenes."""
    drawn = [
        asked.sources.draw(k, asked.settings.grid, "test", room) for k in range(asked.settings.exam)
    ]
    right: dict[str, list[torch.Tensor]] = {"kind": [], "colour": [], "place": []}
    for start in range(0, len(drawn), 50):
        batch = drawn_batch(drawn[start : start + 50], asked.settings.device)
        features, _ = _seen(asked, batch.pixels)
        centres = (batch.rows[..., patch_targets.CENTRE] == 1) & (
            batch.rows[..., patch_targets.OWNED] == 1
        )
        rows, features = batch.rows[centres], features[centres].float()
        _, _, *classes, places = (
            asked.heads.patch_head(features).float().split(asked.heads.sizes, -1)
        )
        kinds = asked.heads.kind_head(features).argmax(-1)
        colours = classes[asked.heads.columns.index(patch_targets.COLOUR)].argmax(-1)
        right["kind"].append((kinds == rows[:, patch_targets.KIND]).float())
        right["colour"].append((colours == rows[:, patch_targets.COLOUR]).float())
        error = places[:, :2] - patch_targets.geometry(rows)[:, :2]
        right["place"].append(error.abs().mean(-1) / 2)
    return {f"{room}/{name}": torch.cat(values).mean().item() for name, values in right.items()}


def _photo_figures(asked: Examined, count: int) -> dict[str, float]:
    """Top-1 over Tiny ImageNet's 200 classes, and over their kinds."""
    assert asked.sources.photos is not None
    rows = asked.sources.photos.held_out(TINY_IMAGENET_CLASSES)
    rows = np.sort(np.random.default_rng(0).choice(rows, min(count, len(rows)), replace=False))
    classes = photo_classes()[:TINY_IMAGENET_CLASSES]
    texts = _texts(asked, (f"a photo of {noun_phrase(c.name)}" for c in classes))
    hits: dict[str, list[bool]] = {"photos/read": [], "photos/head": [], "photos/kind": []}
    first = len(icon_concepts())
    for start in range(0, len(rows), 100):
        batch = asked.sources.photos.whole(rows[start : start + 100])
        _, pooled = _seen(asked, batch.pixels)
        best = (F.normalize(pooled.float(), dim=-1) @ texts.T).argmax(-1)
        logits = asked.heads.name_head(pooled.float())[:, first : first + TINY_IMAGENET_CLASSES]
        for label, by_text, by_head in zip(
            batch.labels.tolist(), best.tolist(), logits.argmax(-1).tolist(), strict=True
        ):
            hits["photos/read"].append(by_text == label)
            hits["photos/head"].append(by_head == label)
            hits["photos/kind"].append(classes[by_head].kind == classes[label].kind)
    return {name: sum(h) / len(h) for name, h in hits.items()}


def _icon_figures(asked: Examined) -> dict[str, float]:
    """Top-1 over all concepts, of single icons of the held-out set."""
    room = asked.sources.rooms["icons"]
    assert isinstance(room, Icons)
    rng = random.Random(0)
    scenes = [room.alone(number, rng, "test") for number in room.store.concepts("test")]
    texts = _texts(asked, (f"an icon of {noun_phrase(c.name)}" for c in icon_concepts()))
    numbers = {c.name: k for k, c in enumerate(icon_concepts())}
    hits: dict[str, list[bool]] = {"icons/read": [], "icons/head": []}
    for start in range(0, len(scenes), 100):
        part = scenes[start : start + 100]
        pixels = np.stack([padded_pixels(room.draw(scene), asked.settings.side) for scene in part])
        tensor = torch.from_numpy(pixels).to(asked.settings.device)
        _, pooled = _seen(asked, tensor.permute(0, 3, 1, 2).float() / 127.5 - 1)
        best = (F.normalize(pooled.float(), dim=-1) @ texts.T).argmax(-1)
        heads = asked.heads.name_head(pooled.float())[:, : len(texts)].argmax(-1)
        for scene, by_text, by_head in zip(part, best.tolist(), heads.tolist(), strict=True):
            hits["icons/read"].append(by_text == numbers[scene.items[0].kind])
            hits["icons/head"].append(by_head == numbers[scene.items[0].kind])
    return {name: sum(h) / len(h) for name, h in hits.items()}
