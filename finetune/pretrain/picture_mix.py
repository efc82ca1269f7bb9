"""What the encoder learns from: drawn rooms and icons from a pool, photographs as they come.

Every picture comes with its patch targets, a caption where the room has one, and the words that
are true of it.
"""

import random
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.pretrain import patch_targets
from finetune.pretrain.padding import padded_boxes, padded_pixels, picture_shares
from finetune.pretrain.scene_pool import caption as asked_caption
from finetune.pretrain.world import ROOMS, Room, Scene, Split
from finetune.pretrain.world.drawing.degradation import degraded
from finetune.pretrain.world.rooms.icons.room import Icons
from finetune.pretrain.world.rooms.icons.store import (
    IconStore,
    concepts_by_name,
    icon_concepts,
)
from finetune.pretrain.world.rooms.photos.batches import PhotoBatch, PhotoBatches
from finetune.pretrain.world.rooms.photos.store import PhotoStore, photo_classes
from finetune.pretrain.world.rooms.shapes import wide

ROOM_WEIGHTS = {
    "wide shapes": 10.0,
    "things": 4.0,
    "writing": 3.0,
    "digits": 2.0,
    "charts": 3.0,
    "outside": 0.4,
    "icons": 12.0,
}
"""Shares of the drawn pictures. The old room of shapes, where a square is a rectangle, is left."""
LEAST_READABLE = {"wide shapes": 24, "icons": 48, "things": 64, "digits": 72}
"""The fewest pixels that degradation leaves; rooms that are read keep more (128)."""

_SHAPES_FROM = patch_targets.BLOCKS["shapes"]
ICONS_FROM = patch_targets.KIND_CLASSES
PHOTOS_FROM = ICONS_FROM + len(icon_concepts())
KIND_CLASSES = PHOTOS_FROM + len(photo_classes())
KIND_INDEX: dict[tuple[str, str], int] = {
    **patch_targets.KIND_INDEX,
    **{("wide shapes", kind): _SHAPES_FROM + k for k, kind in enumerate(wide.WIDE_KINDS)},
    **{("icons", c.name): ICONS_FROM + k for k, c in enumerate(icon_concepts())},
}
"""The classes of `patch_targets`, and after them those of icons and photographs."""


@dataclass(frozen=True)
class Grid:
    """The encoder's picture: `side` pixels and `patches` patches along an edge."""

    side: int
    patches: int


def words_of(scene: Scene) -> frozenset[str]:
    """Return what may be said to be in a drawn picture."""
    if scene.room == "icons":
        return frozenset(w for i in scene.items for w in concepts_by_name()[i.kind].words)
    if scene.room in ("things", "wide shapes"):
        return frozenset(item.word for item in scene.items)
    return frozenset()


def icon_of(scene: Scene) -> int:
    """Return the concept of a picture that shows icons of one concept only, or -1."""
    kinds = {item.kind for item in scene.items} if scene.room == "icons" else set()
    return KIND_INDEX["icons", kinds.pop()] - ICONS_FROM if len(kinds) == 1 else -1


def caption_of(room: Room, scene: Scene, seed: int) -> str:
    """Return a description of a drawn picture, or ""."""
    if scene.room == "icons":
        return ", ".join(item.word for item in scene.items[:4])
    if scene.room == "wide shapes":
        return wide.caption(scene)
    return asked_caption(room, scene, seed)


@dataclass(frozen=True)
class Drawn:
    """One picture from a pool: pixels [side, side, 3] uint8 and what belongs to it."""

    room: str
    pixels: np.ndarray
    targets: np.ndarray
    caption: str
    words: frozenset[str]
    icon: int
    """The number of the concept of a picture of one icon, or of icons that are all alike; or -1."""
    shares: tuple[float, float]
    """How much of the square's width and height the picture takes; the rest is padding."""


@dataclass
class Sources:
    """The rooms and stores at hand. `missing` says what training does without."""

    rooms: dict[str, Room]
    photos: PhotoBatches | None
    missing: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, photos: Path | None, icons: Path | None, side: int, device: str = "cpu"
    ) -> "Sources":
        """Open packed photographs and icons (see `pack_data`), where they are given."""
        rooms = {name: room for name, room in ROOMS.items() if name in ROOM_WEIGHTS}
        store = PhotoStore.open(photos) if photos else None
        rooms["wide shapes"] = wide.WideShapes(store)
        missing = []
        if icons:
            rooms["icons"] = Icons(IconStore.open(icons), store)
        else:
            missing.append("No --icons: the encoder will not know icons.")
        shown = None
        if store:
            shown = PhotoBatches(store, side, device)
        else:
            missing.append("No --photos: the encoder will not know photographs.")
        return cls(rooms, shown, missing)

    def draw(self, seed: int, grid: Grid, split: Split = "train", room: str = "") -> Drawn:
        """Draw picture number `seed`, of `room` or of any; degraded if it is to train on."""
        rng = random.Random(f"mix-{split}-{room}-{seed}")
        if not room:
            names = list(self.rooms)
            room = rng.choices(names, [ROOM_WEIGHTS[name] for name in names])[0]
        scene = self.rooms[room].make(rng, split)
        picture = self.rooms[room].draw(scene)
        if split == "train":
            picture = degraded(picture, rng, LEAST_READABLE.get(room, 128))
        return Drawn(
            room,
            padded_pixels(picture, grid.side),
            patch_targets.patches(scene, grid.patches, KIND_INDEX, padded_boxes(scene)),
            caption_of(self.rooms[room], scene, seed),
            words_of(scene),
            icon_of(scene),
            picture_shares(scene),
        )


