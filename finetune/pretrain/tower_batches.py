"""Batches of the encoder stage: pictures of all rooms, and texts that are true or false of them."""

from dataclasses import dataclass

import numpy as np
import torch

from finetune.pretrain import patch_targets
from finetune.pretrain.picture_mix import ICONS_FROM, Drawn, Pool, Sources, photo_targets
from finetune.pretrain.towers import Settings
from finetune.pretrain.world.rooms.concepts import noun_phrase
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import photo_classes

# {0} is the word, {1} the word with its article.
PLAIN = ("{0}", "{1}", "{1}.", "the {0}", "There is {1}.", "a picture of {1}", "{0} picture")
OF_PHOTOS = ("a photo of {1}", "a photograph of {1}", "A photo of {1}.")
OF_ICONS = ("an icon of {1}", "{0} emoji", "a drawing of {1}")


@dataclass(frozen=True)
class Shown:
    """What is known of a picture of a batch."""

    style: str
    words: frozenset[str] | tuple[str, ...]
    caption: str = ""


def texts_for(shown: list[Shown], rng: np.random.Generator) -> tuple[list[str], torch.Tensor]:
    """Pick texts about some of the pictures, and tell of which they are true [pictures, texts]."""
    asked: dict[str, tuple[str, str, int]] = {}
    for k, picture in enumerate(shown):
        if picture.words and (picture.style in ("photo", "icon") or rng.random() < 0.3):
            words = sorted(picture.words)
            word = words[rng.integers(len(words))]
            if isinstance(picture.words, tuple):  # the commonest name first
                word = picture.words[min(len(words) - 1, int(rng.exponential(0.7)))]
            style = picture.style if rng.random() < 0.4 else ""
            templates = {"photo": OF_PHOTOS, "icon": OF_ICONS}.get(style, PLAIN)
            text = templates[rng.integers(len(templates))].format(word, noun_phrase(word))
            asked[text] = (style if templates is not PLAIN else "", word, -1)
        elif picture.caption and rng.random() < 0.5:
            asked[picture.caption] = ("", "", k)
    true = torch.full((len(shown), len(asked)), -1.0)
    for t, (text, (style, word, owner)) in enumerate(asked.items()):
        for k, picture in enumerate(shown):
            if owner >= 0:
                if picture.caption == text:
                    true[k, t] = 1
            elif word in picture.words and style in ("", picture.style):
                true[k, t] = 1
            elif picture.style == "unknown":
                true[k, t] = 0
    return list(asked), true


@dataclass
class Batch:
    """Pixels [n, 3, side, side], rows [n, patches, COLUMNS], names [n], and what is shown."""

    pixels: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    shown: list[Shown]


def drawn_batch(drawn: list[Drawn], device: str) -> Batch:
    """Stack drawn pictures and icons."""
    pixels = torch.from_numpy(np.stack([d.pixels for d in drawn])).to(device)
    rows = torch.from_numpy(np.stack([d.targets for d in drawn])).long().to(device)
    labels = torch.full((len(drawn),), -1)
    shown = []
    for k, d in enumerate(drawn):
        if d.room == "icons":
            kinds = np.unique(d.targets[d.targets[:, patch_targets.OWNED] == 1, patch_targets.KIND])
            if len(kinds) == 1:
                labels[k] = int(kinds[0]) - ICONS_FROM
        style = {"icons": "icon", "outside": "unknown"}.get(d.room, "drawing")
        shown.append(Shown(style, d.words, d.caption))
    normal = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return Batch(normal, rows, labels.to(device), shown)


def mixed_batch(
    settings: Settings, sources: Sources, pool: Pool, rng: np.random.Generator
) -> Batch:
    """Pick drawn pictures, and photographs where they are at hand."""
    photos = round(settings.batch * settings.photo_share) if sources.photos else 0
    batch = drawn_batch(pool.batch(settings.batch - photos, rng), settings.device)
    if not sources.photos:
        return batch
    taken = sources.photos.batch(photos, rng, settings.device)
    shown = [Shown("photo", photo_classes()[label].words) for label in taken.labels.tolist()]
    return Batch(
        torch.cat((batch.pixels, taken.pixels)),
        torch.cat((batch.rows, photo_targets(taken, settings.grid))),
        torch.cat((batch.labels, taken.labels + len(icon_concepts()))),
        batch.shown + shown,
    )
