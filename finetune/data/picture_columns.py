"""A row's pictures: which of its values name them, and which files these are."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.data.cells import is_bookkeeping, missing, parse_if_text, short
from finetune.data.rows import BadRow, PictureSource

IMAGE_KEYS = ("image", "images", "image_path", "img", "picture", "file_name", "filename", "photo")
_THING = r"(image|img|picture|photo|pic)s?"
_PLACES = {"a": 1, "b": 2, "c": 3, "d": 4, "left": 1, "right": 2, "first": 1, "second": 2,
           "before": 1, "after": 2}  # fmt: skip
_WORD = "left|right|first|second|before|after"
_WORD_FIRST = re.compile(rf"({_WORD})[ _-]?({_THING})")
_PLACED = re.compile(rf"({_THING})[ _-]?({_WORD}|(?<=[ _-])[a-d])")
"""Keys of one picture of several, as image_a, image_left; `_PLACES` numbers them."""
_FURTHER = re.compile(
    rf"(ref|reference|other|further|additional)[ _-]?{_THING}([ _-]?(path|file|name))?s?"
    rf"|{_THING}[ _-]?(reference|other)"
)
"""Keys of pictures that are meant to be seen beside another."""
_NAMED = re.compile(
    _THING + r"([ _-]?(local|loc|rel))?([ _-]?(ref|name|path|file|file[ _-]?name|bytes|data"
    r"|base64|base64[ _-]?str|b64|url|uri|src))?s?([ _-]?\d+)?|frames"
)
_NUMBERED = re.compile(_THING + r"[ _-]?(id|idx|index|key|hash)s?")
"""Further keys, in lower case, that say which picture a row is about; the latter may be our own
count of the rows rather than what a file is called."""
_ABOUT_PICTURE = re.compile(_THING, re.IGNORECASE)
_FILE_PATH = re.compile(r"file[ _-]?path")
"""A key, in lower case, that may say it too, where it is a picture's."""
_LOOKED_AT = 4
"""Values of a list that nobody reads, by which it is told whether they are pictures."""
_ENDINGS = (".jpg", ".png", ".jpeg", ".webp")
"""Tried where a name or number has none."""
_PICTURE_NAME = re.compile(r"[^\s]\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)
_SHOWN = 200
_LONGEST_PATH = 4096
"""Characters of a path."""
_WEB = re.compile(r"https?://")
_BASE64 = re.compile(
    r"(/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-9]|SUkq|TU0AK)[A-Za-z0-9+/\s]{40,}={0,2}\s*"
)
"""How JPEG, PNG, GIF, WebP, BMP and TIFF begin; no path is so long without a dot."""


@dataclass(frozen=True)
class Context:
    """What a record alone does not say."""

    file: str
    roots: tuple[Path, ...]
    """Resolved folders that picture paths are relative to, first match wins."""
    unshown: Counter[str] = field(default_factory=Counter)
    """How many rows have values that never reach the model, by key."""
    unseen: Counter[str] = field(default_factory=Counter)
    """How many of these values are pictures or their names, by key."""
    remarks: Counter[str] = field(default_factory=Counter)
    """What else is worth knowing, and of how many rows."""


def pictures_of(record: Mapping[str, Any], context: Context) -> list[PictureSource]:
    """The pictures that a record names, in their order.

    Raises:
        BadRow: one that cannot be had, or a value that seems to name one under an unknown key.
    """
    columns = picture_columns(record)
    if not columns:
        _refuse_unread(record)
    try:
        return _pictures_under(columns, record, context)
    except BadRow:
        if (other := _same_name(record, columns)) is None:
            raise
        with contextlib.suppress(BadRow):  # the key that says it best is told
            return _pictures_under([other], record, context)
        raise


def _pictures_under(
    columns: Sequence[str], record: Mapping[str, Any], context: Context
) -> list[PictureSource]:
    items = [item for column in columns for item in _listed(record[column])]
    return [picture_from(item, context, f"Picture {n}") for n, item in enumerate(items, 1)]


def _same_name(record: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """A further key of the same file: ST-VQA has "c0.png" as file_name, and as file_path
    "coco-text/c0.png".
    """
    value = record[columns[0]] if len(columns) == 1 else None
    if not isinstance(value, str):
        return None
    name = PurePosixPath(value).name
    alike = (
        key
        for key, other in record.items()
        if isinstance(other, str)
        and other != value
        and PurePosixPath(other).name == name
        and (key.lower() in IMAGE_KEYS or _likeness(key.lower()))
    )
    return next(alike, None)


def pictures_beside(
    message: Mapping[str, Any], context: Context, where: str
) -> list[PictureSource]:
    """The pictures that a message names beside its text, as Ollama and some ShareGPT files do.

    Args:
        message: without its text.

    Raises:
        BadRow: as `pictures_of`.
    """
    columns = picture_columns(message)
    if not columns:
        _refuse_unread(message)
    named = (item for column in columns for item in _listed(message[column]))
    return [picture_from(item, context, where) for item in named]


def picture_columns(record: Mapping[str, Any]) -> list[str]:
    """The key that says best which pictures a record is about: a picture or its name rather than
    any text, an id or a number only then, a web address last. Several that differ by a number or a
    place (image, image2; image_1, image_2; image_a, image_b; left_image, right_image) are all
    given, in order.
    """
    keys = {key.lower(): key for key in record if isinstance(key, str)}
    known = [keys[name] for name in IMAGE_KEYS if name in keys]
    like = [
        key
        for name, key in keys.items()
        if (kind := _likeness(name)) and (kind != "value" or names_picture(record.get(key)))
    ]
    given = [key for key in (*known, *like) if not missing(record[key])]
    best = min(given, key=lambda key: _doubt(key, record[key]), default=None)
    if best is None:
        return []
    alike = [key for key in dict.fromkeys(given) if _unnumbered(key)[0] == _unnumbered(best)[0]]
    return sorted(alike, key=lambda key: _unnumbered(key)[1])


@lru_cache(maxsize=1024)
def _unnumbered(key: str) -> tuple[str, int]:
    if placed := _placed(key.lower()):
        return placed[1], _PLACES[placed[3]]
    stem = key.lower().rstrip("0123456789")
    return stem.rstrip(" _-"), int(key[len(stem) :] or 0)


def _placed(key: str) -> re.Match[str] | None:
    return _PLACED.fullmatch(_WORD_FIRST.sub(r"\2_\1", key))


@lru_cache(maxsize=1024)
def _likeness(key: str) -> str:
    """Whether a key says which picture is meant, by name or by number; or its value does."""
    if _placed(key) or _FILE_PATH.fullmatch(key):
        return "value"
    return "name" if _NAMED.fullmatch(key) else "number" if _NUMBERED.fullmatch(key) else ""


def _doubt(key: str, value: Any) -> int:
    """How little a value says which picture is meant."""
    if _is_web(value):
        return 3
    if _likeness(key.lower()) == "number" or isinstance(value, (int, float)):
        return 2
    return 0 if names_picture(value) else 1


def picture_from(value: Any, context: Context, where: str) -> PictureSource:
    """A picture from a path, name or number, a `data:` URI, bytes, or Hugging Face's {"bytes",
    "path"}.

    Raises:
        BadRow: a web address, a missing file, or one outside the picture folders.
    """
    name = "picture"
    if isinstance(value, PictureSource):  # of a table
        return value
    if isinstance(value, Mapping):
        name = str(value.get("path") or name)
        content = value.get("bytes")
        named = (value.get(key) for key in ("path", "file_name", "filename", "url"))
        found = content if isinstance(content, bytes) else next(filter(None, named), None)
        if found is None:
            hint = "Give a path relative to the picture folder."
            raise BadRow(f"{where} is {short(value)}, which holds no path.", hint)
        value = found
    if isinstance(value, bytes):
        return PictureSource.data(value, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f"{where} is {short(value)}.", "Give a path relative to the picture folder.")
    if value.startswith("data:"):
        return PictureSource.data(value, "picture")
    if _BASE64.fullmatch(value):  # as TSV files and M3IT have it
        return PictureSource.data(base64.b64decode(value + "=="), "picture")
    if _is_web(value):
        raise BadRow(f"{where} is a web address, {short(value)}.", "Download it; give its path.")
    return PictureSource.file(find_picture(value.removeprefix("file://"), context.roots))


def find_picture(path: str, roots: Sequence[Path]) -> Path:
    """The file that `path` names in the first root that has it.

    Raises:
        BadRow: it is in none of them, or points out of all of them.
    """
    outside = True
    try:
        if "\0" in path:
            raise ValueError("embedded null byte")
        if len(path) > _LONGEST_PATH:  # looking up thousands of folders takes seconds
            raise ValueError("too long")
        for spelling in _spellings(path):
            for root in roots:
                candidate = _inside(root, spelling)
                if candidate is not None:
                    outside = False
                    if candidate.is_file():
                        return candidate
    except (OSError, ValueError) as error:  # too long, or with a null byte
        raise BadRow(
            f"{short(path)} is not a path.", "Write base64 as data:image/png;base64,..."
        ) from error
    folders = " or ".join(map(str, roots))
    shown = path if len(path) <= _SHOWN else path[:_SHOWN] + "..."
    if outside:
        raise BadRow(
            f"The picture {shown} lies outside the picture folder {folders}.",
            "Move it in, or name the folder that holds it with --images.",
        )
    what = f"There is no picture {shown} in {folders}"
    if (near := _near(path, roots)) is None:
        raise BadRow(f"{what}.", "Check the name, or give --images.")
    same = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", path)
    other = ", spelt with other Unicode characters" if same else ""
    raise BadRow(f"{what}; there is {near}{other}.", "Write the name as the file has it.")


def _listed(value: Any) -> Sequence[Any]:
    value = parse_if_text(value)
    return value if isinstance(value, (list, tuple)) else [value]


def _is_web(value: Any) -> bool:
    return isinstance(value, str) and bool(_WEB.match(value))


def _refuse_unread(record: Mapping[str, Any]) -> None:
    """Raises:
    BadRow: the row shows no picture, yet seems to name one: it would be trained blind.
    """
    for key, value in record.items():
        if key.lower() in ("video", "videos", "audio", "audios") and not missing(value):
            raise BadRow(f"The row is about {key!r}, {short(value)}.", "Only pictures are read.")
        if (kind := names_picture(value)) is None:
            continue
        if kind == "web":
            raise BadRow(
                f"{key!r} is a picture's web address, {short(value)}.",
                f'Download the picture, and give its path as "{IMAGE_KEYS[0]}".',
            )
        raise BadRow(
            f"{key!r} holds a picture or its name, {short(value)}, but is not a known key.",
            f"Call it one of {', '.join(IMAGE_KEYS)}; of several image_1, image_2.",
        )


def note_unseen(key: str, value: Any, context: Context) -> bool:
    """Whether nobody reads a picture here, or the name of one; counts it.

    Raises:
        BadRow: its key says that it is to be seen too.
    """
    if is_bookkeeping(key) and not _ABOUT_PICTURE.search(key):
        return False
    if names_picture(value[:_LOOKED_AT] if isinstance(value, list) else value) != "file":
        return False
    if _FURTHER.fullmatch(key.lower()):
        raise BadRow(
            f"{key!r} holds a picture or its name, {short(value)}, which is not read beside "
            "the other.",
            "Call them image_1 and image_2, in the order in which they are to be shown.",
        )
    context.unseen[key] += 1
    return True


def names_picture(value: Any) -> str | None:
    """Whether a value is a picture or its name ("file"), or its web address ("web")."""
    if isinstance(value, (bytes, PictureSource)):
        return "file"
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(names_picture, value)), None)
    if isinstance(value, Mapping):
        return "file" if isinstance(value.get("bytes"), bytes) else names_picture(value.get("path"))
    if isinstance(value, str) and len(value) < 300 and _PICTURE_NAME.search(value):
        return "web" if _is_web(value) else "file"
    return "file" if isinstance(value, str) and _BASE64.match(value) else None


