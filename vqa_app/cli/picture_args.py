"""Pictures named on the command line: files, web addresses, or - for stdin."""

from __future__ import annotations

import sys

from rich.console import Console

from vqa_app.cli.terminal import print_note, spinner
from vqa_app.engine.remote import shrunk
from vqa_app.errors import ImageError, UsageError
from vqa_app.pictures.download import fetch_picture
from vqa_app.pictures.names import is_url
from vqa_app.pictures.picture import ImageLimits, Picture, open_picture


def read_pictures(
    sources: list[str], console: Console, limits: ImageLimits, max_side: int | None = None
) -> list[Picture]:
    """Open the pictures named on the command line and print what was changed in them.

    Args:
        sources: Files, addresses, or - for stdin.
        console: Where changes are printed.
        limits: The largest file and the most pixels to accept.
        max_side: Longer side to which pictures are shrunk for a server; None keeps their size.

    Raises:
        ImageError: A picture cannot be used.
        UsageError: Stdin is named twice.
    """
    if sources.count("-") > 1:
        raise UsageError(
            "- is given twice, but stdin has only one picture.", "Use files for the others."
        )
    return [read_picture(source, console, limits, max_side) for source in sources]


def read_picture(
    source: str, console: Console, limits: ImageLimits, max_side: int | None = None
) -> Picture:
    """Open one picture; see `read_pictures`."""
    if source == "-":
        if sys.stdin.isatty():
            raise ImageError(
                "- reads a picture from stdin, but stdin is a terminal.", "Pipe one in: < cat.png"
            )
        picture = open_picture(sys.stdin.buffer, name="stdin", limits=limits)
    elif is_url(source):
        with spinner(console, "Downloading the picture"):
            picture = fetch_picture(source, limits)
    else:
        picture = open_picture(source, limits=limits)
    if max_side is not None:
        picture = shrunk(picture, max_side)
    if picture.changes:
        print_note(f"{picture.name}: {', '.join(picture.changes)}", console)
    return picture
