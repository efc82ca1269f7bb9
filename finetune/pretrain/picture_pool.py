"""The encoder's training pictures: drawn rooms and icons from a pool, photographs in fresh crops.

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
from finetune.pretrain.padding import picture_shares
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.world import QA, Room, Scene, Split
from finetune.pretrain.world.drawing.degradation import degraded
from finetune.pretrain.world.mixture import open_rooms
from finetune.pretrain.world.rooms.icons.store import concepts_by_name
from finetune.pretrain.world.rooms.photos.batches import PhotoBatch, PhotoBatches
from finetune.pretrain.world.rooms.photos.room import Photos
from finetune.pretrain.world.rooms.shapes import wide

ENCODER_ROOM_WEIGHTS = {
    "wide shapes": 10.0,
    "things": 4.0,
    "writing": 3.0,
    "digits": 2.0,
    "charts": 3.0,
    "plots": 2.0,
    "outside": 0.4,
    "icons": 12.0,
}
"""How often each room is drawn for the encoder; photographs have a share of their own."""
LEAST_READABLE = {"wide shapes": 24, "icons": 48, "things": 64, "digits": 72, "plots": 256}
"""The fewest pixels of the longer side after degradation; rooms with text keep 128."""


def true_words(scene: Scene) -> frozenset[str]:
    """Return the words for what a drawn picture shows."""
    if scene.room == "icons":
        return frozenset(w for i in scene.items for w in concepts_by_name()[i.kind].words)
    if scene.room in ("things", "wide shapes"):
        return frozenset(item.word for item in scene.items)
    return frozenset()


def icon_class(scene: Scene) -> int:
    """Return the concept's index if all icons of a picture show one concept, else -1."""
    kinds = {item.kind for item in scene.items} if scene.room == "icons" else set()
    index = patch_targets.KIND_INDEX
    return index["icons", kinds.pop()] - patch_targets.FIRST_ICON_CLASS if len(kinds) == 1 else -1


def caption(room: Room, scene: Scene, seed: int) -> str:
    """Return a caption of a drawn picture, or "" if its room has none."""
    if scene.room == "icons":
        return ", ".join(item.word for item in scene.items[:4])
    if scene.room == "wide shapes":
        return wide.caption(scene)
    qas: list[QA] = room.ask(scene, random.Random(seed), "train")
    for skill in ("caption", "describe"):
        for qa in qas:
            if qa.skill == skill:
                return qa.sentence
    fact_skills = ("position", "colour", "shape", "read", "value", "outside")
    facts = list(dict.fromkeys(qa.sentence for qa in qas if qa.skill in fact_skills))
    return " ".join(facts[:3])


@dataclass(frozen=True)
class DrawnPicture:
    """A drawn picture with its targets: pixels are [side, side, 3] uint8."""

    room: str
    pixels: np.ndarray
    targets: np.ndarray
    """Rows of patch targets, [patches * patches, COLUMNS]."""
    caption: str
    words: frozenset[str]
    icon_class: int
    """See `icon_class`."""
    shares: tuple[float, float]
    """The shares of the square's width and height that the picture fills; the rest is padding."""


@dataclass
class PictureSources:
    """The rooms and photographs to train on; `missing` lists what there is no data for."""

    rooms: dict[str, Room]
    photos: PhotoBatches | None
    missing: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, photos: Path | None, icons: Path | None, side: int, device: str = "cpu"
    ) -> "PictureSources":
        """Open the rooms, and the folders of packed data (see `pack_data`) that are given."""
        rooms, missing = open_rooms(photos, icons)
        batches = None
        if isinstance(room := rooms.pop("photos", None), Photos):
            batches = PhotoBatches(room.store, side, device)
        return cls(rooms, batches, missing)

    def draw(
        self, seed: int, grid: PatchGrid, split: Split = "train", room: str = ""
    ) -> DrawnPicture:
        """Draw picture number `seed` of a room, or of a random room.

        Pictures of the training split are degraded, as users' pictures are.
        """
        rng = random.Random(f"mix-{split}-{room}-{seed}")
        if not room:
            names = list(self.rooms)
            room = rng.choices(names, [ENCODER_ROOM_WEIGHTS[name] for name in names])[0]
        scene = self.rooms[room].make(rng, split)
        picture = self.rooms[room].draw(scene)
        if split == "train":
            picture = degraded(picture, rng, LEAST_READABLE.get(room, 128))
        return DrawnPicture(
            room,
            grid.pixels(picture),
            grid.targets(scene),
            caption(self.rooms[room], scene, seed),
            true_words(scene),
            icon_class(scene),
            picture_shares(scene),
        )


