"""Pictures that keep their shape: padded to a square as `LlavaImageProcessor` does it."""

from dataclasses import replace

import numpy as np
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from finetune.pretrain import patch_targets
from finetune.pretrain.world.scene import Box, Scene

GROUND = (127, 127, 127)
"""The processor pads with 255 times its mean, 0.5: what the encoder reads as 0."""


def make_image_processor(side: int) -> LlavaImageProcessorPil:
    """Make the processor of plain transformers that pads and resizes as `padded_pixels` does."""
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
        square = Image.new("RGB", (longest, longest), GROUND)
        square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
        picture = square
    if longest != side:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def padded_scene(scene: Scene) -> Scene:
    """Return the scene of the padded picture: boxes become fractions of the square."""
    longest = max(scene.width, scene.height)
    across, down = scene.width / longest, scene.height / longest
    left, top = (1 - across) / 2, (1 - down) / 2

    def moved(box: Box) -> Box:
        return (
            left + box[0] * across,
            top + box[1] * down,
            left + box[2] * across,
            top + box[3] * down,
        )

    items = tuple(replace(item, box=moved(item.box)) for item in scene.items)
    return replace(scene, width=longest, height=longest, items=items)


def unpadded_places(rows: np.ndarray, scene: Scene) -> np.ndarray:
    """Turn the places in patch targets of a padded scene into fractions of the picture itself.

    What is "at the top" is so within the picture. The encoder sees where the padding ends, and
    whoever reads its features need not know that there was any.

    Args:
        rows: [patches, COLUMNS] of `patch_targets.patches`.
        scene: The scene before it was padded.
    """
    longest = max(scene.width, scene.height)
    shares = np.array([scene.width / longest, scene.height / longest])
    owned = rows[:, patch_targets.OWNED] == 1
    places = rows[owned, patch_targets.X :].astype(float)
    margin = (1 - shares) / 2 * patch_targets.UNITS
    places[:, :2] = (places[:, :2] - margin) / shares
    places[:, 2:] = places[:, 2:] / shares
    moved = rows.copy()
    moved[owned, patch_targets.X :] = places.round().clip(0, patch_targets.UNITS)
    return moved
