"""Archives of every system are unpacked alike; unsafe ones leave nothing behind."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.windows import refuse_long_paths
from vqa_app import archive
from vqa_app.archive import is_archive, unpack_archive
from vqa_app.errors import DataError

FILES = {"set/data.csv": b"question,answer\n", "set/images/cat.png": b"\x89PNG"}


def zipped(files: Mapping[str, bytes], **attributes: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            file.writestr(info, content)
    return stream.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w", kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
            file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def unpacked(data: bytes, folder: Path, **options: object) -> dict[str, bytes]:
    """Return the unpacked files by path."""
    unpack_archive(io.BytesIO(data), folder, **options)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refusal(data: bytes, folder: Path, **options: object) -> str:
    """Return why an archive is refused; nothing may have been written."""
    with pytest.raises(DataError) as refused:
        unpack_archive(io.BytesIO(data), folder, **options)
    assert not [*folder.rglob("*")]
    assert refused.value.hint
    return refused.value.problem


@pytest.mark.parametrize(
    "data",
    [
        zipped(FILES),
        *(tarred(FILES, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")),
        tarred({f"./{name}": content for name, content in FILES.items()}),
    ],
)
def test_an_archive_of_any_kind_is_unpacked(tmp_path: Path, data: bytes) -> None:
    assert is_archive(io.BytesIO(data))
    assert unpacked(data, tmp_path) == FILES


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_single_compressed_file_is_unpacked(tmp_path: Path, pack: object) -> None:
    assert unpacked(pack(b"[]"), tmp_path, name="my/data.json.gz") == {"data.json": b"[]"}


def test_what_file_managers_add_is_left_out(tmp_path: Path) -> None:
    clutter = ("__MACOSX/set/._data.csv", "set/._cat.png", "set/.DS_Store", "set/Thumbs.db",
               "desktop.ini")  # fmt: skip
    data = zipped(FILES | dict.fromkeys(clutter, b"\0\5\x16\7"))
    assert unpacked(data, tmp_path) == FILES


def test_backslashes_of_powershell_are_slashes(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): content for name, content in FILES.items()}
    assert unpacked(zipped(files | {"set\\empty\\": b""}, create_system=0), tmp_path) == FILES


def test_names_that_are_not_marked_as_utf_8_are_decoded(tmp_path: Path) -> None:
    """MacOS writes UTF-8 without its mark, Windows the code page 437."""
    marked = zipped({"Kätzchen.png": b"1"})
    assert marked.count("Kätzchen".encode()) == 2
    plain = bytearray(marked)
    for magic, place in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        plain[plain.find(magic) + place] &= ~0x08
    assert unpacked(bytes(plain), tmp_path) == {"Kätzchen.png": b"1"}
    windows = plain.replace("ä".encode(), b"\x84_")
    assert {*unpacked(bytes(windows), tmp_path)} == {"Kätzchen.png", "Kä_tzchen.png"}


@pytest.mark.parametrize(
    "name", ["../x.json", "a/../../x.json", "/etc/x.json", "..\\x.json", "C:\\x.json", "C:x.json"]
)
def test_a_path_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    for pack in (zipped, tarred):
        why = refusal(pack({"good.csv": b"x", name: b"[]"}), tmp_path, name="my.zip")
        assert why == f"my.zip contains a path outside its folder: {name!r}."


def test_links_are_refused(tmp_path: Path) -> None:
    link = (stat.S_IFLNK | 0o777) << 16
    assert "a link" in refusal(zipped({"x.png": b"/a"}, external_attr=link), tmp_path)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        assert "a link" in refusal(tarred({"x.png": b""}, kind=kind), tmp_path)


def test_nested_and_doubled_files_are_refused(tmp_path: Path) -> None:
    for name in ("inner.zip", "set/inner.tar.gz", "inner.7z"):
        assert f"another archive: {name}" in refusal(zipped({name: b"x"}), tmp_path)
    doubled = tarred({"set/a.csv": b"1", "./set/a.csv": b"2"})
    assert "./set/a.csv twice" in refusal(doubled, tmp_path)


def test_names_in_both_cases_are_told_where_they_are_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the disks of macOS and Windows; the second file would replace the first."""
    create = Path.open

    def on_such_a_disk(path: Path, mode: str = "r", *rest: object, **options: object) -> object:
        if mode == "xb" and path.name.lower() in map(str.lower, os.listdir(path.parent)):
            raise FileExistsError(errno.EEXIST, "File exists")
        return create(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", on_such_a_disk)
    with pytest.raises(DataError, match=r"contains Cat\.png twice, in upper and lower case"):
        unpack_archive(io.BytesIO(zipped({"cat.png": b"a", "Cat.png": b"b"})), tmp_path)


@pytest.mark.parametrize("entry", ["{}.png", "{}/a.png", "set/{}/pictures/cat.png"])
def test_paths_that_are_too_long_for_windows_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    """Windows finds no such file or folder then, as if the archive were damaged."""
    refuse_long_paths(monkeypatch)
    room = 259 - len(f"{tmp_path}/{entry.format('')}")
    assert unpacked(zipped({entry.format("x" * room): b"x"}), tmp_path)
    with pytest.raises(DataError, match=r"no file here can have that name"):
        unpack_archive(io.BytesIO(zipped({entry.format("y" * (room + 1)): b"x"})), tmp_path)


@pytest.mark.parametrize("entry", ["nul", "set/Aux.png", "set/12:30.png", "what?.png", "dots./a"])
def test_names_that_windows_does_not_allow_are_refused_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    """Windows would write `12:30.png` into a hidden stream of the file `12`."""
    (tmp_path / "here").mkdir()
    assert entry in unpacked(zipped({entry: b"x"}), tmp_path / "here")
    monkeypatch.setattr(archive, "_ON_WINDOWS", True)
    (tmp_path / "there").mkdir()
    assert repr(entry) in refusal(zipped({entry: b"x"}), tmp_path / "there")


@pytest.mark.parametrize(
    "names",
    [["a", "a/b.csv"], ["a/b.csv", "a"], ["x" * 300 + ".csv"], ["x" * 300 + "/a.csv"]],
    ids=["file-folder", "folder-file", "long-file", "long-folder"],
)
def test_a_name_that_no_file_can_have_is_told(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match=r"no file here can have that name") as refused:
        unpack_archive(io.BytesIO(zipped(dict.fromkeys(names, b"text"))), tmp_path, name="my.zip")
    assert names[-1][:100] in refused.value.problem


def test_a_document_of_libreoffice_is_no_archive() -> None:
    kind = b"application/vnd.oasis.opendocument.spreadsheet"
    assert not is_archive(io.BytesIO(zipped({"mimetype": kind, "content.xml": b""})))


@pytest.mark.parametrize("place", [1 << 0, 1 << 0 | 1 << 3])
def test_an_encrypted_archive_is_named(tmp_path: Path, place: int) -> None:
    data = bytearray(zipped(FILES))
    data[data.find(b"PK\1\2") + 8] |= place
    assert "is encrypted" in refusal(bytes(data), tmp_path)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    content = {"a.csv": bytes(range(256)) * 200}
    for data in (
        zipped(content)[:-30],
        tarred(content, "w:gz")[:-30],
        gzip.compress(b"a" * 99)[:9],
    ):
        assert "is damaged" in refusal(data, tmp_path)
    assert "is not an archive" in refusal(b"question,answer\n", tmp_path)


def test_an_office_document_is_no_archive() -> None:
    assert not is_archive(io.BytesIO(zipped({"[Content_Types].xml": b"", "xl/workbook.xml": b""})))


@pytest.mark.parametrize("pack", ["zip", "tar", "gzip"])
def test_a_bomb_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    monkeypatch.setattr(archive, "SMALL", 10_000)
    content = b"\0" * 3_000_000
    files = {f"{number}.csv": content for number in range(3)}
    data = {
        "zip": lambda: zipped(files),
        "tar": lambda: tarred(files, "w:gz"),
        "gzip": lambda: gzip.compress(content * 3),
    }[pack]()
    why = refusal(data, tmp_path)
    assert "is too large when unpacked" in why
    assert "hold more than" in why
    monkeypatch.setattr(archive, "SMALL", 10_000_000)
    assert sum(map(len, unpacked(data, tmp_path, name="a.csv.gz").values())) == 9_000_000


def test_the_limits_of_a_door_apply_to_size_and_number(tmp_path: Path) -> None:
    data = zipped({"a.csv": b"x" * 600, "b.csv": b"x" * 600})
    assert "at most 1 kB" in refusal(data, tmp_path, max_bytes=1000)
    assert "at most 1 files" in refusal(data, tmp_path, max_files=1)
    assert len(unpacked(data, tmp_path, max_bytes=1200, max_files=2)) == 2


def test_an_archive_larger_than_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    assert "needs 0 kB when unpacked; 0 kB are free" in refusal(zipped(FILES), tmp_path)
