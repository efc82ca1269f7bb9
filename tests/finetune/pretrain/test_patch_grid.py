"""The encoder's input follows the checkpoint: padded or stretched, and of its size."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from finetune.pretrain import patch_targets
from finetune.pretrain.padding import make_image_processor
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.world import Item, Scene
from vqa_app import builtin

GRID = PatchGrid(192, 12)


def test_the_grid_comes_from_the_checkpoint() -> None:
    """The shipped weights stay measurable, whatever the next ones look like."""
    folder = builtin.__path__[0]
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    grid = PatchGrid.of(config.vision_config, processor.image_processor)
    picture = Image.effect_noise((90, 31), 80).convert("RGB")
    theirs = processor.image_processor(picture, return_tensors="np")["pixel_values"][0]
    assert grid.tokens == config.image_seq_length
    ours = grid.pixels(picture).transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(theirs, ours, atol=1e-5)
    assert PatchGrid.of(config.vision_config, make_image_processor(128)) == PatchGrid(128, 8)


@pytest.mark.parametrize("padded", [True, False])
def test_targets_cover_the_patches_of_the_grid(padded: bool) -> None:
    scene = Scene("wide shapes", "", 300, 100, (Item("square", (0.0, 0.0, 0.2, 0.3)),), 0)
    grid = PatchGrid(192, 12, padded)
    rows = grid.targets(scene).reshape(12, 12, -1)
    owned = np.argwhere(rows[..., patch_targets.OWNED] == 1)[:, 0]
    assert rows.shape == (12, 12, patch_targets.COLUMNS)
    assert owned.min() == (4 if padded else 0)
    assert grid.pixels(Image.new("RGB", (300, 100))).shape == (192, 192, 3)


def test_patches_of_a_photograph_outside_its_box_are_ignored() -> None:
    """A photograph shows more than its labelled object, so the rest is not background."""
    item = Item("goldfish", (0.5, 0.5, 1.0, 1.0))
    rows = GRID.targets(Scene("photos", "photo", 64, 64, (item,), 0, {}))
    assert set(rows[:, patch_targets.OWNED].tolist()) == {1, 2}
    labels = set(rows[rows[:, patch_targets.OWNED] == 1, patch_targets.KIND].tolist())
    assert labels == {patch_targets.FIRST_PHOTO_CLASS}


def test_kinds_of_icons_are_not_counted() -> None:
    items = (Item("apple", (0.0, 0.0, 0.4, 0.4)), Item("apple", (0.5, 0.5, 0.9, 0.9)))
    counts = patch_targets.object_counts(Scene("icons", "2", 64, 64, items, 0))
    assert len(counts) == patch_targets.COUNT_CLASSES
    assert counts[0] == 2
    assert counts[1 : 1 + patch_targets.FIRST_ICON_CLASS].sum() == 0
