"""Find a row's pictures: which of its values name pictures, and the files they name."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from finetune.data.cells import is_metadata_key, is_missing, parse_list, shorten
from finetune.data.rows import BadRow, PictureSource
from vqa_app.pictures.file_type import detect_type

IMAGE_KEYS = ("image", "images", "image_path", "img", "picture", "file_name", "filename", "photo")
_PICTURE_NOUN = r"(image|img|picture|photo|pic)s?"
_POSITIONS = {"a": 1, "b": 2, "c": 3, "d": 4, "left": 1, "right": 2, "first": 1, "second": 2,
              "before": 1, "after": 2}  # fmt: skip
_POSITION_WORD = "left|right|first|second|before|after"
_POSITION_FIRST = re.compile(rf"({_POSITION_WORD})[ _-]?({_PICTURE_NOUN})")
_POSITIONED_KEY = re.compile(rf"({_PICTURE_NOUN})[ _-]?({_POSITION_WORD}|(?<=[ _-])[a-d])")
"""Matches keys of one picture of several, such as image_a and image_left; `_POSITIONS` orders
them."""
_REFERENCE_KEY = re.compile(
    rf"(ref|reference|other|further|additional)[ _-]?{_PICTURE_NOUN}([ _-]?(path|file|name))?s?"
    rf"|{_PICTURE_NOUN}[ _-]?(reference|other)"
)
"""Matches keys of pictures that are meant to be shown next to another."""
_NAME_KEY = re.compile(
    _PICTURE_NOUN + r"([ _-]?(local|loc|rel))?([ _-]?(ref|name|path|file|file[ _-]?name|bytes|data"
    r"|base64|base64[ _-]?str|b64|url|uri|src))?s?([ _-]?\d+)?|frames"
)
"""Matches further lower-case keys that name a picture."""
_ID_KEY = re.compile(_PICTURE_NOUN + r"[ _-]?(id|idx|index|key|hash)s?")
"""Matches lower-case keys of picture ids. These may be file names or just number the rows."""
_PICTURE_WORD = re.compile(_PICTURE_NOUN, re.IGNORECASE)
_FILE_PATH_KEY = re.compile(r"file[ _-]?path")
"""Matches a lower-case key that names a picture if its value is a picture's path."""
_ITEMS_CHECKED = 4
"""Items of an unused list that are checked for pictures."""
_ENDINGS = (".jpg", ".png", ".jpeg", ".webp")
"""Tried for names and numbers without a file ending."""
_PICTURE_NAME = re.compile(r"[^\s]\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)
_MAX_PATH_LENGTH = 4096
"""Characters of a path on Linux."""
_MAX_PATH_SHOWN = 200
"""Characters of a path in messages."""
_WEB = re.compile(r"https?://")
_NUMBERED_PICTURE = re.compile(r"<image_?\d+>")
_BASE64 = re.compile(
    r"(/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-9]|SUkq|TU0AK)[A-Za-z0-9+/\s]{40,}={0,2}\s*"
)
"""Matches the beginnings of JPEG, PNG, GIF, WebP, BMP and TIFF; no path is so long without a
dot."""

_KeyKind: TypeAlias = Literal["name", "id", "value", ""]


@dataclass(frozen=True)
class Context:
    """The file that a record comes from, and counts for the notes about that file."""

    file: str
    roots: tuple[Path, ...]
    """Resolved folders that picture paths are relative to; the first match wins."""
    unused_keys: Counter[str] = field(default_factory=Counter)
    """By key, the number of rows with a value that is not shown to the model."""
    unused_pictures: Counter[str] = field(default_factory=Counter)
    """By key, the number of rows with an unused value that is a picture or names one."""
    remarks: Counter[str] = field(default_factory=Counter)
    """By message, the number of rows that it applies to."""


def find_pictures(record: Mapping[str, Any], context: Context) -> list[PictureSource]:
    """Return the pictures that a record names, in order.

    Raises:
        BadRow: A picture does not exist, or a value under an unknown key seems to name one.
    """
    columns = picture_columns(record)
    if not columns:
        _refuse_unknown_pictures(record)
    try:
        return _load_columns(columns, record, context)
    except BadRow:
        if (alternative := _alternative_key(record, columns)) is None:
            raise
        with contextlib.suppress(BadRow):  # report the error of the preferred key
            return _load_columns([alternative], record, context)
        raise


def _load_columns(
    columns: Sequence[str], record: Mapping[str, Any], context: Context
) -> list[PictureSource]:
    items = [item for column in columns for item in _as_list(record[column])]
    return [resolve_picture(item, context, f"Picture {n}") for n, item in enumerate(items, 1)]


def _alternative_key(record: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """Return another key that names the same file.

    ST-VQA has "c0.png" as file_name and "coco-text/c0.png" as file_path.
    """
    value = record[columns[0]] if len(columns) == 1 else None
    if not isinstance(value, str):
        return None
    name = PurePosixPath(value).name
    alternatives = (
        key
        for key, other in record.items()
        if isinstance(other, str)
        and other != value
        and PurePosixPath(other).name == name
        and (key.lower() in IMAGE_KEYS or _key_kind(key.lower()))
    )
    return next(alternatives, None)


def find_message_pictures(
    message: Mapping[str, Any], context: Context, where: str
) -> list[PictureSource]:
    """Return the pictures listed next to a message's text, as in Ollama and some ShareGPT files.

    Args:
        message: The message without its role and text.
        context: The file of the message.
        where: The message's name for error messages.

    Raises:
        BadRow: See `find_pictures`.
    """
    columns = picture_columns(message)
    if not columns:
        _refuse_unknown_pictures(message)
    items = (item for column in columns for item in _as_list(message[column]))
    return [resolve_picture(item, context, where) for item in items]


def picture_columns(record: Mapping[str, Any]) -> list[str]:
    """Return the keys that name a record's pictures.

    One key is chosen: preferably one with a picture or a picture's name, then one with other text,
    then an id or number, and a web address last. If other keys differ from it only by a number or a
    position (image, image2; image_a, image_b; left_image, right_image), all are returned, in order.
    """
    keys = {key.lower(): key for key in record if isinstance(key, str)}
    known = [keys[name] for name in IMAGE_KEYS if name in keys]
    similar = [
        key
        for name, key in keys.items()
        if (kind := _key_kind(name)) and (kind != "value" or picture_kind(record.get(key)))
    ]
    given = [key for key in (*known, *similar) if not is_missing(record[key])]
    best = min(given, key=lambda key: _rank(key, record[key]), default=None)
    if best is None:
        return []
    stem, _ = _split_key(best)
    columns = [key for key in dict.fromkeys(given) if _split_key(key)[0] == stem]
    return sorted(columns, key=lambda key: _split_key(key)[1])


@lru_cache(maxsize=1024)
def _split_key(key: str) -> tuple[str, int]:
    """Split a key into its stem and its number or position; 0 if it has none."""
    if match := _match_positioned(key.lower()):
        return match[1], _POSITIONS[match[3]]
    stem = key.lower().rstrip("0123456789")
    return stem.rstrip(" _-"), int(key[len(stem) :] or 0)


def _match_positioned(key: str) -> re.Match[str] | None:
    return _POSITIONED_KEY.fullmatch(_POSITION_FIRST.sub(r"\2_\1", key))


@lru_cache(maxsize=1024)
def _key_kind(key: str) -> _KeyKind:
    """Return what a lower-case key says: a picture's name, its id, or that depends on the value."""
    if _match_positioned(key) or _FILE_PATH_KEY.fullmatch(key):
        return "value"
    return "name" if _NAME_KEY.fullmatch(key) else "id" if _ID_KEY.fullmatch(key) else ""


def _rank(key: str, value: Any) -> int:
    """Rank how well a key and value identify the picture; lower is better."""
    if _is_web(value):
        return 3
    if _key_kind(key.lower()) == "id" or isinstance(value, (int, float)):
        return 2
    return 0 if picture_kind(value) else 1


def resolve_picture(value: Any, context: Context, where: str) -> PictureSource:
    """Return the picture that a value names or contains.

    Args:
        value: A path, name or number, a `data:` URI, base64, bytes, or Hugging Face's
            {"bytes", "path"}.
        context: The file that the value is from.
        where: The value's name for error messages.

    Raises:
        BadRow: The value is a web address, or the file does not exist or lies outside the folders.
    """
    name = "picture"
    if isinstance(value, PictureSource):  # from a table
        return value
    if isinstance(value, Mapping):
        name = str(value.get("path") or name)
        content = value.get("bytes")
        paths = (value.get(key) for key in ("path", "file_name", "filename", "url"))
        found = content if isinstance(content, bytes) else next(filter(None, paths), None)
        if found is None:
            hint = "Give a path relative to the picture folder."
            raise BadRow(f"{where} is {shorten(value)}, which contains no path.", hint)
        value = found
    if isinstance(value, bytes):
        return PictureSource.data(value, name)
    if isinstance(value, (float, Decimal)) and value % 1 == 0:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f"{where} is {shorten(value)}.", "Give a path relative to the picture folder.")
    if value.startswith("data:"):
        return PictureSource.data(value, "picture")
    if _BASE64.fullmatch(value):  # TSV files and M3IT
        return PictureSource.data(base64.b64decode(value + "=="), "picture")
    if value.lstrip().startswith("<"):
        kind = detect_type(value.encode("utf-8", "replace"))
        raise BadRow(f"{where} is {kind}: {shorten(value)}.", "Give a JPEG or PNG file.")
    if _is_web(value):
        raise BadRow(
            f"{where} is a web address, {shorten(value)}.", "Download it and give its path."
        )
    return PictureSource.file(find_picture(value.removeprefix("file://"), context.roots))


def find_picture(path: str, roots: Sequence[Path]) -> Path:
    """Return the file that `path` names in the first root that has it.

    Raises:
        BadRow: No root has it, or the path leads out of all of them.
    """
    outside = True
    try:
        if "\0" in path:
            raise ValueError("embedded null byte")
        if len(path) > _MAX_PATH_LENGTH:  # its thousands of folders would take seconds to look up
            raise ValueError("too long")
        for spelling in _spellings(path):
            for root in roots:
                candidate = _path_inside(root, spelling)
                if candidate is not None:
                    outside = False
                    if candidate.is_file():
                        return candidate
    except (OSError, ValueError) as error:  # too long, or with a null byte
        raise BadRow(
            f"{shorten(path)} is not a path.", "Write base64 as data:image/png;base64,..."
        ) from error
    folders = " or ".join(map(str, roots))
    shown = path if len(path) <= _MAX_PATH_SHOWN else path[:_MAX_PATH_SHOWN] + "..."
    if outside:
        raise BadRow(
            f"The picture {shown} lies outside the picture folder {folders}.",
            "Move it there, or pass the folder that contains it with --images.",
        )
    message = f"There is no picture {shown} in {folders}"
    if (similar := _similar_file(path, roots)) is None:
        raise BadRow(f"{message}.", "Check the name, or pass the picture folder with --images.")
    same = unicodedata.normalize("NFC", similar) == unicodedata.normalize("NFC", path)
    difference = ", spelt with different Unicode characters" if same else ""
    raise BadRow(
        f"{message}; there is {similar}{difference}.", "Write the name exactly as the file's."
    )


def _as_list(value: Any) -> Sequence[Any]:
    value = parse_list(value)
    if isinstance(value, Mapping) and value:  # MiniCPM-V: {"<image_00>": path, ...}
        numbers = [_NUMBERED_PICTURE.fullmatch(str(key)) for key in value]
        if all(numbers):
            ordered = sorted(value, key=lambda key: int(re.sub(r"\D", "", str(key))))
            return [value[key] for key in ordered if not is_missing(value[key])]
    return value if isinstance(value, (list, tuple)) else [value]


def _is_web(value: Any) -> bool:
    return isinstance(value, str) and bool(_WEB.match(value))


def _refuse_unknown_pictures(record: Mapping[str, Any]) -> None:
    """Refuse a record that has no picture column, yet seems to name a picture.

    Raises:
        BadRow: The model would be trained on the row without seeing its picture.
    """
    for key, value in record.items():
        if key.lower() in ("video", "videos", "audio", "audios") and not is_missing(value):
            raise BadRow(f"The row has a {key!r}, {shorten(value)}.", "Only pictures are read.")
        if (kind := picture_kind(value)) is None:
            continue
        if kind == "web":
            raise BadRow(
                f"{key!r} is the web address of a picture, {shorten(value)}.",
                f'Download the picture, and give its path as "{IMAGE_KEYS[0]}".',
            )
        raise BadRow(
            f"{key!r} is a picture or names one, {shorten(value)}, but is not a known key.",
            f"Rename it to one of {', '.join(IMAGE_KEYS)}; for several, to image_1, image_2.",
        )


def count_unused_picture(key: str, value: Any, context: Context) -> bool:
    """Count an unused value if it is a picture or names one; return whether it does.

    Raises:
        BadRow: The key says that the picture should be shown as well.
    """
    if is_metadata_key(key) and not _PICTURE_WORD.search(key):
        return False
    if picture_kind(value[:_ITEMS_CHECKED] if isinstance(value, list) else value) != "file":
        return False
    if _REFERENCE_KEY.fullmatch(key.lower()):
        raise BadRow(
            f"{key!r} is a second picture or names one, {shorten(value)}, and would not be shown.",
            "Name the columns image_1 and image_2, in the order in which they are to be shown.",
        )
    context.unused_pictures[key] += 1
    return True


def picture_kind(value: Any) -> Literal["file", "web"] | None:
    """Return "file" for a picture or the name of one, "web" for its address, None for others."""
    if isinstance(value, (bytes, PictureSource)):
        return "file"
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(picture_kind, value)), None)
    if isinstance(value, Mapping):
        return "file" if isinstance(value.get("bytes"), bytes) else picture_kind(value.get("path"))
    if isinstance(value, str) and len(value) < 300 and _PICTURE_NAME.search(value):
        return "web" if _is_web(value) else "file"
    return "file" if isinstance(value, str) and _BASE64.match(value) else None


