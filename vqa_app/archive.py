"""Archives as people pack them: recognised by content, checked as a whole, then unpacked.

Zip files of macOS, Windows and Linux, tar files (plain or compressed), and single compressed files.
Nothing is written before every entry has been checked, so that an archive that is refused leaves
no trace. Entries are not trusted: no links, no paths outside the folder, and no more content than
the size of the archive makes plausible.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, BinaryIO

from vqa_app.errors import DataError
from vqa_app.files import format_bytes, is_disk_error, is_windows_name

SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
"""Endings of archives, some of which cannot be unpacked."""
MAX_FILES = 1_000_000
MAX_RATIO = 100
"""Largest size of the content, in sizes of the archive. Text shrinks to a tenth or twentieth, and
pictures hardly; a bomb grows a thousandfold."""
SMALL = 100_000_000
"""Content of up to so many bytes may have any ratio."""
_CLUTTER = {".ds_store", "thumbs.db", "desktop.ini"}
"""Names of files that file managers add, in lower case."""
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_UTF_8_NAME = 0x800
"""Flag of a zip entry whose name is UTF-8."""
_ENCRYPTED = 0x1
_COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""By first bytes, what reads a compressed file."""
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    OSError,  # an invalid stream
    RuntimeError,  # a feature that `zipfile` does not know
    ValueError,  # a file name that no file system takes
)
"""What reading a damaged archive raises."""
_BLOCK = 1 << 20
_ON_WINDOWS = sys.platform == "win32"


@dataclass(frozen=True)
class _PackedFile:
    """A file in an archive."""

    name: str
    size: int
    """As the archive says, in bytes; 0 if it does not."""
    open: Callable[[], IO[bytes]]


def is_archive(source: Path | BinaryIO) -> bool:
    """Return whether a file is an archive that can be unpacked. Office documents are none."""
    with _opened(source) as file:
        return _kind(file) != ""


def unpack_archive(
    source: Path | BinaryIO,
    folder: Path,
    *,
    name: str = "The archive",
    max_bytes: int | None = None,
    max_files: int = MAX_FILES,
) -> None:
    """Unpack an archive, without what file managers add to it.

    Args:
        source: The archive.
        folder: An existing folder.
        name: The archive's name for error messages, and for the content of a compressed file.
        max_bytes: Largest size of the content; None for what the archive's own size and the disk
            allow.
        max_files: Largest number of files.

    Raises:
        DataError: It is no archive, damaged, encrypted or too large when unpacked, or contains a
            link, another archive, or a path outside the folder.
    """
    try:
        with _opened(source) as file, _entries(file, name, max_bytes, max_files) as entries:
            needed, free = sum(entry.size for entry in entries), shutil.disk_usage(folder).free
            if needed > free:
                raise DataError(
                    f"{name} needs {format_bytes(needed)} when unpacked; {format_bytes(free)} are"
                    " free.",
                    "Free some space.",
                )
            for entry in entries:
                with entry.open() as content, _new_file(folder, name, entry.name) as out:
                    shutil.copyfileobj(content, out, _BLOCK)
    except _DAMAGED as error:
        if is_disk_error(error):
            raise
        raise DataError(f"{name} is damaged.", "Create it again.") from error


def _new_file(folder: Path, name: str, entry: str) -> BinaryIO:
    """Create a file for an entry of an archive.

    Raises:
        DataError: No file here can have its name.
    """
    target = folder / entry
    shown = entry if len(entry) <= 100 else entry[:100] + "..."
    message = f"{name} contains {shown}, and no file here can have that name."
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(target):  # also False for a name that is too long
            raise IsADirectoryError
    except (OSError, ValueError) as error:  # a file and a folder of one name; or it is too long
        if is_disk_error(error):
            raise
        raise DataError(message, "Rename it, and pack the folder again.") from error
    try:
        return target.open("xb")
    except FileExistsError as error:  # disks of macOS and Windows do not distinguish cases
        raise DataError(
            f"{name} contains {entry} twice, in upper and lower case, which are one file here.",
            "Rename one.",
        ) from error
    except (OSError, ValueError) as error:
        if is_disk_error(error):
            raise
        raise DataError(message, "Rename it, and pack the folder again.") from error


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    else:
        yield source


def _kind(file: BinaryIO) -> str:
    """Return "zip", "tar" or "compressed", which may be a tar file inside; "" for other files."""
    file.seek(0)
    start = file.read(262)
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        with suppress(*_DAMAGED), zipfile.ZipFile(file) as archive:
            first = archive.namelist()[:1]
            if "[Content_Types].xml" in archive.namelist() or first == ["mimetype"]:
                return ""  # a document of Microsoft Office or LibreOffice
        return "zip"
    if start[257:262] == b"ustar":
        return "tar"
    return "compressed" if any(map(start.startswith, _COMPRESSED)) else ""


@contextmanager
def _entries(
    file: BinaryIO, name: str, max_bytes: int | None, max_files: int
) -> Iterator[list[_PackedFile]]:
    """Yield the entries to unpack, all of them checked.

    Raises:
        DataError: See `unpack_archive`.
    """
    kind = _kind(file)
    limit = _Limit(name, _size(file), max_bytes, max_files)
    file.seek(0)
    if kind == "zip":
        with zipfile.ZipFile(file) as zipped:
            yield limit.check(_zip_entries(zipped, name))
    elif kind == "tar" or (kind and _is_tar(file)):
        with tarfile.open(fileobj=file) as tar:
            yield limit.check(_tar_entries(tar, name))
    elif kind:
        yield limit.check(_compressed_file(file, name, limit))
    else:
        raise DataError(f"{name} is not an archive.", "Pack a zip, tar or tar.gz file.")


