"""Find models: built-in, in folders, and on a fake hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_hub import COMMIT, FakeHub, pauses, serve, use
from vqa_app.checkpoints import source
from vqa_app.errors import ModelError, UsageError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with serve(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = tmp_path / "repository"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "README.md").write_text("read me")
    return directory


def test_a_hub_model_is_downloaded_without_pickle_files_and_readme(
    hub: FakeHub, repository: Path
) -> None:
    hub.repositories["someone/model"] = repository
    found = source.find("someone/model")
    assert {path.name for path in found.directory.iterdir()} == {"config.json", "model.safetensors"}
    assert (found.name, found.revision) == ("someone/model", COMMIT)


def test_nothing_is_downloaded_twice(hub: FakeHub, repository: Path) -> None:
    hub.repositories["someone/model"] = repository
    first = source.find("someone/model")
    hub.downloads.clear()
    assert source.find("someone/model") == first
    assert hub.downloads == []


def test_a_downloaded_model_is_found_without_a_network(
    hub: FakeHub, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories["someone/model"] = repository
    first = source.find("someone/model")
    assert source.find("someone/model", offline=True).directory == first.directory
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert source.find("someone/model").directory == first.directory


@pytest.mark.parametrize(
    ("answer", "problem", "hint"),
    [
        ((404, "RepoNotFound"), "no model someone/model", "spelling"),
        ((401, "RepoNotFound"), "no model someone/model", "needs a login"),
        ((403, "GatedRepo"), "gated", "Accept it on https://huggingface.co/someone/model"),
        ((503, ""), "hub cannot be reached", "online"),
    ],
)
def test_an_error_of_the_hub_is_reported_without_retries(
    hub: FakeHub, answer: tuple[int, str], problem: str, hint: str
) -> None:
    hub.repositories["someone/model"] = answer
    with pytest.raises(ModelError) as caught:
        source.find("someone/model")
    assert len(hub.requests) == 1
    assert problem in caught.value.problem
    assert hint in caught.value.hint
    assert len(str(caught.value).splitlines()) == 2


def test_an_unknown_revision_is_reported(hub: FakeHub, repository: Path) -> None:
    hub.repositories["someone/model"] = repository
    with pytest.raises(ModelError, match="no revision 'v9'"):
        source.find("someone/model", revision="v9")


def test_a_missing_network_is_reported_without_retries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    paused = pauses(monkeypatch)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        source.find("someone/model")
    assert not paused


def test_offline_sends_no_requests(hub: FakeHub, repository: Path) -> None:
    hub.repositories["someone/model"] = repository
    with pytest.raises(ModelError, match="not in the local cache"):
        source.find("someone/model", offline=True)
    assert hub.downloads == []


def test_stay_offline_prevents_requests(
    hub: FakeHub, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.repositories["someone/model"] = repository
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # both are restored after the test
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    source.stay_offline()
    with pytest.raises(ModelError, match="downloads are switched off"):
        source.find("someone/model")
    assert hub.downloads == []
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("file", "message"),
    [("pytorch_model.bin", "pickle"), ("model.gguf", "llama.cpp"), ("x.txt", "no weights")],
)
def test_repositories_without_safetensors_are_rejected_before_the_download(
    hub: FakeHub, repository: Path, file: str, message: str
) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (repository / name).unlink()
    (repository / file).write_bytes(b"x")
    hub.repositories["someone/model"] = repository
    with pytest.raises(ModelError, match=message):
        source.find("someone/model")
    assert hub.downloads == []


def test_a_full_disk_is_reported_before_the_download(hub: FakeHub, repository: Path) -> None:
    hub.repositories["someone/model"] = repository
    hub.sizes["model.safetensors"] = 10**18
    with pytest.raises(ModelError, match=r"1000000000\.0 GB .* are free"):
        source.find("someone/model")
    assert hub.downloads == []


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model",
        "./nowhere",
        "/no/where",
        "a/b/c",
        "~/x",
        "~nobody/x",
        "",
        "foo/bar..baz",
        "foo/-bar",
        "foo/bar.git",
        "foo/" + 100 * "x",
        5000 * "x",
        "a\x00b",
    ],
)
def test_a_name_that_is_neither_folder_nor_hub_id_is_rejected(name: str) -> None:
    with pytest.raises(ModelError, match="There is no model"):
        source.find(name)


def test_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file"):
        source.find(str(tmp_path / "model.safetensors"))


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no revisions"):
        source.find(str(tmp_path), revision="main")


def test_a_misspelt_model_of_the_list_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        source.find("HuggingFaceTB/SmolVLM-256M-Instrukt", offline=True)
    assert "HuggingFaceTB/SmolVLM-256M-Instruct?" in caught.value.hint
