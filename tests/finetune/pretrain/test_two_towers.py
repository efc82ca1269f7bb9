"""The encoder stage: what it learns from, that it learns, stops, goes on and exports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, PreTrainedTokenizerFast, SiglipModel

from finetune.pretrain import patch_targets
from finetune.pretrain.picture_mix import (
    KIND_INDEX,
    PHOTOS_FROM,
    Grid,
    Pool,
    Sources,
    photo_targets,
)
from finetune.pretrain.tokenizer import train_tokenizer
from finetune.pretrain.tower_batches import Shown, texts_for
from finetune.pretrain.tower_exam import validate
from finetune.pretrain.towers import Heads, Settings, name_loss, see, two_tower_config
from finetune.pretrain.two_towers import Run
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.batches import PhotoBatch
from tests.finetune.pretrain.packed_data import pack_noise_icons, pack_noise_photos

TINY = Settings(pictures=64, side=32, patch=8, width=32, layers=1, batch=8, capacity=16, exam=4)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(scenes=5)


@pytest.fixture
def out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    tokenizer.save_pretrained(tmp_path / "out/tokenizer")
    return tmp_path / "out"


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    photos = pack_noise_photos(tmp_path / "photos")
    return Sources.open(photos, pack_noise_icons(tmp_path / "icons"), side=32)


def test_without_data_it_says_what_is_missing() -> None:
    sources = Sources.open(None, None, 32)
    assert sources.photos is None
    assert "icons" not in sources.rooms
    assert [line.split(":")[0] for line in sources.missing] == ["No --icons", "No --photos"]


def test_kinds_share_classes_only_where_they_are_the_same() -> None:
    assert KIND_INDEX["shapes", "circle"] == KIND_INDEX["wide shapes", "circle"]
    others = {key: k for key, k in KIND_INDEX.items() if key[0] != "wide shapes"}
    assert len(set(others.values())) == len(others)
    new = KIND_INDEX["wide shapes", "square"]
    assert new not in others.values()
    assert new < patch_targets.BLOCKS["things"]


def test_patches_outside_a_photographs_box_are_not_judged() -> None:
    box = torch.tensor([[0.5, 0.0, 1.0, 0.5]])
    batch = PhotoBatch(torch.zeros(1, 3, 32, 32), torch.tensor([7]), box, torch.ones(1, 2))
    rows = photo_targets(batch, Grid(32, 4)).view(4, 4, -1)
    owned = rows[..., patch_targets.OWNED]
    assert (owned == 1).nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert (owned != 1).sum() == (owned == 2).sum()
    assert rows[0, 2, patch_targets.KIND] == PHOTOS_FROM + 7
    assert rows[0, 2, patch_targets.X :].tolist() == [750, 250, 500, 500]


def test_places_are_those_within_the_picture_not_the_padding() -> None:
    box = torch.tensor([[0.0, 0.25, 0.5, 0.5]])
    shares = torch.tensor([[1.0, 0.5]])  # a photograph twice as wide as high
    batch = PhotoBatch(torch.zeros(1, 3, 32, 32), torch.tensor([0]), box, shares)
    row = photo_targets(batch, Grid(32, 4)).view(4, 4, -1)[1, 0]
    assert row[patch_targets.X :].tolist() == [250, 250, 500, 500]


@pytest.mark.slow
def test_workers_draw_the_same_pictures(tmp_path: Path) -> None:
    icons = pack_noise_icons(tmp_path / "icons")
    sources = Sources.open(None, icons, 32)
    grid = Grid(32, 4)
    pool = Pool(sources, grid, 40, workers=1, icons=icons)
    pool.refill(1)
    pool.close()
    assert len(pool.drawn) >= 32
    for seed in (0, 31):
        expected = sources.draw(seed, grid)
        assert np.array_equal(pool.drawn[seed].pixels, expected.pixels)
        assert pool.drawn[seed].caption == expected.caption


def test_a_text_is_true_of_every_picture_that_it_fits() -> None:
    shown = [
        Shown("photo", ("poodle", "dog")),
        Shown("photo", ("poodle", "dog")),
        Shown("icon", frozenset({"dog"})),
        Shown("unknown", frozenset()),
        Shown("drawing", frozenset(), "a red circle"),
    ]
    found = {}
    for seed in range(200):
        texts, true = texts_for(shown, np.random.default_rng(seed))
        found |= {text: true[:, k].tolist() for k, text in enumerate(texts)}
    assert found["a dog"] == [1, 1, 1, 0, -1]
    assert found["a photo of a dog"] == [1, 1, -1, 0, -1]
    assert found["a photo of a poodle"] == [1, 1, -1, 0, -1]
    assert found["an icon of a dog"] == [-1, -1, 1, 0, -1]
    assert found["a red circle"] == [-1, -1, -1, -1, 1]


def test_names_compete_within_their_own_data() -> None:
    heads = Heads(4)
    icons = len(icon_concepts())
    with torch.no_grad():
        heads.name_head.weight.zero_()
        heads.name_head.bias.zero_()
        heads.name_head.bias[icons] = 9.0  # a photograph's class is no rival to icons
    pooled = torch.zeros(3, 4)
    icon = name_loss(heads, pooled, torch.tensor([0, -1, -1]))
    assert icon.item() == pytest.approx(np.log(icons), rel=1e-4)
    cifar = name_loss(heads, pooled, torch.tensor([icons + 205, -1, -1]))
    assert cifar.item() == pytest.approx(np.log(10), rel=1e-4)
    assert name_loss(heads, pooled, torch.tensor([-1, -1, -1])).item() == 0


def test_kept_patches_are_seen_as_among_all(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = SiglipModel(two_tower_config(len(tokenizer), TINY)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    features, pooled = see(model, pixels, None)
    shuffled, pooled_too = see(model, pixels, order)
    expected = features.gather(1, order[..., None].expand(-1, -1, features.shape[-1]))
    assert torch.allclose(shuffled, expected, atol=1e-5)
    assert torch.allclose(pooled, pooled_too, atol=1e-5)


def test_patches_of_padding_are_dropped_first(out: Path) -> None:
    run = Run(out, TINY, Sources.open(None, None, 32))
    kept = run.kept(torch.tensor([[1.0, 0.25]] * 50 + [[1.0, 1.0]] * 50))
    assert kept is not None
    rows = kept // 4  # a strip across the middle of 4 x 4 patches: rows 1 and 2
    strip = ((rows[:50] == 1) | (rows[:50] == 2)).float().mean()
    whole = ((rows[50:] == 1) | (rows[50:] == 2)).float().mean()
    assert strip > 0.85
    assert 0.35 < whole < 0.65
    assert all(len(set(row)) == len(row) for row in kept.tolist())


def test_it_trains_stops_goes_on_and_exports(out: Path, sources: Sources) -> None:
    first = Run(out, TINY, sources)
    before = first.model.vision_model.embeddings.position_embedding.weight.clone()
    first.pool.refill(8)
    first.learn(*first.next_batch())
    first.save()
    assert not torch.equal(before, first.model.vision_model.embeddings.position_embedding.weight)

    again = Run(out, TINY, sources)
    assert (again.seen, again.step) == (8, 1)
    assert again.pool.next_seed == first.pool.next_seed
    for mine, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    again.train(minutes=None, validate_every=1000)
    assert again.seen == 64
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"photos/read", "icons/read", "wide shapes/kind"} <= set(lines[-1]["validation"])

    folder = again.export()
    loaded = SiglipModel.from_pretrained(folder)
    assert loaded.config.vision_config.image_size == 32
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.image_processor.do_pad


def test_batches_got_by_a_thread_are_the_same(
    out: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for prefetches in (False, True):
        monkeypatch.setattr(Settings, "prefetches", prefetches)
        (out / "state.pt").unlink(missing_ok=True)
        run = Run(out, TINY, sources)
        run.train(minutes=None, validate_every=1000)
        weights.append(run.heads.kind_head.weight.detach().clone())
    assert torch.allclose(*weights, atol=1e-4)


def test_it_trains_and_is_examined_on_drawings_alone(out: Path) -> None:
    run = Run(out, TINY, Sources.open(None, None, 32))
    run.pool.refill(8)
    assert run.learn(*run.next_batch())["named"] == 0
    assert 0 <= validate(run.examined)["shape pairs/read"] <= 1
