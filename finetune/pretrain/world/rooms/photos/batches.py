"""Batches of small photographs for the encoder, with random crops as augmentation.

A whole batch is cropped and enlarged to the encoder's size in one operation on the device.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from finetune.pretrain.world.rooms.photos.store import PhotoStore

LEAST_ZOOM = 0.5
"""The smallest share of the encoder's input that the longer side of a photograph fills."""


@dataclass(frozen=True)
class PhotoBatch:
    """Photographs, padded to squares.

    pixels [n, 3, side, side] in -1..1; labels [n]; boxes [n, 4] in fractions of the square;
    shares [n, 2] of the square's width and height that each photograph fills.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    shares: torch.Tensor


class PhotoBatches:
    """Makes batches of a store's photographs."""

    def __init__(self, store: PhotoStore, side: int, device: str = "cpu") -> None:
        """Make squares of `side` pixels; a GPU keeps all photographs in its memory."""
        self.store, self.side, self.device = store, side, device
        self._on_device: torch.Tensor | None = None
        if device != "cpu":
            self._on_device = torch.from_numpy(np.array(store.images)).to(device)

    def batch(self, count: int, rng: np.random.Generator) -> PhotoBatch:
        """Return random training photographs: cropped, flipped, scaled, padded and degraded."""
        rows = np.sort(rng.choice(self.store.rows["train"], count))
        area, ratio = rng.uniform(0.3, 1.0, count), np.exp(rng.uniform(-0.35, 0.35, count))
        wide = np.minimum(1.0, np.sqrt(area * ratio))
        high = np.minimum(1.0, np.sqrt(area / ratio))
        left, top = rng.uniform(0, 1 - wide), rng.uniform(0, 1 - high)
        # Half keep the shape of their crop and are smaller, padded with the processor's grey. They
        # have few pixels anyway, so no detail is lost, and fewer patches show the whole object.
        keeps_shape = rng.random(count) < 0.5
        zoom = rng.uniform(LEAST_ZOOM, 1.0, count)
        across = np.where(keeps_shape, zoom * wide / np.maximum(wide, high), 1.0)
        down = np.where(keeps_shape, zoom * high / np.maximum(wide, high), 1.0)
        flipped = rng.random(count) < 0.5
        crops = np.stack([left, top, wide, high, across, down, np.where(flipped, -1, 1)], axis=1)
        images = _degraded(self._images(rows), rng)
        mode = "bicubic" if rng.random() < 0.3 else "bilinear"
        return self._crop(rows, images, torch.from_numpy(crops).float().to(self.device), mode)

    def whole(self, rows: np.ndarray) -> PhotoBatch:
        """Return photographs `rows` as the image processor would, without augmentation."""
        crops = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]]).repeat(len(rows), 1)
        return self._crop(rows, self._images(rows), crops.to(self.device), "bicubic")

    def held_out(self, classes: int) -> np.ndarray:
        """Return the rows of the held-out photographs of the first `classes` classes."""
        rows = self.store.rows["test"]
        return rows[self.store.labels[rows] < classes]

    def _images(self, rows: np.ndarray) -> torch.Tensor:
        """Return photographs [n, 3, 64, 64] in -1..1."""
        if self._on_device is None:
            images = torch.from_numpy(np.ascontiguousarray(self.store.images[rows]))
        else:
            images = self._on_device[torch.from_numpy(rows).to(self.device)]
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1

    def _crop(
        self, rows: np.ndarray, images: torch.Tensor, crops: torch.Tensor, mode: str
    ) -> PhotoBatch:
        """Crop each photograph and place it in the square.

        crops [n, 7]: left, top, width and height of the crop in the photograph, its width and
        height in the square, and -1 if it is flipped, else 1.
        """
        left, top, wide, high, across, down, flip = crops.unbind(1)
        # `grid_sample` maps positions in the square to positions in the photograph, both -1..1.
        zero = torch.zeros_like(left)
        theta = torch.stack(
            (
                torch.stack((flip * wide / across, zero, 2 * left + wide - 1), 1),
                torch.stack((zero, high / down, 2 * top + high - 1), 1),
            ),
            1,
        )
        size = (len(rows), 3, self.side, self.side)
        grid = F.affine_grid(theta, list(size), align_corners=False)
        pixels = F.grid_sample(images, grid, mode, "border", align_corners=False)
        steps = (torch.arange(self.side, device=crops.device) + 0.5) / self.side * 2 - 1
        inside_x = steps.abs()[None, :] <= across[:, None]
        inside_y = steps.abs()[None, :] <= down[:, None]
        pixels = pixels * (inside_y[:, None, :, None] & inside_x[:, None, None, :])
        boxes = torch.from_numpy(self.store.boxes[rows]).to(crops.device).float() / 255
        xs = (boxes[:, 0::2] - left[:, None]) / wide[:, None]
        xs = torch.where(flip[:, None] < 0, 1 - xs.flip(1), xs)
        ys = (boxes[:, 1::2] - top[:, None]) / high[:, None]
        xs = (0.5 + (xs.clamp(0, 1) - 0.5) * across[:, None]).clamp(0, 1)
        ys = (0.5 + (ys.clamp(0, 1) - 0.5) * down[:, None]).clamp(0, 1)
        boxes = torch.stack((xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]), 1)
        labels = torch.from_numpy(self.store.labels[rows]).to(crops.device)
        return PhotoBatch(pixels.clamp(-1, 1), labels, boxes, torch.stack((across, down), 1))


def _degraded(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Vary colour, contrast, sharpness and noise; [n, 3, height, width] in -1..1.

    Enlarged photographs are blurred, users' are not. Therefore some are sharpened or get noise.
    """
    count, device = len(pixels), pixels.device

    def normal(spread: float, channels: int = 1) -> torch.Tensor:
        values = rng.normal(0, spread, (count, channels, 1, 1))
        return torch.from_numpy(values).float().to(device)

    smooth = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    sharper = torch.from_numpy(rng.uniform(-0.6, 1.2, (count, 1, 1, 1))).float().to(device)
    pixels = pixels + sharper * (pixels - smooth)
    pixels = pixels * torch.exp(normal(0.12)) + normal(0.08) + normal(0.04, 3)
    if rng.random() < 0.3:
        pixels = pixels + 0.06 * torch.randn_like(pixels)
    return pixels.clamp(-1, 1)
