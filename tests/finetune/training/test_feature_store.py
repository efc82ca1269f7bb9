"""Stored outputs of the frozen encoder give the same losses as running it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.preflight import check_rows
from finetune.data.read import read_rows
from finetune.kernels.shared_prefix import enable_branching
from finetune.training.collator import FEATURES, ROWS
from finetune.training.feature_store import (
    FeatureStore,
    encode_pictures,
    encoder_hash,
    fill,
    make_plan,
    make_room,
    open_store,
    pictures_at_once,
    pixels_of,
)
from finetune.training.freezing import freeze
from finetune.training.objective import Objective
from finetune.training.stages import make_collate
from tests.finetune.training_data import write_data
from tests.tiny import picture
from vqa_app.checkpoints.loader import LoadedModel, load_model

DIGESTS = [f"{number:064x}" for number in range(8)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def load(directory: Path) -> LoadedModel:
    loaded = load_model(str(directory), dtype="float32", device="cpu")
    enable_branching(loaded.model)
    return loaded


@pytest.mark.parametrize("stage", ["projector", "lora"])
@pytest.mark.parametrize("bf16", [False, True])
def test_losses_and_gradients_equal_those_with_the_encoder_running(
    tiny_llava_dir: Path, data: Path, tmp_path: Path, stage: Any, bf16: bool
) -> None:
    loaded = load(tiny_llava_dir)
    samples = check_rows(read_rows(data), loaded.processor, max_length=1000).samples
    model = freeze(loaded.model, stage, rank=4, alpha=8, dropout=0.0).model
    dtype = torch.bfloat16 if bf16 else torch.float32
    store = open_store(model, loaded.processor, tmp_path, dtype, samples[0])
    fill(store, model, loaded.processor, samples)
    store.reload()
    objective = Objective(model, autocast=torch.bfloat16 if bf16 else None)

    def step(features: FeatureStore | None) -> tuple[float, torch.Tensor]:
        objective.zero_grad()
        batch = make_collate(samples, loaded.processor, True, features, 1)(range(len(samples)))
        assert (FEATURES in batch) == (features is not None) == ("pixel_values" not in batch)
        batch.pop(ROWS)
        loss = objective(**batch)["loss"]
        loss.backward()
        return loss.item(), torch.cat(
            [p.grad.flatten() for p in objective.parameters() if p.requires_grad]
        )

    cached, uncached = step(store), step(None)
    tolerance = 1e-2 if bf16 else 1e-5
    assert cached[0] == pytest.approx(uncached[0], rel=tolerance)
    torch.testing.assert_close(cached[1], uncached[1], rtol=tolerance, atol=tolerance)


def test_later_runs_use_what_is_stored(tiny_llava_dir: Path, data: Path, tmp_path: Path) -> None:
    loaded = load(tiny_llava_dir)
    samples = check_rows(read_rows(data), loaded.processor, max_length=1000).samples
    example = samples[0].sources[0].open()
    first = open_store(loaded.model, loaded.processor, tmp_path, torch.float32, samples[0])
    fill(first, loaded.model, loaded.processor, samples[:3])
    again = open_store(loaded.model, loaded.processor, tmp_path, torch.float32, samples[0])
    digests = [digest for sample in samples for digest in sample.digests]
    plan = make_plan(again, digests, 1.0, epochs=3)
    assert (plan.use, plan.pictures, plan.present) == (True, 6, 3)
    expected = encode_pictures(loaded.model, [pixels_of(loaded.processor, example)], torch.float32)
    torch.testing.assert_close(again[example.digest], expected[0])


def test_another_encoder_or_picture_size_has_another_store(tiny_llava_dir: Path) -> None:
    loaded = load(tiny_llava_dir)
    before = encoder_hash(loaded.model, loaded.processor)
    assert encoder_hash(loaded.model, loaded.processor) == before
    with torch.no_grad():
        next(loaded.model.model.vision_tower.parameters()).add_(1e-3)
    changed = encoder_hash(loaded.model, loaded.processor)
    loaded.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert len({before, changed, encoder_hash(loaded.model, loaded.processor)}) == 3


def store_with(folder: Path, count: int) -> FeatureStore:
    store = FeatureStore(folder, (2, 3), torch.float32)
    store.append(DIGESTS[:count], torch.arange(count * 6.0).view(count, 2, 3))
    store.reload()
    return store


def test_a_kill_during_a_write_loses_only_the_incomplete_record(tmp_path: Path) -> None:
    store = store_with(tmp_path / "e", 3)
    with (tmp_path / "e" / "features.bin").open("ab") as file:
        file.write(b"half a record")
    again = FeatureStore(tmp_path / "e", (2, 3), torch.float32)
    assert len(again) == 3
    again.append([DIGESTS[5]], torch.full((1, 2, 3), 7.0))
    again.reload()
    assert again[DIGESTS[5]].tolist() == [[7.0] * 3] * 2
    assert torch.equal(again[DIGESTS[2]], store[DIGESTS[2]])
    assert DIGESTS[6] not in again


def test_two_processes_filling_a_store_write_every_picture_once(tmp_path: Path) -> None:
    mine, other = (FeatureStore(tmp_path / "e", (2, 3), torch.float32) for _ in range(2))
    features = torch.arange(8 * 6.0).view(8, 2, 3)
    for start in (0, 2, 4, 6):  # neither reloads what the other has written meanwhile
        for store in (mine, other):
            store.append(DIGESTS[start : start + 2], features[start : start + 2])
    other.append(DIGESTS[3:8], features[3:8])
    mine.reload()
    assert (tmp_path / "e" / "features.bin").stat().st_size == 8 * 24
    assert len(mine) == 8
    assert all(torch.equal(mine[digest], features[i]) for i, digest in enumerate(DIGESTS))
    mine.clear()
    other.append(DIGESTS[:1], features[:1])
    other.reload()
    assert len(other) == 1


@pytest.mark.parametrize(
    ("limit", "epochs", "use", "reason"),
    [
        (1.0, 3, True, "are kept"),
        (0, 3, False, "--feature-gb is 0"),
        (1e-7, 3, False, "more than --feature-gb"),
    ],
)
def test_the_plan_gives_its_reason(
    tmp_path: Path, limit: float, epochs: float, use: bool, reason: str
) -> None:
    plan = make_plan(FeatureStore(tmp_path / "e", (2, 3), torch.float32), DIGESTS, limit, epochs)
    assert plan.use is use
    assert reason in plan.reason


def test_older_stores_are_removed_at_the_limit(tmp_path: Path) -> None:
    old, photos = tmp_path / f"{1:016x}-float32", tmp_path / "photos"
    store_with(old, 8)
    photos.mkdir()
    mine = store_with(tmp_path / f"{2:016x}-float32", 4)
    make_room(mine, needed=4 * 24, limit_gb=1)
    assert old.exists()
    make_room(mine, needed=4 * 24, limit_gb=250e-9)
    assert not old.exists()
    assert len(mine) == 4
    make_room(mine, needed=4 * 24, limit_gb=150e-9)
    assert len(mine) == 0
    assert photos.exists()  # not a store


def test_the_least_recently_used_store_is_removed_first(tmp_path: Path) -> None:
    first, second, mine = (store_with(tmp_path / f"{n:016x}-float32", 4) for n in range(3))
    for store in (first, second):
        os.utime(store.folder, (0, 0))
    first.touch()
    make_room(mine, needed=0, limit_gb=350e-9)
    assert first.folder.exists()
    assert not second.folder.exists()


def test_records_lost_in_a_power_cut_are_computed_again(tmp_path: Path) -> None:
    store_with(tmp_path / "e", 4)
    records = tmp_path / "e" / "features.bin"
    records.write_bytes(records.read_bytes()[: 2 * 24])
    again = FeatureStore(tmp_path / "e", (2, 3), torch.float32)
    again.append([DIGESTS[5]], torch.full((1, 2, 3), 7.0))
    again.reload()
    assert len(again) == 3
    assert again[DIGESTS[5]].tolist() == [[7.0] * 3] * 2
    assert DIGESTS[2] not in again


def test_a_store_that_another_process_removed_is_empty(tmp_path: Path) -> None:
    mine, other = store_with(tmp_path / "e", 4), store_with(tmp_path / "e", 0)
    make_room(mine, needed=1, limit_gb=0)
    other.reload()
    assert len(other) == 0


def test_different_pictures_have_different_features(tiny_llava_dir: Path) -> None:
    loaded = load(tiny_llava_dir)
    pixels = [pixels_of(loaded.processor, picture(number)) for number in (0, 1)]
    both = encode_pictures(loaded.model, pixels, torch.float32)
    assert both.shape[0] == 2
    assert not torch.allclose(both[0], both[1])


def test_processes_encode_every_picture_between_them_in_any_order(
    tiny_llava_dir: Path, data: Path, tmp_path: Path
) -> None:
    loaded = load(tiny_llava_dir)
    samples = check_rows(read_rows(data), loaded.processor, max_length=1000).samples
    for process in range(3):  # each loads what the ones before it have written
        store = open_store(loaded.model, loaded.processor, tmp_path, torch.float32, samples[0])
        fill(store, loaded.model, loaded.processor, samples, part=(process, 3))
    store.reload()
    assert all(digest in store for sample in samples for digest in sample.digests)


def test_out_of_memory_halves_the_encoding_batch(
    tiny_llava_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tiny_llava_dir)
    samples = check_rows(read_rows(data), loaded.processor, max_length=1000).samples
    store = open_store(loaded.model, loaded.processor, tmp_path, torch.float32, samples[0])
    tried, limit = [], 2

    def encode(model: Any, pixels: Any, dtype: torch.dtype) -> torch.Tensor:
        tried.append(len(pixels))
        if len(pixels) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode_pictures(model, pixels, dtype)

    monkeypatch.setattr("finetune.training.feature_store.encode_pictures", encode)
    monkeypatch.setattr("finetune.training.feature_store.pictures_at_once", lambda _: 4)
    fill(store, loaded.model, loaded.processor, samples, workers=1)
    store.reload()
    assert tried[:2] == [4, 2]
    assert set(tried[2:]) <= {1, 2}
    for digest, source in ((sample.digests[0], sample.sources[0]) for sample in samples[:4]):
        pixels = pixels_of(loaded.processor, source.open())
        alone = encode_pictures(loaded.model, [pixels], torch.float32)[0]
        torch.testing.assert_close(store[digest], alone)
    store.clear()
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        fill(store, loaded.model, loaded.processor, samples, workers=1)


def test_a_cpu_encodes_few_large_pictures_at_once(tiny_llava_dir: Path) -> None:
    model = load(tiny_llava_dir).model
    vision = model.config.vision_config
    found = {}
    for vision.image_size in (128, 384, 4096):
        vision.patch_size = 16
        found[vision.image_size] = pictures_at_once(model)
    assert found == {128: 32, 384: 3, 4096: 1}