def _spellings(path: str) -> Iterator[str]:
    """Yield the path, and the files that a name or number without a file ending may mean.

    COCO pads numbers to twelve digits.
    """
    yield path
    if path != path.strip():
        yield from _spellings(path.strip())
    elif not _PICTURE_NAME.search(path):
        stems = [path, f"{int(path):012d}"] if path.isascii() and path.isdigit() else [path]
        yield from (stem + ending for stem in stems for ending in _ENDINGS)


def _path_inside(root: Path, path: str) -> Path | None:
    """Return the path in a folder, or None if it leads out.

    Links inside the folder may lead anywhere, since its owner made them: LLaVA's layout links to
    where COCO is stored.
    """
    candidate = Path(os.path.normpath(root / path))
    if candidate.is_relative_to(root):
        return candidate
    real = candidate.resolve()
    return real if real.is_relative_to(root) else None


def _similar_file(path: str, roots: Sequence[Path]) -> str | None:
    """Return a file in a root whose name differs only in case, Unicode form, slashes or ending.

    Failing that, one in the root itself that has the name without its folders.
    """
    for spelling in _spellings(path.replace("\\", "/")):
        for root in roots:
            found = root
            for part in PurePosixPath(spelling).parts:
                found /= _list_folder(found).get(_fold(part), "\0")
            if "\0" not in str(found) and found.is_file():
                return str(found.relative_to(root))
    given = PurePosixPath(path.replace("\\", "/").strip())
    for root in roots:
        for folder in (_path_inside(root, str(given.parent)), root):
            if folder is not None and (name := _list_stems(folder).get(_fold(given.stem))):
                return str(folder.relative_to(root) / name)
    return None


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _list_folder(folder: Path) -> dict[str, str]:
    """Return a folder's entries by case-folded name; empty if it cannot be read."""
    try:
        return _list_folder_cached(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


def _list_stems(folder: Path) -> dict[str, str]:
    """Return a folder's pictures by case-folded name without ending."""
    try:
        return _list_stems_cached(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=32)
def _list_stems_cached(folder: Path, _modified_ns: int) -> dict[str, str]:
    names = filter(_PICTURE_NAME.search, os.listdir(folder))
    return {_fold(PurePosixPath(name).stem): name for name in names}


@lru_cache(maxsize=32)
def _list_folder_cached(folder: Path, _modified_ns: int) -> dict[str, str]:
    return {_fold(name): name for name in os.listdir(folder)}
