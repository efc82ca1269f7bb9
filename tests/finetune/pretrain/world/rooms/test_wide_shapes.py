"""The wide shapes room."""

import random
from pathlib import Path

import pytest
from PIL import Image

from finetune.pretrain.world.drawing.agg import AggCanvas
from finetune.pretrain.world.rooms.photos.store import PhotoStore
from finetune.pretrain.world.rooms.shapes.room import HELD_OUT_PAIRS
from finetune.pretrain.world.rooms.shapes.wide import (
    MORE_HELD_OUT_PAIRS,
    WIDE_KINDS,
    WIDE_SHAPES,
    WideShapes,
    caption,
    outline,
    single,
)
from tests.finetune.pretrain.packed_data import pack_noise_photos


def extent(kind: str, seed: int) -> tuple[float, float]:
    points = outline(kind, random.Random(seed))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return max(xs) - min(xs), max(ys) - min(ys)


@pytest.mark.parametrize("seed", range(5))
def test_a_square_is_square_and_a_rectangle_is_not(seed: int) -> None:
    for kind in ("square", "rounded square", "circle"):
        wide, high = extent(kind, seed)
        assert wide == pytest.approx(high, rel=0.01)
    for kind in ("rectangle", "rounded rectangle", "ellipse"):
        wide, high = extent(kind, seed)
        assert high <= 0.85 * wide


def test_held_out_pairs_are_never_drawn_in_training() -> None:
    held_out = HELD_OUT_PAIRS | MORE_HELD_OUT_PAIRS
    seen = set()
    for seed in range(300):
        scene = WIDE_SHAPES.make(random.Random(seed), "train")
        pairs = {(item.colour, item.kind) for item in scene.items}
        assert not pairs & held_out
        seen |= {kind for _, kind in pairs}
    assert seen == set(WIDE_KINDS)


def test_the_same_scene_gives_the_same_picture() -> None:
    scene = WIDE_SHAPES.make(random.Random(3), "train")
    assert WIDE_SHAPES.draw(scene).tobytes() == WIDE_SHAPES.draw(scene).tobytes()


def test_pictures_are_up_to_four_times_as_wide_as_high() -> None:
    aspects = []
    for seed in range(200):
        scene = WIDE_SHAPES.make(random.Random(seed), "train")
        aspects.append(scene.width / scene.height)
        assert all(-0.02 <= edge <= 1.02 for item in scene.items for edge in item.box)
    assert min(aspects) < 0.3
    assert max(aspects) > 3.3
    assert min(aspects) > 0.24
    assert max(aspects) < 4.1


def test_a_caption_names_colour_and_kind() -> None:
    assert caption(single("orange", "ellipse", 0)) == "an orange ellipse"


def test_no_question_asks_whether_a_square_is_a_rectangle() -> None:
    scene = single("red", "square", 0)
    for seed in range(200):
        for qa in WIDE_SHAPES.ask(scene, random.Random(seed), "test"):
            assert "rectangle" not in qa.question.replace("rounded rectangle", "")


def test_some_scenes_have_photographs_as_backgrounds(tmp_path: Path) -> None:
    store = PhotoStore.open(pack_noise_photos(tmp_path / "photos"))
    room = WideShapes(store)
    scenes = [room.make(random.Random(seed), "train") for seed in range(150)]
    on_photos = [scene for scene in scenes if scene.extra.get("photo") is not None]
    assert 5 < len(on_photos) < 50
    for scene in on_photos[:5]:
        assert scene.extra["photo"] in store.rows["train"]
        assert room.draw(scene).size == (scene.width, scene.height)
        assert room.draw(scene).tobytes() == room.draw(scene).tobytes()


def test_matplotlibs_renderer_draws_the_same_shapes() -> None:
    background = Image.new("RGB", (60, 40), (255, 255, 255))
    points = [(10.0, 5.0), (50.0, 5.0), (50.0, 20.0), (10.0, 20.0)]
    filled, outlined = AggCanvas(background), AggCanvas(background)
    filled.polygon(points, (200, 0, 0))
    outlined.outlined(points, (0, 0, 200), 3)
    picture = filled.finish()
    assert picture.getpixel((30, 12)) == (200, 0, 0)
    assert picture.getpixel((30, 30)) == (255, 255, 255)
    assert outlined.finish().getpixel((30, 12)) == (255, 255, 255)
    assert outlined.finish().getpixel((30, 5)) == (0, 0, 200)
