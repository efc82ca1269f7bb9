"""Pictures of unknown kinds are drawn in many styles, and questions about them are refused."""

import random

import numpy as np
import pytest

from finetune.pretrain.world import KNOWN_ROOMS, ROOMS
from finetune.pretrain.world.rooms.outside.room import (
    HELD_OUT_STYLES,
    PAINTERS,
    SENTENCE,
    SHORT,
    STYLES,
    photos,
)

OUTSIDE = ROOMS["outside"]


def scenes(split, count=60):
    return [OUTSIDE.make(random.Random(seed), split) for seed in range(count)]


@pytest.mark.parametrize("style", PAINTERS)
def test_every_style_paints_pictures_that_differ_and_are_not_blank(style):
    paint = PAINTERS[style]
    pictures = [np.asarray(paint((96, 72), np.random.default_rng(k))) for k in range(3)]
    assert all(p.shape == (72, 96, 3) and p.std() > 1 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 3


def test_held_out_styles_occur_in_the_test_split_only():
    assert not {s.layout for s in scenes("train", 300)} & set(HELD_OUT_STYLES)
    assert {s.layout for s in scenes("test", 300)} >= set(HELD_OUT_STYLES)


def test_real_photographs_are_installed_and_held_out():
    assert len(photos()) >= 4
    assert "photo" in HELD_OUT_STYLES
    assert "photo" not in STYLES


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_question_is_refused_in_both_styles(split):
    for seed, scene in enumerate(scenes(split, 20)):
        qas = OUTSIDE.ask(scene, random.Random(seed), split)
        assert len(qas) >= 6
        assert len({qa.question for qa in qas}) == len(qas)
        assert {(qa.skill, qa.short, qa.sentence, qa.before) for qa in qas} == {
            ("outside", SHORT, SENTENCE, ())
        }


def test_no_other_room_refuses_a_question():
    for room in KNOWN_ROOMS:
        for seed in range(40):
            rng = random.Random(seed)
            scene = room.make(rng, "test")
            assert all(qa.sentence != SENTENCE for qa in room.ask(scene, rng, "test"))


def test_questions_of_every_room_are_asked():
    asked = {
        qa.question
        for seed, scene in enumerate(scenes("train", 40))
        for qa in OUTSIDE.ask(scene, random.Random(seed), "train")
    }
    assert len(asked) > 150
    assert any("?" in q and "shape" in q for q in asked)
