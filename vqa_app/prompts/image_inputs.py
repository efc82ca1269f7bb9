"""Pictures through a model's image processor, and the text that replaces their placeholders."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqa_app.errors import ModelError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.chat_template import image_token

_CACHED_OUTPUTS = 8
"""Outputs kept per processor, because a chat shows the same pictures at every turn."""

_NOT_FOR_MODEL = frozenset(
    {"rows", "cols", "num_patches", "num_tiles", "num_crops", "num_image_tokens", "original_sizes"}
)
"""Values that image processors return for their processor rather than for the model."""


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
            inputs, expansions = run_image_processor(processor, images)
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        names = ", ".join(picture.name for picture in pictures)
        raise ModelError(
            f"The model's image processor rejects {names}: {error}",
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