class PicturePool:
    """Up to `capacity` drawn pictures; the oldest is replaced first.

    `next_seed` is the number of the next picture to draw, so that a resumed run continues with
    new pictures.
    """

    def __init__(
        self,
        sources: PictureSources,
        grid: PatchGrid,
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
            grid: The encoder's input.
            capacity: The most pictures in the pool.
            next_seed: The number of the first picture.
            workers: The number of processes that draw in the background; with none, `refill` draws.
            photos: The folder of packed photographs, which every worker opens for itself.
            icons: The folder of packed icons, likewise.
        """
        self.sources, self.grid, self.capacity = sources, grid, capacity
        self.next_seed = next_seed
        self.pictures: list[DrawnPicture] = []
        self._added = 0
        self._pending: deque[Future[list[DrawnPicture]]] = deque()
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        if workers:
            self._executor = ProcessPoolExecutor(
                workers, get_context("spawn"), _open_in_worker, (photos, icons, grid)
            )

    def refill(self, count: int) -> None:
        """Draw `count` new pictures, or add what the workers have finished.

        With workers it waits only while the pool holds fewer than `count` pictures.
        """
        if self._executor is None:
            for seed in range(self.next_seed, self.next_seed + count):
                self._add(self.sources.draw(seed, self.grid))
            self.next_seed += count
            return
        while len(self._pending) < 3 * self._workers:
            self._pending.append(self._executor.submit(_draw_in_worker, self.next_seed, CHUNK))
            self.next_seed += CHUNK
        wait = len(self.pictures) < min(count, self.capacity)
        while self._pending and (self._pending[0].done() or wait):
            for picture in self._pending.popleft().result():
                self._add(picture)
            wait = False

    def _add(self, picture: DrawnPicture) -> None:
        if len(self.pictures) < self.capacity:
            self.pictures.append(picture)
        else:
            self.pictures[self._added % self.capacity] = picture
        self._added += 1

    def batch(self, count: int, rng: np.random.Generator) -> list[DrawnPicture]:
        """Return random pictures of the pool."""
        return [self.pictures[k] for k in rng.integers(0, len(self.pictures), count)]

    def close(self) -> None:
        """Stop the workers."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


CHUNK = 32
"""The number of pictures that a worker draws per task."""
_worker_state: dict[str, Any] = {}
"""The sources and the grid of a worker process."""


def _open_in_worker(photos: Path | None, icons: Path | None, grid: PatchGrid) -> None:
    _worker_state.update(sources=PictureSources.open(photos, icons, grid.side), grid=grid)


def _draw_in_worker(first: int, count: int) -> list[DrawnPicture]:
    draw, grid = _worker_state["sources"].draw, _worker_state["grid"]
    return [draw(seed, grid) for seed in range(first, first + count)]


def photo_targets(batch: PhotoBatch, grid: PatchGrid) -> torch.Tensor:
    """Return patch targets: the class for patches inside the object's box, the rest ignored.

    The result is long, [n, patches * patches, COLUMNS].
    """
    count, patches = len(batch.labels), grid.patches
    rows = torch.zeros(count, patches, patches, patch_targets.COLUMNS, dtype=torch.long)
    rows = rows.to(batch.labels.device)
    centres = (torch.arange(patches, device=rows.device) + 0.5) / patches
    left, top, right, bottom = batch.boxes.unbind(1)
    across = (centres >= left[:, None]) & (centres <= right[:, None])
    down = (centres >= top[:, None]) & (centres <= bottom[:, None])
    inside = down[:, :, None] & across[:, None, :]
    rows[..., patch_targets.OWNED] = torch.where(inside, 1, 2)
    rows[..., patch_targets.KIND] = (batch.labels + patch_targets.FIRST_PHOTO_CLASS)[:, None, None]
    middle = torch.stack(((left + right) / 2, (top + bottom) / 2), 1)
    size = torch.stack((right - left, bottom - top), 1)
    # As for drawn pictures, positions are fractions of the picture without its padding.
    box = torch.cat(((middle - 0.5) / batch.shares + 0.5, size / batch.shares), 1).clamp(0, 1)
    positions = (box * patch_targets.UNITS).round().long()
    rows[..., patch_targets.X :] = positions[:, None, None, :]
    return rows.flatten(1, 2)
