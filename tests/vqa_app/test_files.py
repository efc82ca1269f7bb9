"""Files: why they cannot be read, and replaced as a whole, also where Windows refuses open ones."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.windows import keep_open_files
from vqa_app import files
from vqa_app.errors import library_reason
from vqa_app.files import (
    JSON_ERRORS,
    atomic_directory,
    atomic_file,
    delete,
    is_windows_name,
    json_problem,
    portable_name,
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a":\n 1,}', "line 2, column 4 is not JSON"),
        (b"", "line 1, column 1 is not JSON"),
        (b'"\xff"', "it is not UTF-8 text"),
        (b"1" * 5000, "it has a number of more than 4,300 digits"),
        (b"[" * 100_000, "its lists and objects are nested too deeply"),
    ],
)
def test_the_problem_of_a_json_file_is_told_without_python(data: bytes, words: str) -> None:
    with pytest.raises(JSON_ERRORS) as error:
        json.loads(data)
    assert json_problem(error.value).startswith(words)


def test_messages_of_libraries_are_told_and_those_of_python_are_not() -> None:
    assert library_reason(ValueError("The picture is too narrow.\nMore.")) == (
        ": The picture is too narrow."
    )
    for error in (KeyError("content"), TypeError("'NoneType' object is not iterable")):
        assert library_reason(error) == "."


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_open_files(monkeypatch)
    monkeypatch.setattr(files, "_ON_WINDOWS", True)


def test_a_file_that_is_being_read_is_replaced_when_its_reader_is_done(
    windows: None, tmp_path: Path
) -> None:
    path = tmp_path / "status.json"
    path.write_text("old")
    reader = path.open()
    timer = threading.Timer(0.1, reader.close)
    timer.start()
    with atomic_file(path) as new:
        new.write_text("new")
    assert reader.closed
    assert path.read_text() == "new"
    timer.join()


def test_a_folder_whose_file_is_being_read_is_replaced_when_its_reader_is_done(
    windows: None, tmp_path: Path
) -> None:
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "weights").write_text("old")
    reader = (target / "weights").open()
    timer = threading.Timer(0.1, reader.close)
    timer.start()
    with atomic_directory(target) as folder:
        (folder / "weights").write_text("new")
    assert (target / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    timer.join()


def test_a_file_that_is_being_read_is_deleted_when_its_reader_is_done(
    windows: None, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_text("old")
    reader = path.open()
    timer = threading.Timer(0.1, reader.close)
    timer.start()
    delete(path)
    assert not path.exists()
    delete(path)
    timer.join()


def test_a_file_that_stays_open_is_left_as_it_is(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BUSY_SECONDS", 0.1)
    path = tmp_path / "status.json"
    path.write_text("old")
    with path.open(), pytest.raises(PermissionError), atomic_file(path) as new:
        new.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]
    assert path.read_text() == "old"


def test_elsewhere_a_refusal_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Path] = []

    def refuse(source: Path, target: Path) -> None:
        attempts.append(source)
        raise PermissionError

    monkeypatch.setattr(files, "_ON_WINDOWS", False)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        files.move(tmp_path / "a", tmp_path / "b")
    assert len(attempts) == 1


@pytest.mark.parametrize(
    "name", ["con", "NUL", "aux.png", "Com1", "lpt\u00b9", "a:b", "a.", "a ", "x?"]
)
def test_names_that_windows_refuses_are_known(name: str) -> None:
    assert not is_windows_name(name)


@pytest.mark.parametrize("name", ["console", "a b", "aux-1", "com10", "n\u00fcl", ".hidden", "a.b"])
def test_other_names_stay(name: str) -> None:
    assert is_windows_name(name)
    assert portable_name(name) == name


def test_a_name_that_windows_refuses_is_changed() -> None:
    assert portable_name("Aux") == "Aux_"
    assert is_windows_name(portable_name("con"))
