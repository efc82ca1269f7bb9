"""Training of the two towers: batches, targets, losses, resuming, export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, PreTrainedTokenizerFast, SiglipModel

from finetune.pretrain import patch_targets, picture_pool
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.patch_targets import FIRST_PHOTO_CLASS, KIND_INDEX
from finetune.pretrain.picture_pool import PicturePool, PictureSources, photo_targets
from finetune.pretrain.tower_batches import PictureDescription, sample_texts
from finetune.pretrain.towers import (
    TowerHeads,
    TowerTrainingConfig,
    encode_pictures,
    name_loss,
    tower_config,
)
from finetune.pretrain.two_towers import TowerTraining
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.batches import PhotoBatch
from tests.finetune.pretrain.packed_data import pack_noise_icons, pack_noise_photos

TINY = TowerTrainingConfig(
    pictures=64,
    side=32,
    patch=8,
    width=32,
    layers=1,
    batch=8,
    capacity=16,
    validation_scenes=4,
)


@pytest.fixture
def out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    tokenizer.save_pretrained(tmp_path / "out/tokenizer")
    return tmp_path / "out"


@pytest.fixture
def sources(tmp_path: Path) -> PictureSources:
    photos = pack_noise_photos(tmp_path / "photos")
    return PictureSources.open(photos, pack_noise_icons(tmp_path / "icons"), side=32)


def test_without_packed_data_the_sources_list_what_is_missing() -> None:
    sources = PictureSources.open(None, None, 32)
    assert sources.photos is None
    assert "icons" not in sources.rooms
    assert [line.split(":")[0] for line in sources.missing] == ["No --icons", "No --photos"]


def test_only_kinds_of_rooms_with_the_same_objects_share_classes() -> None:
    assert KIND_INDEX["shapes", "circle"] == KIND_INDEX["wide shapes", "circle"]
    others = {key: k for key, k in KIND_INDEX.items() if key[0] not in ("wide shapes", "plots")}
    assert len(set(others.values())) == len(others)
    new = KIND_INDEX["wide shapes", "square"]
    assert new not in others.values()
    assert new < patch_targets.BLOCKS["things"]


def test_patches_outside_a_photographs_box_are_ignored() -> None:
    box = torch.tensor([[0.5, 0.0, 1.0, 0.5]])
    batch = PhotoBatch(torch.zeros(1, 3, 32, 32), torch.tensor([7]), box, torch.ones(1, 2))
    rows = photo_targets(batch, PatchGrid(32, 4)).view(4, 4, -1)
    owned = rows[..., patch_targets.OWNED]
    assert (owned == 1).nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert (owned != 1).sum() == (owned == 2).sum()
    assert rows[0, 2, patch_targets.KIND] == FIRST_PHOTO_CLASS + 7
    assert rows[0, 2, patch_targets.X :].tolist() == [750, 250, 500, 500]


def test_positions_are_relative_to_the_picture_without_padding() -> None:
    box = torch.tensor([[0.0, 0.25, 0.5, 0.5]])
    shares = torch.tensor([[1.0, 0.5]])  # a photograph twice as wide as high
    batch = PhotoBatch(torch.zeros(1, 3, 32, 32), torch.tensor([0]), box, shares)
    row = photo_targets(batch, PatchGrid(32, 4)).view(4, 4, -1)[1, 0]
    assert row[patch_targets.X :].tolist() == [250, 250, 500, 500]


@pytest.mark.slow
def test_worker_processes_draw_the_same_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_pool, "CHUNK", 8)
    icons = pack_noise_icons(tmp_path / "icons")
    sources = PictureSources.open(None, icons, 32)
    grid = PatchGrid(32, 4)
    pool = PicturePool(sources, grid, 40, workers=1, icons=icons)
    pool.refill(1)
    pool.close()
    assert len(pool.pictures) >= 8
    for seed in range(8):
        expected = sources.draw(seed, grid)
        assert np.array_equal(pool.pictures[seed].pixels, expected.pixels)
        assert pool.pictures[seed].caption == expected.caption


def test_a_text_is_true_of_every_picture_that_it_describes() -> None:
    descriptions = [
        PictureDescription("photo", ("poodle", "dog")),
        PictureDescription("photo", ("poodle", "dog")),
        PictureDescription("icon", frozenset({"dog"})),
        PictureDescription("unknown", frozenset()),
        PictureDescription("drawing", frozenset(), "a red circle"),
    ]
    found = {}
    for seed in range(200):
        texts, true = sample_texts(descriptions, np.random.default_rng(seed))
        found |= {text: true[:, k].tolist() for k, text in enumerate(texts)}
    assert found["a dog"] == [1, 1, 1, 0, -1]
    assert found["a photo of a dog"] == [1, 1, -1, 0, -1]
    assert found["a photo of a poodle"] == [1, 1, -1, 0, -1]
    assert found["an icon of a dog"] == [-1, -1, 1, 0, -1]
    assert found["a red circle"] == [-1, -1, -1, -1, 1]


def test_classes_of_different_data_sets_do_not_compete() -> None:
    heads = TowerHeads(4)
    icons = len(icon_concepts())
    with torch.no_grad():
        heads.name_head.weight.zero_()
        heads.name_head.bias.zero_()
        heads.name_head.bias[icons] = 9.0  # a class of photographs, which must not affect icons
    pooled = torch.zeros(3, 4)
    icon = name_loss(heads, pooled, torch.tensor([0, -1, -1]))
    assert icon.item() == pytest.approx(np.log(icons), rel=1e-4)
    cifar = name_loss(heads, pooled, torch.tensor([icons + 205, -1, -1]))
    assert cifar.item() == pytest.approx(np.log(10), rel=1e-4)
    assert name_loss(heads, pooled, torch.tensor([-1, -1, -1])).item() == 0


def test_features_do_not_depend_on_the_order_of_kept_patches(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    torch.manual_seed(0)
    model = SiglipModel(tower_config(len(tokenizer), TINY)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    features, pooled = encode_pictures(model, pixels)
    shuffled, pooled_too = encode_pictures(model, pixels, order)
    expected = features.gather(1, order[..., None].expand(-1, -1, features.shape[-1]))
    assert torch.allclose(shuffled, expected, atol=1e-5)
    assert torch.allclose(pooled, pooled_too, atol=1e-5)


def test_patches_of_padding_are_dropped_first(out: Path) -> None:
    training = TowerTraining(out, TINY, PictureSources.open(None, None, 32))
    kept = training.sample_patches(torch.tensor([[1.0, 0.25]] * 50 + [[1.0, 1.0]] * 50))
    assert kept is not None
    rows = kept // 4  # a strip across the middle of 4 x 4 patches: rows 1 and 2
    strip = ((rows[:50] == 1) | (rows[:50] == 2)).float().mean()
    whole = ((rows[50:] == 1) | (rows[50:] == 2)).float().mean()
    assert strip > 0.85
    assert 0.35 < whole < 0.65
    assert all(len(set(row)) == len(row) for row in kept.tolist())


def test_an_interrupted_training_continues_and_exports_a_checkpoint(
    out: Path, sources: PictureSources
) -> None:
    first = TowerTraining(out, TINY, sources)
    before = first.model.vision_model.embeddings.position_embedding.weight.clone()
    first.pool.refill(8)
    first.train_step(*first.next_batch())
    first.save()
    assert not torch.equal(before, first.model.vision_model.embeddings.position_embedding.weight)

    resumed = TowerTraining(out, TINY, sources)
    assert (resumed.pictures_seen, resumed.step) == (8, 1)
    assert resumed.pool.next_seed == first.pool.next_seed
    for saved, loaded in zip(first.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(saved, loaded)
    resumed.train(minutes=None, validate_every=1000)
    assert resumed.pictures_seen == 64
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"photos/read", "icons/read", "wide shapes/kind"} <= set(lines[-1]["validation"])

    folder = resumed.export()
    exported = SiglipModel.from_pretrained(folder)
    assert exported.config.vision_config.image_size == 32
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.image_processor.do_pad
    tokenizer = processor.tokenizer
    assert tokenizer.model_max_length == exported.config.text_config.max_position_embeddings
    assert tokenizer.padding_side == "right", "as in training"


def test_prefetching_in_a_thread_gives_the_same_batches(
    out: Path, sources: PictureSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for prefetches in (False, True):
        monkeypatch.setattr(TowerTrainingConfig, "prefetches", prefetches)
        (out / "state.pt").unlink(missing_ok=True)
        training = TowerTraining(out, TINY, sources)
        training.train(minutes=None, validate_every=1000)
        weights.append(training.heads.kind_head.weight.detach().clone())
    assert torch.allclose(*weights, atol=1e-4)


def test_drawings_alone_are_enough_to_train_and_validate(out: Path) -> None:
    training = TowerTraining(out, TINY, PictureSources.open(None, None, 32))
    training.pool.refill(8)
    assert training.train_step(*training.next_batch())["named"] == 0
    assert 0 <= training.validate()["shape pairs/read"] <= 1


def test_the_state_keeps_the_keys_that_earlier_versions_wrote(out: Path) -> None:
    training = TowerTraining(out, TINY, PictureSources.open(None, None, 32))
    training.save()
    state = torch.load(out / "state.pt", weights_only=True)
    assert set(state) == {
        "model",
        "heads",
        "optimiser",
        "step",
        "seen",
        "seconds",
        "next_seed",
    }
    # The optimiser's state refers to parameters by their order.
    assert list(state["heads"]) == [
        f"{head}.{part}"
        for head in ("patch_head", "kind_head", "name_head")
        for part in ("weight", "bias")
    ]