class Pool:
    """`capacity` drawn pictures, the oldest replaced first; `next_seed` counts all ever drawn."""

    def __init__(
        self,
        sources: Sources,
        grid: Grid,
        capacity: int,
        next_seed: int = 0,
        *,
        workers: int = 0,
        photos: Path | None = None,
        icons: Path | None = None,
    ) -> None:
        """Make an empty pool.

        Args:
            sources: The rooms to draw.
            grid: The encoder's picture.
            capacity: The most pictures that are kept.
            next_seed: The number of the first picture.
            workers: Processes that draw ahead; with none, pictures are drawn when they are due.
            photos: Packed photographs, which every worker opens for itself.
            icons: Packed icons, likewise.
        """
        self.sources, self.grid, self.capacity = sources, grid, capacity
        self.next_seed = next_seed
        self.drawn: list[Drawn] = []
        self._added = 0
        self._ahead: deque[Future[list[Drawn]]] = deque()
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        if workers:
            self._executor = ProcessPoolExecutor(
                workers, get_context("spawn"), _open_in_worker, (photos, icons, grid)
            )

    def refill(self, count: int) -> None:
        """Draw `count` new pictures, or take what the workers have drawn by now."""
        if self._executor is None:
            for seed in range(self.next_seed, self.next_seed + count):
                self._add(self.sources.draw(seed, self.grid))
            self.next_seed += count
            return
        while len(self._ahead) < 3 * self._workers:
            self._ahead.append(self._executor.submit(_draw_in_worker, self.next_seed, CHUNK))
            self.next_seed += CHUNK
        short = len(self.drawn) < min(count, self.capacity)
        while self._ahead and (self._ahead[0].done() or short):
            for drawn in self._ahead.popleft().result():
                self._add(drawn)
            short = False

    def _add(self, drawn: Drawn) -> None:
        if len(self.drawn) < self.capacity:
            self.drawn.append(drawn)
        else:
            self.drawn[self._added % self.capacity] = drawn
        self._added += 1

    def batch(self, count: int, rng: np.random.Generator) -> list[Drawn]:
        """Pick random pictures of the pool."""
        return [self.drawn[k] for k in rng.integers(0, len(self.drawn), count)]

    def close(self) -> None:
        """End the workers."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


CHUNK = 32
"""Pictures that a worker draws at a time."""
_in_worker: dict[str, Any] = {}
"""A worker's own sources and grid."""


def _open_in_worker(photos: Path | None, icons: Path | None, grid: Grid) -> None:
    _in_worker.update(sources=Sources.open(photos, icons, grid.side), grid=grid)


def _draw_in_worker(first: int, count: int) -> list[Drawn]:
    draw, grid = _in_worker["sources"].draw, _in_worker["grid"]
    return [draw(seed, grid) for seed in range(first, first + count)]


def photo_targets(batch: PhotoBatch, grid: Grid) -> torch.Tensor:
    """Give patches inside an object's box its class; the others are not judged.

    Returns [n, patches * patches, COLUMNS] long.
    """
    count, patches = len(batch.labels), grid.patches
    rows = torch.zeros(count, patches, patches, patch_targets.COLUMNS, dtype=torch.long)
    rows = rows.to(batch.labels.device)
    rows[..., patch_targets.OWNED] = 2
    middles = (torch.arange(patches, device=rows.device) + 0.5) / patches
    left, top, right, bottom = batch.boxes.unbind(1)
    across = (middles >= left[:, None]) & (middles <= right[:, None])
    down = (middles >= top[:, None]) & (middles <= bottom[:, None])
    inside = down[:, :, None] & across[:, None, :]
    rows[..., patch_targets.OWNED] = torch.where(inside, 1, 2)
    rows[..., patch_targets.KIND] = (batch.labels + PHOTOS_FROM)[:, None, None]
    centres = torch.stack(((left + right) / 2, (top + bottom) / 2), 1)
    spans = torch.stack((right - left, bottom - top), 1)
    # Places are fractions of the picture without its padding, as those of drawn pictures are.
    box = torch.cat(((centres - 0.5) / batch.shares + 0.5, spans / batch.shares), 1).clamp(0, 1)
    places = (box * patch_targets.UNITS).round().long()
    rows[..., patch_targets.X :] = places[:, None, None, :]
    return rows.flatten(1, 2)
