"""Padding to a square, which preserves proportions, as `LlavaImageProcessor` does it."""

import numpy as np
from PIL import Image
from transformers import LlavaImageProcessorPil

from finetune.pretrain.world.scene import Box, Scene

PADDING_RGB = (127, 127, 127)
"""The colour of padding: 255 times the processor's mean of 0.5, which is normalised to 0."""


def make_image_processor(side: int) -> LlavaImageProcessorPil:
    """Return an image processor of transformers that pads and resizes as `padded_pixels` does."""
    return LlavaImageProcessorPil(
        do_pad=True,
        do_center_crop=False,
        size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def padded_pixels(picture: Image.Image, side: int) -> np.ndarray:
    """Pad an RGB picture to a square and resize it (bicubic): [side, side, 3] uint8."""
    longest = max(picture.size)
    if picture.width != picture.height:
        square = Image.new("RGB", (longest, longest), PADDING_RGB)
        square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
        picture = square
    if longest != side:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def picture_shares(scene: Scene) -> tuple[float, float]:
    """Return the shares of the padded picture's width and height that the scene fills."""
    longest = max(scene.width, scene.height)
    return scene.width / longest, scene.height / longest


def padded_boxes(scene: Scene) -> list[Box]:
    """Return the boxes of the scene's objects as fractions of the padded picture."""
    across, down = picture_shares(scene)
    margin_x, margin_y = (1 - across) / 2, (1 - down) / 2
    return [
        (
            margin_x + left * across,
            margin_y + top * down,
            margin_x + right * across,
            margin_y + bottom * down,
        )
        for left, top, right, bottom in (item.box for item in scene.items)
    ]
