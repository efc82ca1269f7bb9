"""Pictures as a person in a shell names them: files, web addresses, - for stdin."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from vqa_app.cli.terminal import waiting
from vqa_app.errors import ImageError, UsageError
from vqa_app.pictures.download import fetch_picture, is_url
from vqa_app.pictures.picture import ImageLimits, Picture, open_picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SUFFIXES += (".heic", ".heif", ".svg", ".pdf")
"""What makes a word a picture's name even where there is no such file."""


def names_picture(word: str) -> bool:
    """Whether a word on the command line is meant as a picture."""
    if word == "-" or word[:5].lower() == "data:" or (is_url(word) and " " not in word):
        return True
    path = Path(word)
    try:
        return path.is_file() or (path.suffix.lower() in SUFFIXES and " " not in word)
    except (OSError, ValueError):  # too long or a NUL byte: no path
        return False


def read_pictures(sources: list[str], console: Console, limits: ImageLimits) -> list[Picture]:
    """Opens what was named on the command line and tells what was changed.

    Raises:
        ImageError: one of them cannot be used.
        UsageError: stdin was named twice.
    """
    if sources.count("-") > 1:
        raise UsageError("- is given twice, but stdin holds only one picture.", "Name the others.")
    return [read_picture(source, console, limits) for source in sources]


def read_picture(source: str, console: Console, limits: ImageLimits) -> Picture:
    if source == "-":
        if sys.stdin.isatty():
            raise ImageError("- reads a picture from stdin.", "Pipe one in: < cat.png")
        picture = open_picture(sys.stdin.buffer, name="stdin", limits=limits)
    elif is_url(source):
        with waiting(console, "Fetching the picture"):
            picture = fetch_picture(source, limits)
    else:
        picture = open_picture(source, limits=limits)
    if picture.changes:
        console.print(f"{picture.name}: {', '.join(picture.changes)}", style="dim", markup=False)
    return picture
