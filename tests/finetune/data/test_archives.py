"""The cache of unpacked archives, which commands share."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.data import archives


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


def test_a_folder_that_disappears_while_unused_ones_are_removed_is_no_error(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command may finish unpacking it, or remove it, at the same moment."""
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([folder / "gone"]))
    assert archives.unpacked(archive).is_dir()
