"""Things: every kind can be drawn, within its box, and held-out combinations stay held out."""

import random
from dataclasses import replace

import numpy as np
import pytest

from finetune.pretrain.world import Scene
from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.drawing.sketch import draw_thing
from finetune.pretrain.world.rooms.things.kinds import (
    CATEGORIES,
    HELD_OUT_BACKDROPS,
    HELD_OUT_COLOURS,
    KINDS,
    THINGS,
)
from finetune.pretrain.world.rooms.things.room import THINGS_ROOM


def scenes(split, count):
    return [THINGS_ROOM.make(random.Random(f"{split}{seed}"), split) for seed in range(count)]


def asked(scene: Scene, seed: int, split="train"):
    return THINGS_ROOM.ask(scene, random.Random(seed), split)


def test_at_least_sixty_things_and_each_has_a_drawing():
    assert len(KINDS) == len(set(KINDS)) >= 60
    assert set(KINDS) == set(THINGS)
    assert all(set(thing.colours) <= set(COLOURS) for thing in THINGS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_drawings_differ_and_fill_their_box(kind):
    drawn = [draw_thing(THINGS[kind], THINGS[kind].colours[0], random.Random(k)) for k in range(3)]
    assert len({d.parts for d in drawn}) == 3
    for one in drawn:
        assert max(one.width, one.height) == pytest.approx(1)
        assert min(one.width, one.height) > 0.15
        assert any(part.rgb == one.main for part in one.parts) or kind == "traffic light"


def test_an_item_changes_pixels_inside_its_box_only():
    for scene in scenes("train", 25):
        whole = np.asarray(THINGS_ROOM.draw(scene)).astype(int)
        for item in scene.items:
            rest = replace(scene, items=tuple(i for i in scene.items if i is not item))
            changed = np.abs(whole - np.asarray(THINGS_ROOM.draw(rest))).sum(-1) > 40
            ys, xs = np.nonzero(changed)
            left, top, right, bottom = item.box
            slack = 3
            assert xs.min() >= left * scene.width - slack
            assert xs.max() <= right * scene.width + slack
            assert ys.min() >= top * scene.height - slack
            assert ys.max() <= bottom * scene.height + slack
            assert 0 <= left < right <= 1.001
            assert 0 <= top < bottom <= 1.001


def test_held_out_combinations_occur_in_the_test_split_only():
    train = [(i.kind, s.layout, i.colour) for s in scenes("train", 1000) for i in s.items]
    assert not {(kind, place) for kind, place, _ in train} & HELD_OUT_BACKDROPS
    assert not {(kind, colour) for kind, _, colour in train} & HELD_OUT_COLOURS
    test = [(i.kind, s.layout, i.colour) for s in scenes("test", 400) for i in s.items]
    assert {(kind, place) for kind, place, _ in test} & HELD_OUT_BACKDROPS
    assert {kind for kind, _, _ in train} == set(KINDS)


def test_the_answered_time_is_the_hour_of_the_clock():
    hours = set()
    for seed, scene in enumerate(scenes("train", 700)):
        for qa in asked(scene, seed):
            if qa.skill == "time":
                clock = next(i for i in scene.items if i.kind == "clock")
                hour = clock.extra["drawing"].facts["hour"]
                assert clock.order == hour
                assert f"{hour} o'clock" in qa.sentence
                hours.add(hour)
    assert len(hours) >= 4


def test_categories_are_counted_right():
    for seed, scene in enumerate(scenes("train", 400)):
        for qa in asked(scene, seed):
            for category in CATEGORIES:
                number = sum(THINGS[i.kind].category == category for i in scene.items)
                if qa.skill == "count" and f" {category}s" in qa.question:
                    assert qa.short == str(number)
                if qa.skill == "existence" and qa.sentence.endswith(f"{category}."):
                    assert qa.short == ("yes" if number else "no")


def test_questions_vary_and_come_in_both_styles():
    qas = [qa for seed, scene in enumerate(scenes("train", 120)) for qa in asked(scene, seed)]
    assert len({qa.question for qa in qas}) > 700
    assert {
        "existence",
        "shape",
        "colour",
        "count",
        "position",
        "relation",
        "false_premise",
        "caption",
        "statement",
        "followup",
    } <= {qa.skill for qa in qas}
    assert all(qa.sentence and qa.sentence[-1] in ".!" for qa in qas)
    assert all(qa.short or qa.skill in ("caption", "describe") for qa in qas)
