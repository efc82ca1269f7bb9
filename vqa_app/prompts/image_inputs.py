"""Pictures through a model's image processor, and the text that replaces their placeholders."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from PIL import Image

from vqa_app.errors import ModelError, library_reason
from vqa_app.pictures.picture import Picture, at_low_detail, open_picture
from vqa_app.prompts.chat_template import image_token

_CACHED_OUTPUTS = 8
"""Outputs kept per processor, because a chat shows the same pictures at every turn."""

_NOT_FOR_MODEL = frozenset(
    {"rows", "cols", "num_patches", "num_tiles", "num_crops", "num_image_tokens", "original_sizes"}
)
"""Values that image processors return for their processor rather than for the model."""


_FEW_TOKENS = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")
"""Options of image processors that split a picture into tiles of full resolution, besides the whole
picture. They are off at low detail. Other models take tokens by the size of a picture."""
_LARGE_PICTURE = (1024, 768)


@dataclass(frozen=True)
class ImageInputs:
    """The output of an image processor for some pictures."""

    inputs: dict[str, Any]
    """Keyword arguments of the model: `pixel_values` and others, by architecture."""
    expansions: tuple[str, ...]
    """For each picture, the text that replaces its placeholder."""
    tiles: Any = None
    """Mllama only: the tiles of each picture, for the cross-attention mask."""


_cache: weakref.WeakKeyDictionary[Any, OrderedDict[tuple[str, ...], ImageInputs]] = (
    weakref.WeakKeyDictionary()
)

_lock = threading.Lock()


def process_images(processor: Any, pictures: tuple[Picture, ...]) -> ImageInputs:
    """Run the image processor, or return its cached output for the same pictures.

    Raises:
        ModelError: The processor rejects the pictures, or is of an unsupported architecture.
    """
    if not pictures:
        return ImageInputs({}, ())
    key = tuple(picture.digest for picture in pictures)
    with _lock:
        found = _cache.setdefault(processor, OrderedDict()).get(key)
    if found is None:
        found = _process(processor, pictures)
    with _lock:
        outputs = _cache[processor]
        outputs[key] = found
        outputs.move_to_end(key)
        while len(outputs) > _CACHED_OUTPUTS:
            outputs.popitem(last=False)
    return found


def has_low_detail(processor: Any) -> bool:
    """Return whether a large picture takes fewer tokens at low detail."""
    large = open_picture(Image.new("RGB", _LARGE_PICTURE, (127, 127, 127)))
    try:
        lengths = [
            len(process_images(processor, (shown,)).expansions[0])
            for shown in (large, at_low_detail(large))
        ]
    except ModelError:  # of an architecture that is not supported
        return False
    return lengths[1] < lengths[0]


def resolution(processor: Any, picture: Picture) -> tuple[int, int, int] | None:
    """Return number, width and height of the images that a model gets of a picture, in pixels.

    Several are tiles, often with the whole picture in a lower resolution among them. None if the
    processor's output does not tell.
    """
    inputs = process_images(processor, (picture,)).inputs
    patch = getattr(processor.image_processor, "patch_size", None)
    grid = inputs.get("image_grid_thw")
    if grid is not None and isinstance(patch, int):  # Qwen-VL, in patches
        _, rows, columns = (int(value) for value in grid[0])
        return 1, columns * patch, rows * patch
    shape = tuple(getattr(inputs.get("pixel_values"), "shape", ()))
    if len(shape) < 4 or shape[-3] != 3:
        return None
    return prod(shape[:-3]), shape[-1], shape[-2]


def _process(processor: Any, pictures: tuple[Picture, ...]) -> ImageInputs:
    from vqa_app.transformers_internals import run_image_processor

    images = [picture.image for picture in pictures]
    kind = type(processor).__name__
    expansions: Sequence[str]
    try:
        if kind == "Blip2Processor":
            inputs = processor.image_processor(images, return_tensors="pt")
            expansion = image_token(processor) * processor.num_query_tokens
            expansions = [expansion] * len(images)
        elif kind == "Kosmos2Processor":
            inputs = processor.image_processor(images, return_tensors="pt")
            expansion = processor.boi_token * (processor.num_image_tokens + 1) + processor.eoi_token
            expansions = [expansion] * len(images)
        else:
            options = _FEW_TOKENS if all(picture.low_detail for picture in pictures) else ()
            own = {name for name in options if getattr(processor.image_processor, name, False)}
            inputs, expansions = run_image_processor(processor, images, **dict.fromkeys(own, False))
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        names = ", ".join(picture.name for picture in pictures)
        raise ModelError(
            f"The model's image processor rejects {names}{library_reason(error)}",
            "Crop or resize the picture, or choose another model.",
        ) from error
    if len(expansions) != len(images):
        raise ModelError(
            f"{kind} returned image tokens for {len(expansions)} of {len(images)} pictures.",
            "This architecture is not supported.",
        )
    left_out = _NOT_FOR_MODEL | set(processor.unused_input_names)
    return ImageInputs(
        inputs={name: value for name, value in inputs.items() if name not in left_out},
        expansions=tuple(expansions),
        tiles=inputs.get("num_tiles") if kind == "MllamaProcessor" else None,
    )
