"""Batches of small photographs for the encoder, in many cuts.

They are enlarged to the encoder's size on the way, so that a batch is cut on the device at once.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from finetune.pretrain.world.rooms.photos.store import PhotoStore

LEAST_ZOOM = 0.5
"""How small a photograph is shown at least, of the encoder's picture."""


@dataclass(frozen=True)
class PhotoBatch:
    """Photographs, padded to squares.

    pixels [n, 3, side, side] in -1..1; labels [n]; boxes [n, 4] in fractions of the square;
    shares [n, 2]: how much of the square's width and height the photograph takes.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    shares: torch.Tensor


class PhotoBatches:
    """See the module's text."""

    def __init__(self, store: PhotoStore, side: int, device: str = "cpu") -> None:
        """Use a store's photographs as pictures of `side` pixels; a GPU holds all of them."""
        self.store, self.side, self.device = store, side, device
        self._held: torch.Tensor | None = None
        if device != "cpu":
            self._held = torch.from_numpy(np.array(store.images)).to(device)

    def batch(self, count: int, rng: np.random.Generator) -> PhotoBatch:
        """Pick random training photographs in random cuts, flipped, scaled, padded and worn."""
        rows = np.sort(rng.choice(self.store.numbers["train"], count))
        area, ratio = rng.uniform(0.3, 1.0, count), np.exp(rng.uniform(-0.35, 0.35, count))
        wide = np.minimum(1.0, np.sqrt(area * ratio))
        high = np.minimum(1.0, np.sqrt(area / ratio))
        left, top = rng.uniform(0, 1 - wide), rng.uniform(0, 1 - high)
        # Half keep the cut's own shape, on the grey that the processor pads with, and are smaller:
        # these photographs have few pixels, so that nothing is lost and fewer patches show all.
        kept = rng.random(count) < 0.5
        zoom = rng.uniform(LEAST_ZOOM, 1.0, count)
        across = np.where(kept, zoom * wide / np.maximum(wide, high), 1.0)
        down = np.where(kept, zoom * high / np.maximum(wide, high), 1.0)
        flipped = rng.random(count) < 0.5
        cuts = np.stack([left, top, wide, high, across, down, np.where(flipped, -1, 1)], axis=1)
        images = _worn(self._images(rows), rng)
        mode = "bicubic" if rng.random() < 0.3 else "bilinear"
        return self._cut(rows, images, torch.from_numpy(cuts).float().to(self.device), mode)

    def whole(self, rows: np.ndarray) -> PhotoBatch:
        """Show photographs `rows` as the processor does."""
        cuts = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]]).repeat(len(rows), 1)
        return self._cut(rows, self._images(rows), cuts.to(self.device), "bicubic")

    def held_out(self, classes: int) -> np.ndarray:
        """Return the rows of the held-out photographs of the first `classes` classes."""
        rows = self.store.numbers["test"]
        return rows[self.store.labels[rows] < classes]

    def _images(self, rows: np.ndarray) -> torch.Tensor:
        """Read photographs [n, 3, 64, 64] in -1..1."""
        if self._held is None:
            images = torch.from_numpy(np.ascontiguousarray(self.store.images[rows]))
        else:
            images = self._held[torch.from_numpy(rows).to(self.device)]
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1

    def _cut(
        self, rows: np.ndarray, images: torch.Tensor, cuts: torch.Tensor, mode: str
    ) -> PhotoBatch:
        """Sample each photograph once.

        cuts [n, 7]: left, top, width and height of the cut in the photograph, its width and height
        in the picture, and -1 where it is flipped.
        """
        left, top, wide, high, across, down, flip = cuts.unbind(1)
        # `grid_sample` maps places of the picture, -1..1, to places of the photograph, -1..1.
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
        steps = (torch.arange(self.side, device=cuts.device) + 0.5) / self.side * 2 - 1
        inside_x = steps.abs()[None, :] <= across[:, None]
        inside_y = steps.abs()[None, :] <= down[:, None]
        pixels = pixels * (inside_y[:, None, :, None] & inside_x[:, None, None, :])
        boxes = torch.from_numpy(self.store.boxes[rows]).to(cuts.device).float() / 255
        xs = (boxes[:, 0::2] - left[:, None]) / wide[:, None]
        xs = torch.where(flip[:, None] < 0, 1 - xs.flip(1), xs)
        ys = (boxes[:, 1::2] - top[:, None]) / high[:, None]
        xs = (0.5 + (xs.clamp(0, 1) - 0.5) * across[:, None]).clamp(0, 1)
        ys = (0.5 + (ys.clamp(0, 1) - 0.5) * down[:, None]).clamp(0, 1)
        boxes = torch.stack((xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]), 1)
        labels = torch.from_numpy(self.store.labels[rows]).to(cuts.device)
        return PhotoBatch(pixels.clamp(-1, 1), labels, boxes, torch.stack((across, down), 1))


def _worn(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Vary colour, contrast, sharpness and grain; [n, 3, height, width] in -1..1.

    Enlarged photographs are blurred and users' are not: some get harder edges, or grain.
    """
    count, device = len(pixels), pixels.device

    def drawn(spread: float, channels: int = 1) -> torch.Tensor:
        values = rng.normal(0, spread, (count, channels, 1, 1))
        return torch.from_numpy(values).float().to(device)

    smooth = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    sharper = torch.from_numpy(rng.uniform(-0.6, 1.2, (count, 1, 1, 1))).float().to(device)
    pixels = pixels + sharper * (pixels - smooth)
    pixels = pixels * torch.exp(drawn(0.12)) + drawn(0.08) + drawn(0.04, 3)
    if rng.random() < 0.3:
        pixels = pixels + 0.06 * torch.randn_like(pixels)
    return pixels.clamp(-1, 1)
