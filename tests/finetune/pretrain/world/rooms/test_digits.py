"""Numbers: answers are recomputed here from the items alone."""

import random
import re

import pytest

from finetune.pretrain.world.rooms.digits.glyphs import LIT, STROKES
from finetune.pretrain.world.rooms.digits.room import DIGITS, HELD_OUT_DICE, KINDS, held_out_number


def scenes(split, count):
    return [DIGITS.make(random.Random(f"{split}{seed}"), split) for seed in range(count)]


def asked(count, layout):
    """Return (scene, question) pairs of one layout."""
    return [
        (scene, qa)
        for seed, scene in enumerate(scenes("train", count))
        if scene.layout == layout
        for qa in DIGITS.ask(scene, random.Random(seed), "train")
    ]


def text_of(scene):
    return "".join(i.kind for i in sorted(scene.items, key=lambda i: i.order))


def faces(scene):
    return [int(i.kind.split()[1]) for i in scene.items]


def test_every_kind_occurs_and_boxes_lie_in_the_picture_apart_from_each_other():
    kinds = set()
    for scene in scenes("test", 900):
        assert scene.items
        for item in scene.items:
            kinds.add(item.kind)
            left, top, right, bottom = item.box
            assert -0.03 <= left < right <= 1.06
            assert -0.01 <= top < bottom <= 1.05
        patches = {(int(i.centre[0] * 8), int(i.centre[1] * 8)) for i in scene.items}
        assert len(patches) == len(scene.items)
    assert kinds == set(KINDS)


def test_every_digit_of_a_display_lights_different_segments():
    assert len({frozenset(lit) for lit in LIT.values()}) == 10
    assert set("0123456789+-") == set(STROKES)


def test_held_out_numbers_and_dice_occur_in_the_test_split_only():
    def numbers(split):
        return [int(text_of(s)) for s in scenes(split, 800) if s.layout in ("drawn", "display")]

    def dice(split):
        return {
            (i.colour, int(i.kind[-1]))
            for s in scenes(split, 800)
            if s.layout == "dice"
            for i in s.items
        }

    assert not any(map(held_out_number, numbers("train")))
    assert any(map(held_out_number, numbers("test")))
    assert not dice("train") & HELD_OUT_DICE
    assert dice("test") & HELD_OUT_DICE


@pytest.mark.parametrize("layout", ["drawn", "display"])
def test_numbers_are_read_compared_and_added_up_right(layout):
    seen = set()
    for scene, qa in asked(500, layout):
        text = text_of(scene)
        value = int(text)
        seen.add(qa.skill)
        mentioned = [int(n) for n in re.findall(r"\d+", qa.question)]
        if qa.skill == "read":
            expected = text if not mentioned else "yes" if mentioned[0] == value else "no"
            assert qa.short == expected
        elif qa.skill == "parity":
            truth = "even" if value % 2 == 0 else "odd"
            if " or " in qa.question:
                assert qa.short == truth
            else:
                assert qa.short == ("yes" if truth in qa.question else "no")
        elif qa.skill == "compare" and mentioned:
            wins = value < mentioned[0] if "smaller" in qa.question else value > mentioned[0]
            assert value != mentioned[0]
            assert qa.short == ("yes" if wins else "no")
        elif qa.skill == "arithmetic":
            assert qa.short == str(value + mentioned[0] if mentioned else sum(map(int, text)))
        elif qa.skill == "count":
            assert qa.short == str(len(text))
        elif qa.skill == "colour":
            assert qa.short == scene.items[0].colour
    assert seen >= {"read", "parity", "compare", "arithmetic", "colour", "caption"}


def test_dice_are_summed_and_ranked_right():
    for scene, qa in asked(600, "dice"):
        numbers = faces(scene)
        if qa.skill == "arithmetic":
            assert qa.short == str(sum(numbers))
        if qa.skill == "compare" and qa.short.isdigit():
            assert qa.short == str((max if "highest" in qa.question else min)(numbers))
        if qa.skill == "read":
            colours = [c for c in {i.colour for i in scene.items} if c in qa.question]
            match = [
                n
                for i, n in zip(scene.items, numbers, strict=True)
                if not colours or i.colour == colours[0]
            ]
            assert [qa.short] == [str(n) for n in match]
        if qa.skill == "false_premise":
            named = [i for i in scene.items if f" {i.colour} " in qa.question]
            assert not named
            assert qa.short == "none"


def test_sums_dominoes_and_clocks_are_answered_right():
    for scene, qa in asked(600, "sum"):
        a, sign, b = text_of(scene)
        result = int(a) + int(b) if sign == "+" else int(a) - int(b)
        if qa.skill == "arithmetic" and qa.short.isdigit():
            assert qa.short == str(result)
    for scene, qa in asked(600, "domino"):
        if qa.skill == "arithmetic":
            assert qa.short == str(sum(faces(scene)))
        if qa.skill == "same":
            assert qa.short == ("yes" if len(set(faces(scene))) == 1 else "no")
    for scene, qa in asked(600, "clock"):
        if ":" in qa.short:
            assert qa.short.replace(":", "") == text_of(scene)
