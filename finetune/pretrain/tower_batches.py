"""Batches of the encoder stage: pictures of all rooms, and texts that are true or false of them."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from finetune.pretrain.picture_mix import Drawn, Pool, Sources, photo_targets
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
    return list(asked), _truth(shown, list(asked), list(asked.values()))


def _truth(shown: list[Shown], texts: list[str], asked: list[tuple[str, str, int]]) -> torch.Tensor:
    """Tell which texts, each with its style, word and owner, are true: [pictures, texts]."""
    having: dict[str, list[int]] = defaultdict(list)
    captioned: dict[str, list[int]] = defaultdict(list)
    for k, picture in enumerate(shown):
        captioned[picture.caption].append(k)
        for word in picture.words:
            having[word].append(k)
    unknown = [k for k, picture in enumerate(shown) if picture.style == "unknown"]
    true = np.full((len(shown), len(texts)), -1, np.float32)
    for t, (text, (style, word, owner)) in enumerate(zip(texts, asked, strict=True)):
        if owner >= 0:
            true[captioned[text], t] = 1
        else:
            true[unknown, t] = 0
            fitting = [k for k in having[word] if style in ("", shown[k].style)]
            true[fitting, t] = 1
    return torch.from_numpy(true)


@dataclass
class Batch:
    """Pictures with what is known of them.

    pixels [n, 3, side, side]; rows [n, patches, COLUMNS] of patch targets; labels [n], the names;
    shares [n, 2]: how much of the square's width and height each picture takes.
    """

    pixels: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    shares: torch.Tensor
    shown: list[Shown]


def drawn_batch(drawn: list[Drawn], device: str) -> Batch:
    """Stack drawn pictures and icons."""
    pixels = torch.from_numpy(np.stack([d.pixels for d in drawn])).to(device)
    rows = torch.from_numpy(np.stack([d.targets for d in drawn])).long().to(device)
    labels = torch.tensor([d.icon for d in drawn])
    styles = {"icons": "icon", "outside": "unknown"}
    shown = [Shown(styles.get(d.room, "drawing"), d.words, d.caption) for d in drawn]
    normal = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    shares = torch.tensor([d.shares for d in drawn])
    return Batch(normal, rows, labels.to(device), shares.to(device), shown)


def mixed_batch(
    settings: Settings, sources: Sources, pool: Pool, rng: np.random.Generator
) -> Batch:
    """Pick drawn pictures, and photographs where they are at hand."""
    photos = round(settings.batch * settings.photo_share) if sources.photos else 0
    batch = drawn_batch(pool.batch(settings.batch - photos, rng), settings.device)
    if not sources.photos:
        return batch
    taken = sources.photos.batch(photos, rng)
    shown = [Shown("photo", photo_classes()[label].words) for label in taken.labels.tolist()]
    return Batch(
        torch.cat((batch.pixels, taken.pixels)),
        torch.cat((batch.rows, photo_targets(taken, settings.grid))),
        torch.cat((batch.labels, taken.labels + len(icon_concepts()))),
        torch.cat((batch.shares, taken.shares)),
        batch.shown + shown,
    )
