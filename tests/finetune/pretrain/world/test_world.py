"""The generated world is reproducible and consistent, and keeps its held-out parts apart."""

import itertools
import random

import numpy as np
import pytest

from finetune.pretrain import patch_targets
from finetune.pretrain.world import ROOMS, make_scene, sample_scene
from finetune.pretrain.world.rooms.shapes.room import HELD_OUT_PAIRS, KINDS, SHAPES
from finetune.pretrain.world.scene import QA, Split
from finetune.pretrain.world.wording.phrasing import fill_template, to_turn
from finetune.pretrain.world.wording.references import Reference
from vqa_app.prompts.conversation import SHORT_STYLE


def questions(seed: int, split: Split = "train", room: str = "shapes") -> list[QA]:
    scene = make_scene(seed, room, split)
    return ROOMS[room].ask(scene, random.Random(seed), split)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("room", sorted(ROOMS))
def test_the_same_seed_gives_the_same_picture_and_questions(room: str, split: Split) -> None:
    for seed in range(8):
        one, other = (make_scene(seed, room, split) for _ in range(2))
        assert one == other
        pictures = [ROOMS[room].draw(scene) for scene in (one, other)]
        assert np.array_equal(*map(np.asarray, pictures))
        assert questions(seed, split, room) == questions(seed, split, room)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_drawn_picture_is_rgb_of_the_size_its_scene_says(room: str, split: Split) -> None:
    for seed in range(12):
        scene = make_scene(seed, room, split)
        picture = ROOMS[room].draw(scene)
        assert picture.mode == "RGB"
        assert picture.size == (scene.width, scene.height)
        assert min(picture.size) >= 64
        assert max(picture.size) <= 512


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_question_has_an_answer_and_no_style_instruction(room: str) -> None:
    for seed in range(40):
        for qa in questions(seed, "test", room):
            assert qa.question.strip() == qa.question != ""
            assert qa.sentence.strip() == qa.sentence != ""
            assert SHORT_STYLE not in qa.question
            assert "{" not in qa.question + qa.sentence


def test_every_shape_is_drawn_in_its_box() -> None:
    """Check that the item's colour fills the middle of its box and occurs nowhere else."""
    for seed in range(30):
        scene = SHAPES.make(random.Random(seed), "train", layout="single")
        (item,) = scene.items
        pixels = np.asarray(SHAPES.draw(scene)).astype(int)
        near = np.abs(pixels - np.array(item.extra["rgb"])).sum(-1) < 60
        rows, columns = np.nonzero(near)
        left, top, right, bottom = item.box
        assert columns.mean() / scene.width == pytest.approx((left + right) / 2, abs=0.12)
        assert rows.mean() / scene.height == pytest.approx((top + bottom) / 2, abs=0.12)
        assert columns.min() / scene.width > left - 0.03
        assert rows.max() / scene.height < bottom + 0.03


def test_held_out_pairs_are_never_drawn_for_training_but_are_in_tests() -> None:
    drawn = {
        split: {
            (i.colour, i.kind)
            for seed in range(600)
            for i in make_scene(seed, "shapes", split).items
        }
        for split in ("train", "test")
    }
    assert not drawn["train"] & HELD_OUT_PAIRS
    assert len(drawn["test"] & HELD_OUT_PAIRS) > len(HELD_OUT_PAIRS) / 2
    assert {kind for _, kind in drawn["train"]} == set(KINDS)


def test_held_out_phrasings_occur_in_tests_only() -> None:
    templates = ("Known {x}?", "~Held out {x}?")
    rng = random.Random(0)
    assert {fill_template(templates, rng, "train", x=1) for _ in range(50)} == {"Known 1?"}
    assert "Held out 1?" in {fill_template(templates, rng, "test", x=1) for _ in range(50)}


def test_yes_and_no_are_about_as_frequent() -> None:
    answers = [
        qa.short
        for seed in range(300)
        for qa in questions(seed)
        if qa.skill in ("existence", "negation", "relation")
    ]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_a_reference_matches_the_item_that_it_describes() -> None:
    scene = make_scene(3, "shapes")
    for item in scene.items:
        ref = Reference("shape", kind=item.kind, colour=item.colour)
        assert item in ref.match(scene.items)
        assert ref.text == f"{item.colour} {item.kind}"


def test_the_short_style_adds_llavas_instruction_and_answers_with_a_word() -> None:
    qa = QA("colour", "What colour is the star?", "red", "The star is red.")
    assert to_turn(qa, random.Random(0), short=True, plain=True) == (
        "What colour is the star?" + SHORT_STYLE,
        "red",
    )
    assert to_turn(qa, random.Random(0), short=False, plain=True)[1] == "The star is red."
    only_long = QA("caption", "Describe it.", "", "A star.")
    assert to_turn(only_long, random.Random(0), short=True, plain=True) == (
        "Describe it.",
        "A star.",
    )


def test_patch_targets_mark_each_object_once_at_its_centre() -> None:
    scene = SHAPES.make(random.Random(5), "train", layout="grid")
    side = 8
    grid = patch_targets.patches(scene, side)
    assert grid.shape == (side**2, patch_targets.COLUMNS)
    assert grid[:, patch_targets.CENTRE].sum() == len(scene.items)
    for item in scene.items:
        x, y = item.centre
        row = grid[int(y * side) * side + int(x * side)]
        assert row[patch_targets.KIND] == patch_targets.KIND_INDEX["shapes", item.kind]
        assert row[patch_targets.COLOUR] == patch_targets.COLOUR_INDEX[item.colour]


def test_blocks_of_classes_do_not_overlap() -> None:
    spans = sorted(
        (patch_targets.BLOCKS[name], patch_targets.BLOCKS[name] + len(room.kinds))
        for name, room in ROOMS.items()
    )
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert spans[-1][1] <= patch_targets.FIRST_ICON_CLASS


def test_a_sample_for_the_page_is_a_picture_with_questions() -> None:
    picture, asked = sample_scene(1, "shapes")
    assert picture.mode == "RGB"
    assert asked
