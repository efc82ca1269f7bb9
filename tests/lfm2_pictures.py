"""LFM2-VL's image processor on Pillow, because the real one needs torchvision.

It stands in for the class of the same name in the tests of LFM2-VL, whose model and processor are
the real ones. Where torchvision is installed, a test compares it with the real one.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from transformers import IMAGE_PROCESSOR_MAPPING, Lfm2VlConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    convert_image_to_patches,
    pad_along_first_dim,
)
from transformers.processing_utils import ImagesKwargs


class Lfm2VlImagesKwargs(ImagesKwargs, total=False):
    """The options of the real image processor that change what it returns."""

    downsample_factor: int
    do_image_splitting: bool
    min_tiles: int
    max_tiles: int
    min_image_tokens: int
    max_image_tokens: int
    encoder_patch_size: int
    tile_size: int
    max_pixels_tolerance: float
    use_thumbnail: bool
    return_row_col_info: bool


class Lfm2VlImageProcessor(PilBackend):
    """Patches of a picture at its own size; of a large one, of tiles and of a small copy."""

    valid_kwargs = Lfm2VlImagesKwargs
    model_input_names: ClassVar = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    downsample_factor = 2
    do_image_splitting = True
    min_tiles, max_tiles = 2, 10
    min_image_tokens, max_image_tokens = 64, 256
    encoder_patch_size = 16
    tile_size = 512
    max_pixels_tolerance = 2.0
    use_thumbnail = True
    return_row_col_info = False
    do_resize = do_rescale = do_normalize = True
    size: ClassVar = {"height": 512, "width": 512}
    resample = 2  # bilinear
    rescale_factor = 1 / 255
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD

    def _preprocess(
        self,
        images: list[np.ndarray],
        *,
        resample: Any,
        rescale_factor: float,
        image_mean: Any,
        image_std: Any,
        do_image_splitting: bool,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        block = self.encoder_patch_size * self.downsample_factor
        tile = self.tile_size if do_image_splitting else 0
        longest = max(
            self.max_image_tokens * self.downsample_factor**2,
            (tile // self.encoder_patch_size) ** 2,
        )
        data: dict[str, list[Any]] = {name: [] for name in self.model_input_names}
        grids: list[tuple[int, int, list[int]]] = []
        for image in images:
            height, width = image.shape[-2:]
            small = self._fit(height, width, block)
            pieces, (columns, rows) = [self.resize(image, _size(*small), resample=resample)], (1, 1)
            tokens = round(height / block) * round(width / block)
            if do_image_splitting and tokens > self.max_image_tokens * self.max_pixels_tolerance:
                columns, rows = get_optimal_tiled_canvas(
                    (height, width), (tile, tile), self.min_tiles, self.max_tiles
                )
                whole = self.resize(image, _size(tile * rows, tile * columns), resample=resample)
                pieces[:0] = [
                    whole[:, y : y + tile, x : x + tile]
                    for y in range(0, tile * rows, tile)
                    for x in range(0, tile * columns, tile)
                ]
            grids.append((rows, columns, list(small)))
            for piece in pieces:
                scaled = self.normalize(self.rescale(piece, rescale_factor), image_mean, image_std)
                patches = convert_image_to_patches(scaled, self.encoder_patch_size)
                padded, mask = pad_along_first_dim(patches, longest)
                data["pixel_values"].append(padded)
                data["pixel_attention_mask"].append(mask)
                data["spatial_shapes"].append(
                    [edge // self.encoder_patch_size for edge in piece.shape[-2:]]
                )
        names = ("image_rows", "image_cols", "image_sizes")
        values = dict(zip(names, map(list, zip(*grids, strict=True)), strict=True))
        return BatchFeature({**data, **values}, tensor_type=return_tensors)

    def _fit(self, height: int, width: int, block: int) -> tuple[int, int]:
        """Return the size, in whole blocks, that takes an allowed number of tokens."""
        rows, columns = (max(1, round(edge / block)) for edge in (height, width))
        if rows * columns > self.max_image_tokens:
            scale = math.sqrt(height * width / self.max_image_tokens) / block
            rows, columns = (max(1, math.floor(edge / scale / block)) for edge in (height, width))
        elif rows * columns < self.min_image_tokens:
            scale = math.sqrt(self.min_image_tokens / (height * width)) * block
            rows, columns = (math.ceil(edge * scale / block) for edge in (height, width))
        return rows * block, columns * block


def _size(height: int, width: int) -> SizeDict:
    return SizeDict(height=height, width=width)


def register() -> None:
    """Make transformers use the stand-in for LFM2-VL where Pillow is asked for."""
    # `AutoImageProcessor.register` refuses the placeholder of the class that needs torchvision.
    IMAGE_PROCESSOR_MAPPING.register(Lfm2VlConfig, {"pil": Lfm2VlImageProcessor}, exist_ok=True)