@dataclass(frozen=True)
class _Limit:
    """What an archive may contain."""

    name: str
    packed: int
    max_bytes: int | None
    max_files: int

    def check(self, entries: Iterator[_PackedFile]) -> list[_PackedFile]:
        """Return the entries to unpack.

        Raises:
            DataError: They are too many or too large, or one has a name that is not accepted.
        """
        kept: list[_PackedFile] = []
        names: set[PurePosixPath] = set()
        total = 0
        for entry in entries:
            total += entry.size
            self.check_total(total, len(kept))
            path = PurePosixPath(entry.name)
            if path.name.lower() in _CLUTTER or path.name.startswith("._"):
                continue
            if "__MACOSX" in path.parts:
                continue
            if path.suffix.lower() in SUFFIXES:
                hint = "Unpack that one, and pack its files."
                raise DataError(f"{self.name} contains another archive: {entry.name}.", hint)
            if path in names:
                raise DataError(f"{self.name} contains {entry.name} twice.", "Remove one.")
            names.add(path)
            kept.append(entry)
        return kept

    def check_total(self, size: int, files: int = 0) -> None:
        """Check the content so far.

        Raises:
            DataError: It is too large.
        """
        if self.max_bytes is not None and size > self.max_bytes:
            most = f"at most {format_bytes(self.max_bytes)}"
            raise DataError(f"{self.name} is too large when unpacked: {most}.", "Split it.")
        if files >= self.max_files:
            most = f"at most {self.max_files:,} files"
            raise DataError(f"{self.name} is too large when unpacked: {most}.", "Split it.")
        if size > max(SMALL, MAX_RATIO * self.packed):
            raise DataError(
                f"{self.name} is too large when unpacked: {format_bytes(self.packed)} hold more "
                f"than {format_bytes(max(SMALL, MAX_RATIO * self.packed))}.",
                "If you trust it, pack its files without compression.",
            )


def _size(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END)


def _zip_entries(archive: zipfile.ZipFile, name: str) -> Iterator[_PackedFile]:
    for info in archive.infolist():
        entry = info.filename
        if not info.flag_bits & _UTF_8_NAME:  # macOS writes UTF-8 without saying so
            with suppress(UnicodeEncodeError):
                entry = _decode_name(entry.encode("cp437"))
        entry = _clean_name(entry, name)
        if info.flag_bits & _ENCRYPTED:
            raise DataError(f"{name} is encrypted.", "Create it without a password.")
        if info.create_system == 3 and stat.S_ISLNK(info.external_attr >> 16):
            raise _link(name, entry)
        if entry.endswith("/"):
            continue
        if info.compress_type not in _ZIP_METHODS:
            hint = "Pack it as an ordinary zip or tar.gz file."
            raise DataError(f"{name} is compressed in a way that cannot be read.", hint)
        yield _PackedFile(entry, info.file_size, partial(archive.open, info))


def _tar_entries(archive: tarfile.TarFile, name: str) -> Iterator[_PackedFile]:
    for info in archive:
        entry = _clean_name(_decode_name(info.name.encode("utf-8", "surrogateescape")), name)
        if info.isdir():
            continue
        if not info.isreg():
            raise _link(name, entry)

        def open_content(info: tarfile.TarInfo = info) -> IO[bytes]:
            content = archive.extractfile(info)
            if content is None:
                raise tarfile.ReadError("no content")
            return content

        yield _PackedFile(entry, info.size, open_content)


def _decode_name(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")  # what zip files without Unicode have


def _clean_name(entry: str, name: str) -> str:
    """Return an entry's path with forward slashes.

    Raises:
        DataError: It leads out of the folder.
    """
    path = entry.replace("\\", "/")  # PowerShell writes these
    if path.startswith("/") or PureWindowsPath(path).drive or ".." in path.split("/"):
        message = f"{name} contains a path outside its folder: {entry!r}."
        raise DataError(message, "Pack the folder itself.")
    parts = (part for part in path.split("/") if part not in ("", "."))
    if _ON_WINDOWS and not all(map(is_windows_name, parts)):
        message = f"{name} contains a name that Windows does not allow: {entry!r}."
        raise DataError(message, "Rename the file, and pack it again.")
    return path


def _link(name: str, entry: str) -> DataError:
    return DataError(
        f"{name} contains a link or device, not a file: {entry}.", "Pack the file it leads to."
    )


def _is_tar(file: BinaryIO) -> bool:
    try:
        with tarfile.open(fileobj=file) as archive:
            return archive.next() is not None  # zeros are a tar file without entries
    except _DAMAGED:
        return False
    finally:
        file.seek(0)


def _compressed_file(file: BinaryIO, name: str, limit: _Limit) -> Iterator[_PackedFile]:
    """Yield the only file; it is read once to find its size."""
    file.seek(0)
    start = file.read(6)
    reader = next(reader for magic, reader in _COMPRESSED.items() if start.startswith(magic))

    def open_content() -> IO[bytes]:
        file.seek(0)
        return reader(file)

    total = 0
    with open_content() as content:
        while block := content.read(_BLOCK):
            total += len(block)
            limit.check_total(total)
    yield _PackedFile(Path(name).stem or "data", total, open_content)