def _spellings(path: str) -> Iterator[str]:
    """The path, and the files that a name or a number without an ending may mean; COCO's have
    twelve digits.
    """
    yield path
    if path != path.strip():
        yield from _spellings(path.strip())
    elif not _PICTURE_NAME.search(path):
        stems = [path, f"{int(path):012d}"] if path.isascii() and path.isdigit() else [path]
        yield from (stem + ending for stem in stems for ending in _ENDINGS)


def _inside(root: Path, path: str) -> Path | None:
    """The path in a folder; None where it leads out. Links in the folder are its owner's to set,
    so only the way there counts: LLaVA's own layout links to where COCO lies.
    """
    candidate = Path(os.path.normpath(root / path))
    if candidate.is_relative_to(root):
        return candidate
    real = candidate.resolve()
    return real if real.is_relative_to(root) else None


def _near(path: str, roots: Sequence[Path]) -> str | None:
    """A file in a root whose name differs in case, Unicode form or slashes alone."""
    for spelling in _spellings(path.replace("\\", "/")):
        for root in roots:
            found = root
            for part in PurePosixPath(spelling).parts:
                found /= _listing(found).get(_folded(part), "\0")
            if "\0" not in str(found) and found.is_file():
                return str(found.relative_to(root))
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _listing(folder: Path) -> dict[str, str]:
    """What lies in a folder, by folded name; nothing where it cannot be read."""
    try:
        return _listing_at(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=32)
def _listing_at(folder: Path, _changed: int) -> dict[str, str]:
    """Read once, not for each of a hundred thousand rows."""
    return {_folded(name): name for name in os.listdir(folder)}
