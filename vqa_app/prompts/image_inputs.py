"""Pictures through a model's image processor, and what takes their places in the text."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from vqa_app.errors import ModelError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.chat_template import image_token

_REMEMBERED_PICTURES = 8
"""Processor outputs kept for each processor: a chat shows the same pictures at every turn."""

_BOOKKEEPING = frozenset(
    {"rows", "cols", "num_patches", "num_tiles", "num_crops", "num_image_tokens", "original_sizes"}
)
"""What image processors hand to their processor, not to the model."""


@dataclass(frozen=True)
class Seen:
    """Pictures as the image processor gives them."""

    inputs: dict[str, Any]
    expansions: tuple[str, ...]
    """What takes the place of each picture's placeholder."""
    tiles: Any = None
    """Mllama: tiles of each picture, for the cross-attention mask."""


_remembered: weakref.WeakKeyDictionary[Any, OrderedDict[tuple[str, ...], Seen]] = (
    weakref.WeakKeyDictionary()
)

_lock = threading.Lock()


def see(processor: Any, pictures: tuple[Picture, ...]) -> Seen:
    """Runs the image processor, or remembers what it gave for the same pictures."""
    if not pictures:
        return Seen({}, ())
    key = tuple(picture.digest for picture in pictures)
    with _lock:
        known = _remembered.setdefault(processor, OrderedDict()).get(key)
    if known is None:
        known = _process(processor, pictures)
    with _lock:
        remembered = _remembered[processor]
        remembered[key] = known
        remembered.move_to_end(key)
        while len(remembered) > _REMEMBERED_PICTURES:
            remembered.popitem(last=False)
    return known


def _process(processor: Any, pictures: tuple[Picture, ...]) -> Seen:
    images = [picture.image for picture in pictures]
    kind = type(processor).__name__
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
            merged = processor._merge_kwargs(
                tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt"
            )
            # Nested: the pictures of one conversation, which some processors treat by their number.
            inputs, expansions = processor._process_images([images], **merged["images_kwargs"])
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        names = ", ".join(picture.name for picture in pictures)
        raise ModelError(
            f"The model's image processor cannot take {names}: {error}",
            "Crop or resize the picture, or choose another model.",
        ) from error
    if len(expansions) != len(images):
        raise ModelError(
            f"{kind} gave image tokens for {len(expansions)} of {len(images)} pictures.",
            "This architecture is not supported.",
        )
    hidden = _BOOKKEEPING | set(processor.unused_input_names)
    return Seen(
        inputs={name: value for name, value in inputs.items() if name not in hidden},
        expansions=tuple(expansions),
        tiles=inputs.get("num_tiles") if kind == "MllamaProcessor" else None,
    )
