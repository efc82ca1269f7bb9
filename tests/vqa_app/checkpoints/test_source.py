"""Where models come from, and what is said when they do not come."""

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


def test_a_hub_model_is_downloaded_without_pickles_and_pages(
    hub: FakeHub, repository: Path
) -> None:
    hub.repositories["someone/model"] = repository
    found = source.find("someone/model")
    assert {path.name for path in found.directory.iterdir()} == {"config.json", "model.safetensors"}
    assert (found.name, found.revision) == ("someone/model", COMMIT)


def test_a_second_time_nothing_is_downloaded(hub: FakeHub, repository: Path) -> None:
    hub.repositories["someone/model"] = repository
    first = source.find("someone/model")
    hub.downloads.clear()
    assert source.find("someone/model") == first
    assert hub.downloads == []


def test_what_was_downloaded_is_there_without_a_network(
    hub: FakeHub, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories["someone/model"] = repository
    first = source.find("someone/model")
    assert source.find("someone/model", offline=True).directory == first.directory
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert source.find("someone/model").directory == first.directory


@pytest.mark.parametrize(
    ("answer", "said", "hint"),
    [
        ((404, "RepoNotFound"), "no model someone/model", "spelling"),
        ((401, "RepoNotFound"), "no model someone/model", "log in"),
        ((403, "GatedRepo"), "gated", "Accept it on https://huggingface.co/someone/model"),
        ((503, ""), "hub cannot be reached", "network"),
    ],
)
def test_a_refusal_of_the_hub_is_told_in_two_lines_at_once(
    hub: FakeHub, answer: tuple[int, str], said: str, hint: str
) -> None:
    hub.repositories["someone/model"] = answer
    with pytest.raises(ModelError) as caught:
        source.find("someone/model")
    assert len(hub.requests) == 1
    assert said in caught.value.problem
    assert hint in caught.value.hint
    assert len(str(caught.value).splitlines()) == 2


def test_an_unknown_revision_is_told(hub: FakeHub, repository: Path) -> None:
    hub.repositories["someone/model"] = repository
    with pytest.raises(ModelError, match="no revision 'v9'"):
        source.find("someone/model", revision="v9")


def test_no_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    paused = pauses(monkeypatch)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        source.find("someone/model")
    assert not paused


def test_offline_asks_nobody(hub: FakeHub, repository: Path) -> None:
    hub.repositories["someone/model"] = repository
    with pytest.raises(ModelError, match="not in the local cache"):
        source.find("someone/model", offline=True)
    assert hub.downloads == []


def test_a_process_that_stays_offline_asks_nobody(
    hub: FakeHub, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.repositories["someone/model"] = repository
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # both are put back after the test
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    source.stay_offline()
    with pytest.raises(ModelError, match="the network is not to be used"):
        source.find("someone/model")
    assert hub.downloads == []
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("file", "said"),
    [("pytorch_model.bin", "pickle"), ("model.gguf", "llama.cpp"), ("x.txt", "no weights")],
)
def test_repositories_without_safetensors_are_refused_before_the_download(
    hub: FakeHub, repository: Path, file: str, said: str
) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (repository / name).unlink()
    (repository / file).write_bytes(b"x")
    hub.repositories["someone/model"] = repository
    with pytest.raises(ModelError, match=said):
        source.find("someone/model")
    assert hub.downloads == []


def test_a_disk_without_room_is_told_before_the_download(hub: FakeHub, repository: Path) -> None:
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
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder|There is no model"):
        source.find(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file"):
        source.find(str(tmp_path / "model.safetensors"))


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no revisions"):
        source.find(str(tmp_path), revision="main")
