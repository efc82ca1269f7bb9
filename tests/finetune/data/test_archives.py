"""The cache of unpacked archives, which commands share."""

from __future__ import annotations

import errno
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.data import archives
from finetune.data.read import read_rows
from vqa_app.errors import DataError


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as file:
        file.writestr("rows.csv", "question,answer\nWhat?,one\n")
    return tmp_path / "rows.zip"


def test_commands_that_unpack_the_same_archive_at_once_share_the_result(archive: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(archives.unpacked, [archive] * 8))
    assert len(folders) == 1
    assert (folders.pop() / "rows.csv").exists()
    assert len(list(archives.default_folder().iterdir())) == 1, "expected no partial folders"


def test_data_files_with_endings_in_capitals_are_read(tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(tmp_path / "CAPITALS.ZIP", "w") as file:
        file.writestr("ROWS.CSV", "question,answer\nWhat?,one\n")
    assert len(read_rows(tmp_path / "CAPITALS.ZIP").rows) == 1


def test_a_folder_that_disappears_while_unused_ones_are_removed_is_no_error(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command may finish unpacking it, or remove it, at the same moment."""
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([folder / "gone"]))
    assert archives.unpacked(archive).is_dir()


def test_a_cache_that_cannot_be_written_to_is_reported_in_words(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"Cannot unpack .*rows\.zip into") as error:
        archives.unpacked(archive)
    assert "XDG_CACHE_HOME" in error.value.hint


def test_a_full_disk_is_reported_in_words(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vqa_app.archive.shutil.copyfileobj", copy)
    with pytest.raises(DataError, match="No space left on device"):
        archives.unpacked(archive)
    assert not list(archives.default_folder().iterdir())


@pytest.mark.parametrize("name", ["rows.zip", "rows.csv"])
def test_a_file_that_cannot_be_read_is_reported_in_words(
    archive: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive.with_name(name)
    path.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=f"Cannot read .*{name}: Permission denied"):
        read_rows(path)
