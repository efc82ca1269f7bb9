"""Names of pictures: the endings of files, and web addresses.

Imports next to nothing, because `vqa-app ask` uses it before it knows whether it needs Pillow.
"""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
)
"""Endings of pictures' names in lower case; pictures with other names are opened as well."""

NAMES_OF_PICTURES = (*SUFFIXES, ".svg", ".pdf")
"""A word with one of these suffixes names a picture, even if there is no such file."""


def is_url(text: str) -> bool:
    """Return whether `text` has a scheme and a host, as file names hardly ever do."""
    scheme, colon, rest = text.partition("://")
    return bool(colon and scheme.isalnum() and rest)


def names_picture(word: str) -> bool:
    """Return whether a word on the command line names a picture rather than being a question."""
    if word == "-" or word[:5].lower() == "data:" or (is_url(word) and " " not in word):
        return True
    path = Path(word)
    try:
        if path.exists():  # a file, or a pipe such as `<(curl https://...)`
            return not path.is_dir()
        return path.suffix.lower() in NAMES_OF_PICTURES and " " not in word
    except (OSError, ValueError):  # not a path: too long, or with a NUL byte
        return False
