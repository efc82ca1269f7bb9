"""Models of the hub on this machine: listing and deleting them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vqa_app.checkpoints.installed import delete_model, installed_models
from vqa_app.errors import ModelError

COMMIT = "1" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(cache: Path, name: str, size: int, *, kind: str = "models", partial: int = 0) -> Path:
    """Put a model of `size` bytes into the cache, as huggingface_hub stores it."""
    repository = cache / f"{kind}--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    if size:
        (repository / "blobs" / "abc").write_bytes(bytes(size))
        (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    if partial:
        (repository / "blobs" / "def.incomplete").write_bytes(bytes(partial))
    return repository


def test_without_a_cache_nothing_is_installed(cache: Path) -> None:
    assert installed_models() == []


def test_models_are_listed_with_size_and_time_the_largest_first(cache: Path) -> None:
    install(cache, "a/small", 10)
    large = install(cache, "b/large", 3000)
    os.utime(large / "blobs" / "abc", (1_700_000_000, 1_700_000_000))
    install(cache, "c/data", 9000, kind="datasets")
    first, second = installed_models()
    assert (first.name, first.size, first.last_used) == ("b/large", 3000, 1_700_000_000)
    assert (second.name, second.size, second.complete) == ("a/small", 10, True)


def test_an_unfinished_download_counts_with_what_it_takes_up(cache: Path) -> None:
    install(cache, "a/part", 0, partial=500)
    (model,) = installed_models()
    assert (model.size, model.complete) == (500, False)


def test_a_download_that_ended_before_its_first_file_is_listed_and_can_be_deleted(
    cache: Path,
) -> None:
    blobs = cache / "models--a--aborted" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.1234.incomplete").write_bytes(bytes(700))
    (model,) = installed_models()
    assert (model.name, model.size, model.complete) == ("a/aborted", 700, False)
    assert delete_model("a/aborted") == 700
    assert not blobs.parent.exists()
    assert installed_models() == []


def test_a_model_whose_newer_version_was_not_downloaded_is_listed(cache: Path) -> None:
    repository = install(cache, "a/one", 10)
    (repository / "refs" / "main").write_text("2" * 40)  # written before the files are
    assert [(model.name, model.size) for model in installed_models()] == [("a/one", 10)]


def test_a_model_with_a_link_to_nothing_is_listed(cache: Path) -> None:
    repository = install(cache, "a/one", 10)
    (repository / "snapshots" / COMMIT / "config.json").symlink_to("../../blobs/gone")
    assert [(model.name, model.size) for model in installed_models()] == [("a/one", 10)]


def test_weights_that_two_models_share_are_freed_with_the_last_of_them(cache: Path) -> None:
    from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

    for name in ("a/one", "a/copy"):
        blob = install(cache, name, 5000) / "blobs" / "abc"
        assert publish_blob_to_shared_store(
            blob_path=str(blob), xet_hash="f" * 64, cache_dir=cache, expected_size=5000
        )
    assert [model.size for model in installed_models()] == [5000, 5000]
    assert delete_model("a/one") == 0
    assert (cache / "models--a--copy" / "blobs" / "abc").read_bytes() == bytes(5000)
    assert delete_model("a/copy") == 5000
    assert not [file for file in cache.rglob("*") if file.is_file() and file.stat().st_size >= 5000]


def test_a_cache_that_cannot_be_read_is_reported(cache: Path) -> None:
    cache.write_text("a file", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read"):
        installed_models()


def test_a_deleted_model_is_gone_and_no_copy_with_the_same_commit(cache: Path) -> None:
    gone, kept = install(cache, "a/one", 10), install(cache, "a/two", 20)
    assert delete_model("a/one") == 10
    assert not gone.exists()
    assert (kept / "snapshots" / COMMIT / "model.safetensors").read_bytes() == bytes(20)


def test_an_unfinished_download_can_be_deleted(cache: Path) -> None:
    part = install(cache, "a/part", 0, partial=500)
    assert delete_model("a/part") == 500
    assert not part.exists()


@pytest.mark.parametrize("name", ["a/other", "../../etc", "", "a/one/../two"])
def test_only_models_of_the_cache_can_be_deleted(cache: Path, name: str) -> None:
    install(cache, "a/one", 10)
    with pytest.raises(ModelError, match="not on this machine"):
        delete_model(name)
    assert len(installed_models()) == 1


def test_a_model_that_cannot_be_deleted_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(cache, "a/one", 10)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(ModelError, match="could not be deleted"):
        delete_model("a/one")
