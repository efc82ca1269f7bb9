"""Charts: the drawings and the answers agree with the values."""

import random
import re

import numpy as np
import pytest

from finetune.pretrain.world.rooms.charts.room import CHARTS, KINDS, LAYOUTS, held_out, shares

NAMED = r"\b(?:bar |point )?([A-H])\b"


def scenes(split, count):
    return [CHARTS.make(random.Random(f"{split}{seed}"), split) for seed in range(count)]


def asked(count):
    return [
        (scene, qa)
        for seed, scene in enumerate(scenes("train", count))
        for qa in CHARTS.ask(scene, random.Random(seed), "train")
    ]


def table(scene):
    """Return a dictionary from an entry's name in questions to its value."""
    unit = 10 if scene.layout == "pie" else 1
    return {
        "ABCDEFGH"[i.order] if i.order >= 0 else i.colour: int(i.kind.split()[1]) * unit
        for i in scene.items
    }


def named(scene, question):
    """Return the names of the entries that a question mentions, in its order."""
    if scene.items[0].order >= 0:
        return re.findall(NAMED, question)
    return re.findall(r"the (\w+) (?:bar|slice)", question)


def test_every_layout_and_kind_occurs_and_boxes_lie_inside():
    layouts, kinds = set(), set()
    for scene in scenes("test", 800):
        layouts.add(scene.layout)
        kinds |= {item.kind for item in scene.items}
        for item in scene.items:
            left, top, right, bottom = item.box
            assert -0.03 <= left < right <= 1.03
            assert -0.03 <= top < bottom <= 1.03
    assert layouts == set(LAYOUTS)
    assert kinds == set(KINDS)


def test_bars_are_as_high_as_their_values_and_drawn_in_their_boxes():
    for scene in scenes("train", 60):
        if scene.layout != "bars":
            continue
        picture = np.asarray(CHARTS.draw(scene)).astype(int)
        unit = {round((i.box[3] - i.box[1]) / int(i.kind.split()[1]), 4) for i in scene.items}
        assert max(unit) - min(unit) < 0.001
        for item, rgb in zip(scene.items, scene.extra["colours"], strict=True):
            x, y = item.centre
            pixel = picture[int(y * scene.height), int(x * scene.width)]
            assert np.abs(pixel - np.array(rgb)).sum() < 40


def test_the_shares_of_a_pie_add_up_to_the_whole():
    assert all(sum(shares(n, random.Random(k))) == 10 for n in (2, 3, 4) for k in range(50))


def test_held_out_pairs_occur_in_the_test_split_only():
    def pairs(split):
        return [(i.colour, int(i.kind.split()[1])) for s in scenes(split, 500) for i in s.items]

    assert not any(held_out(*pair) for pair in pairs("train"))
    assert any(held_out(*pair) for pair in pairs("test"))


@pytest.fixture(scope="module")
def questions():
    return asked(700)


def test_values_and_sums_are_right(questions):
    seen = 0
    for scene, qa in questions:
        values, names = table(scene), named(scene, qa.question)
        if qa.skill == "value":
            if names:
                expected = values[names[0]]
            else:
                expected = (max if "highest" in qa.question else min)(values.values())
            assert qa.short.rstrip("%") == str(expected)
            seen += 1
        if qa.skill == "arithmetic" and len(names) == 2:
            a, b = (values[n] for n in names)
            far = any(w in qa.question for w in ("differ", "apart", "separates"))
            assert qa.short.rstrip("%") == str(abs(a - b) if far else a + b)
            seen += 1
    assert seen > 400


def test_extremes_are_right_and_not_asked_when_tied(questions):
    high = ("highest", "tallest", "greatest", "largest", "biggest", "longest")
    for scene, qa in questions:
        if qa.skill == "extreme":
            values = table(scene)
            pick = max if any(w in qa.question for w in high) else min
            best = [name for name, v in values.items() if v == pick(values.values())]
            if scene.items[0].order >= 0 and "colour" in qa.question:
                continue
            assert best == [qa.short]


def test_comparisons_counts_trends_and_false_premises_are_right(questions):
    for scene, qa in questions:
        values, names = table(scene), named(scene, qa.question)
        if qa.skill == "compare" and qa.short in ("yes", "no"):
            a, b = (values[n] for n in names)
            if "equal" in qa.question or "same" in qa.question:
                truth = a == b
            else:
                truth = a > b if any(w in qa.question for w in ("larger", "higher")) else a < b
            assert qa.short == ("yes" if truth else "no")
        if qa.skill == "count":
            limit = re.findall(r"\d+", qa.question)
            if not limit:
                assert qa.short == str(len(scene.items))
            elif "above" in qa.question:
                assert qa.short == str(sum(v > int(limit[0]) for v in values.values()))
            else:
                assert qa.short == str(sum(v < int(limit[0]) for v in values.values()))
        if qa.skill == "trend":
            up = any(w in qa.question for w in ("rise", "go up", "rises"))
            a, b = (values[n] for n in names)
            assert a != b
            assert qa.short == ("yes" if (b > a) == up else "no")
        if qa.skill == "false_premise":
            assert names[0] not in values
            assert qa.short == "none"
        if qa.skill == "colour" and names:
            order = "ABCDEFGH".index(names[0])
            assert qa.short == next(i.colour for i in scene.items if i.order == order)
