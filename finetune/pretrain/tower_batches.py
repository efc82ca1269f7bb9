"""Batches for the two towers: pictures from all sources, and texts that describe some of them."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from finetune.pretrain.patch_grid import normalised
from finetune.pretrain.picture_pool import DrawnPicture, PicturePool, PictureSources, photo_targets
from finetune.pretrain.towers import TowerTrainingConfig
from finetune.pretrain.world.rooms.concepts import noun_phrase
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import photo_classes

# {0} is the word, {1} the word with its article.
PLAIN_TEMPLATES = (
    "{0}",
    "{1}",
    "{1}.",
    "the {0}",
    "There is {1}.",
    "a picture of {1}",
    "{0} picture",
)
PHOTO_TEMPLATES = ("a photo of {1}", "a photograph of {1}", "A photo of {1}.")
ICON_TEMPLATES = ("an icon of {1}", "{0} emoji", "a drawing of {1}")


@dataclass(frozen=True)
class PictureDescription:
    """What is known about a picture, to decide which texts are true of it.

    `style` is "photo", "icon", "drawing" or "unknown". `words` names what the picture shows; those
    of photographs are in order, the most common one first.
    """

    style: str
    words: frozenset[str] | tuple[str, ...]
    caption: str = ""


@dataclass(frozen=True)
class _WordText:
    """A text that names a word, and the style of picture that it claims ("" for any)."""

    word: str
    style: str


def sample_texts(
    descriptions: list[PictureDescription], rng: np.random.Generator
) -> tuple[list[str], torch.Tensor]:
    """Sample texts about some of the pictures, and say which pictures each is true of.

    Returns:
        The texts, and their targets [pictures, texts]: 1 true, -1 false, 0 unknown.
    """
    # A text that names a word, or None for a caption.
    sampled: dict[str, _WordText | None] = {}
    for picture in descriptions:
        if picture.words and (picture.style in ("photo", "icon") or rng.random() < 0.3):
            words = sorted(picture.words)
            word = words[rng.integers(len(words))]
            if isinstance(picture.words, tuple):  # prefer the common names at the front
                word = picture.words[min(len(words) - 1, int(rng.exponential(0.7)))]
            style = picture.style if rng.random() < 0.4 else ""
            templates = {"photo": PHOTO_TEMPLATES, "icon": ICON_TEMPLATES}.get(
                style, PLAIN_TEMPLATES
            )
            text = templates[rng.integers(len(templates))].format(word, noun_phrase(word))
            sampled[text] = _WordText(word, style if templates is not PLAIN_TEMPLATES else "")
        elif picture.caption and rng.random() < 0.5:
            sampled[picture.caption] = None
    return list(sampled), _text_targets(descriptions, sampled)


def _text_targets(
    descriptions: list[PictureDescription], sampled: dict[str, _WordText | None]
) -> torch.Tensor:
    """Return the targets of `sample_texts`."""
    with_word: dict[str, list[int]] = defaultdict(list)
    with_caption: dict[str, list[int]] = defaultdict(list)
    for k, picture in enumerate(descriptions):
        with_caption[picture.caption].append(k)
        for word in picture.words:
            with_word[word].append(k)
    unknown = [k for k, picture in enumerate(descriptions) if picture.style == "unknown"]
    targets = np.full((len(descriptions), len(sampled)), -1, np.float32)
    for t, (text, named) in enumerate(sampled.items()):
        if named is None:
            targets[with_caption[text], t] = 1
        else:
            targets[unknown, t] = 0
            matching = [
                k for k in with_word[named.word] if named.style in ("", descriptions[k].style)
            ]
            targets[matching, t] = 1
    return torch.from_numpy(targets)


@dataclass
class TowerBatch:
    """Pictures with their targets.

    pixels [n, 3, side, side] in -1..1; rows [n, patches, COLUMNS] of patch targets; labels [n],
    the class of icons and photographs, or -1; shares [n, 2] of the square's width and height that
    each picture fills.
    """

    pixels: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    shares: torch.Tensor
    descriptions: list[PictureDescription]


def drawn_batch(pictures: list[DrawnPicture], device: str) -> TowerBatch:
    """Stack drawn pictures."""
    pixels = torch.from_numpy(np.stack([p.pixels for p in pictures])).to(device)
    rows = torch.from_numpy(np.stack([p.targets for p in pictures])).long().to(device)
    labels = torch.tensor([p.icon_class for p in pictures])
    shares = torch.tensor([p.shares for p in pictures])
    styles = {"icons": "icon", "outside": "unknown"}
    descriptions = [
        PictureDescription(styles.get(p.room, "drawing"), p.words, p.caption) for p in pictures
    ]
    return TowerBatch(normalised(pixels), rows, labels.to(device), shares.to(device), descriptions)


def mixed_batch(
    config: TowerTrainingConfig,
    sources: PictureSources,
    pool: PicturePool,
    rng: np.random.Generator,
) -> TowerBatch:
    """Return drawn pictures of the pool, and photographs if there are any."""
    photo_count = config.photos_per_batch if sources.photos else 0
    batch = drawn_batch(pool.batch(config.batch - photo_count, rng), config.device)
    if not sources.photos:
        return batch
    photos = sources.photos.batch(photo_count, rng)
    descriptions = [
        PictureDescription("photo", photo_classes()[label].words)
        for label in photos.labels.tolist()
    ]
    return TowerBatch(
        torch.cat((batch.pixels, photos.pixels)),
        torch.cat((batch.rows, photo_targets(photos, config.grid))),
        torch.cat((batch.labels, photos.labels + len(icon_concepts()))),
        torch.cat((batch.shares, photos.shares)),
        batch.descriptions + descriptions,
    )
