"""Where the encoder is not sure of a photograph, answers say what it may be."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from finetune.pretrain.patch_targets import FIRST_ICON_CLASS, FIRST_PHOTO_CLASS, KIND_CLASSES
from finetune.pretrain.photo_confidence import PhotoConfidence, photo_label, threshold_for
from finetune.pretrain.world import Item, Scene
from finetune.pretrain.world.rooms.photos.questions import ask

GOLDFISH = Scene("photos", "photo", 64, 64, (Item("goldfish", (0.1, 0.1, 0.9, 0.9)),), 0, {})
SHAPE = Scene("wide shapes", "single", 64, 64, (Item("circle", (0.1, 0.1, 0.9, 0.9), "red"),), 0)


@pytest.fixture
def confidence() -> PhotoConfidence:
    """Return a head whose logit of the first photograph's class is the only feature."""
    head = nn.Linear(1, KIND_CLASSES - FIRST_ICON_CLASS)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.weight[FIRST_PHOTO_CLASS - FIRST_ICON_CLASS] = 1.0
    return PhotoConfidence(head, threshold=0.5)


def test_only_photographs_below_the_threshold_are_unsure(confidence: PhotoConfidence) -> None:
    pooled = torch.tensor([[50.0], [0.0], [0.0]])
    certain, uncertain, shape = confidence.judge(pooled, [GOLDFISH, GOLDFISH, SHAPE])
    assert certain.extra["sure"]
    assert not uncertain.extra["sure"]
    assert shape == SHAPE


def test_classes_of_the_other_data_set_do_not_count(confidence: PhotoConfidence) -> None:
    probabilities, right = confidence.beliefs(torch.tensor([[0.0]]), [GOLDFISH])
    assert probabilities[0] == pytest.approx(1 / 200)
    assert photo_label(GOLDFISH) == 0
    assert right.dtype == bool


def test_the_threshold_reaches_the_precision_on_most_photographs() -> None:
    probabilities = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    right = np.array([True, True, False, True, False, False])
    assert threshold_for(probabilities, right, 0.75) == 0.6
    assert threshold_for(probabilities, right, 1.0) == 0.8
    assert threshold_for(probabilities, ~right, 0.9) > 1


@pytest.mark.parametrize("sure", [True, False])
def test_answers_hedge_where_the_encoder_is_unsure(sure: bool) -> None:
    scene = Scene("photos", "photo", 64, 64, GOLDFISH.items, 0, {"sure": sure})
    asked = [qa for seed in range(30) for qa in ask(scene, random.Random(seed), "train")]
    names = [qa for qa in asked if qa.skill in ("name", "caption", "is_it")]
    assert {"may" in qa.sentence for qa in names} == {not sure}
    answer = "It is a goldfish." if sure else "It may be a goldfish."
    assert answer in {qa.sentence for qa in names}
    assert all(qa.short == "goldfish" for qa in asked if qa.skill == "name")
