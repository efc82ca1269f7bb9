"""Pools of drawn pictures and of their features."""

import numpy as np
import torch
from transformers import LlamaForCausalLM, SiglipModel

from finetune.pretrain import patch_targets
from finetune.pretrain.alignment import FeaturePool
from finetune.pretrain.exam import VisionLanguageModel
from finetune.pretrain.model import language_config, siglip_config
from finetune.pretrain.scene_pool import SIZE, ScenePool, pixels
from finetune.pretrain.world import ROOMS, make_scene
from finetune.pretrain.world.mixture import World


def test_a_resumed_pool_samples_only_filled_slots() -> None:
    pool = ScenePool(16, World({"shapes": 1.0}), next_seed=1003)
    pool.refill(5)
    slots = pool.batch(64, np.random.default_rng(0))
    assert (pool.targets[slots, :, patch_targets.OWNED] == 1).any(axis=1).all()
    assert pool.next_seed == 1008


def test_the_oldest_pictures_are_replaced() -> None:
    pool = ScenePool(4, World({"shapes": 1.0}))
    pool.refill(6)
    newest = make_scene(5, "shapes")
    assert np.array_equal(pool.images[1], pixels(ROOMS["shapes"].draw(newest)))
    assert np.array_equal(pool.targets[1], patch_targets.patches(newest))


def test_a_resumed_feature_pool_keeps_targets_and_scenes_aligned() -> None:
    torch.manual_seed(0)
    encoder = SiglipModel(siglip_config(64, tiny=True)).eval()
    language = LlamaForCausalLM(language_config(64, tiny=True))
    model = VisionLanguageModel(encoder.vision_model, torch.nn.Identity(), language)
    pool = FeaturePool(model, 4, World({"shapes": 1.0}), next_seed=7)
    pool.refill(6)
    assert len(pool.scenes) == 4
    for slot, scene in enumerate(pool.scenes):
        assert np.array_equal(pool.rows[slot].numpy(), patch_targets.patches(scene))


def test_pictures_are_stretched_to_the_encoders_size() -> None:
    wide = ROOMS["shapes"].draw(make_scene(1, "shapes")).resize((300, 90))
    assert pixels(wide).shape == (SIZE, SIZE, 3)
