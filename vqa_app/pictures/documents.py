"""Pictures of PDF pages and SVG drawings, drawn in a process with limits on time and memory.

Only the page of `vqa-app chat` opens these; everything else refuses them (`open_picture`). Nothing
that a document refers to is read or fetched, and no script in it runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vqa_app.errors import ImageError
from vqa_app.pictures.file_type import PDF, SVG, detect_type
from vqa_app.pictures.picture import ImageLimits, Picture, open_picture

SECONDS = 15
"""Longest time for one document."""
MEMORY = 3 << 29
"""Most memory for one document, in bytes: 1.5 GiB, enough for scans of 100 megapixels."""
PAGE_DPI = 200
"""Resolution of a page: text of 8 points gets letters 12 pixels high."""
LONGEST_PAGE = 3000
"""Longest side of a page, in pixels; posters get a lower resolution."""
SHORTEST_SVG, LONGEST_SVG = 1024, 2048
"""Longest side of an SVG in pixels: icons are enlarged, large drawings reduced."""
PREVIEW_PAGES = 24
"""Most pages in one preview."""
PREVIEW_LONGEST = 240
"""Longest side of a page in a preview, in pixels."""
PREVIEW_SECONDS = 5.0
"""Time after which a preview ends with the pages it has."""

_SCREENSHOT = "Take a screenshot of it, and add that."
_WORKER = Path(__file__).with_name("document_worker.py")


@dataclass(frozen=True)
class PagePreviews:
    """Small pictures of some pages of a document."""

    pages: int
    """How many pages the document has."""
    first: int
    """Number of the first page that is shown; pages are numbered from 1."""
    images: tuple[Image.Image | None, ...]
    """One for each page from `first` on; None for a page that cannot be drawn."""


def is_document(data: bytes) -> bool:
    """Return whether a file is a PDF or SVG, by its content."""
    return detect_type(data) in (PDF, SVG)


def open_document(
    data: bytes, name: str, *, page: int | None = None, limits: ImageLimits | None = None
) -> Picture:
    """Draw a page of a PDF, or an SVG.

    Args:
        data: The file's content.
        name: Its name, for messages.
        page: Number of the page, from 1; the first one by default. An SVG has only one.
        limits: The largest file and the most pixels to accept. What is drawn gets fewer pixels if
            necessary.

    Raises:
        ImageError: The file is neither, is damaged, or takes too long or too much memory.
    """
    limits = limits or ImageLimits()
    _check_size(data, name, limits)
    if detect_type(data) == SVG:
        options = {"kind": "svg", "shortest": SHORTEST_SVG, "longest": LONGEST_SVG}
        found, images = _draw(data, name, options, limits)
        width, height = images[0].size
        changes = [f"SVG drawn at {width:,} × {height:,} pixels"]
        if left_out := found["left_out"]:
            # Whole sentences, because the page translates them.
            if left_out == 1:
                changes.append("1 reference or script left out")
            else:
                changes.append(f"{left_out} references or scripts left out")
        return _with_changes(images[0], name, changes, limits)
    number = 1 if page is None else page
    if number < 1:
        raise ImageError(f"{name} has no page {number}.", "Pages are numbered from 1.")
    options = {"kind": "pdf", "first": number, "count": 1, "dpi": PAGE_DPI}
    found, images = _draw(data, name, options | {"longest": LONGEST_PAGE}, limits)
    pages = found["pages"]
    if not images:
        raise ImageError(f"{name} has no page {number}, only {pages}.", "Choose another page.")
    if not images[0].width:
        raise ImageError(f"Page {number} of {name} cannot be drawn.", "Choose another page.")
    dpi = round(72 * found["scales"][0])
    shown = name if pages == 1 else f"{name}, page {number}"
    return _with_changes(
        images[0], shown, [f"page {number} of {pages}, drawn at {dpi} dpi"], limits
    )


def preview_pages(
    data: bytes, name: str, *, first: int = 1, limits: ImageLimits | None = None
) -> PagePreviews:
    """Draw small pictures of up to `PREVIEW_PAGES` pages of a PDF.

    Args:
        data: The file's content.
        name: Its name, for messages.
        first: Number of the first page to draw, from 1.
        limits: The largest file to accept.

    Raises:
        ImageError: It is not a PDF, is damaged, or takes too long or too much memory.
    """
    limits = limits or ImageLimits()
    _check_size(data, name, limits)
    if detect_type(data) != PDF:
        raise ImageError(f"{name} is not a PDF document.", "Add it as a picture.")
    first = max(1, first)
    options = {"kind": "pdf", "first": first, "count": PREVIEW_PAGES, "dpi": PAGE_DPI}
    options |= {"longest": PREVIEW_LONGEST, "budget": PREVIEW_SECONDS}
    found, images = _draw(data, name, options, ImageLimits())
    shown = tuple(image if image.width else None for image in images)
    return PagePreviews(found["pages"], first, shown)


def _check_size(data: bytes, name: str, limits: ImageLimits) -> None:
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"{name} is larger than {limits.max_bytes / 2**20:.3g} MB.", "Reduce its size."
        )


def _draw(
    data: bytes, name: str, options: dict[str, Any], limits: ImageLimits
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Run the worker; return what it says and the pictures that it drew."""
    job = {
        "pixels": limits.max_pixels,
        "memory": MEMORY,
        "seconds": SECONDS,
        "budget": float(SECONDS),
    }
    try:
        done = subprocess.run(
            # -P: the folder of the script is no place to import from.
            [sys.executable, "-P", str(_WORKER), json.dumps(job | options)],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(
            f"{name} took longer than {SECONDS} seconds to draw and was stopped.", _SCREENSHOT
        ) from None
    if done.returncode:
        raise _too_demanding(name)
    line, _, pixels = done.stdout.partition(b"\n")
    found: dict[str, Any] = json.loads(line)
    match found.get("error"):
        case "password":
            raise ImageError(
                f"{name} is protected by a password.", "Save a copy without one, and add that."
            )
        case "memory":
            raise _too_demanding(name)
        case "no drawing":
            raise ImageError(
                f"{name} is an XML file, but not an SVG drawing.", "Choose another picture."
            )
        case "damaged":
            raise ImageError(
                f"{name} is damaged or incomplete.", "Open it in another program and save a copy."
            )
    images = []
    for width, height in found["sizes"]:
        size = 3 * width * height
        images.append(Image.frombytes("RGB", (width, height), pixels[:size]))
        pixels = pixels[size:]
    return found, images


def _too_demanding(name: str) -> ImageError:
    return ImageError(f"Drawing {name} needs too much memory or time.", _SCREENSHOT)


def _with_changes(
    image: Image.Image, name: str, changes: list[str], limits: ImageLimits
) -> Picture:
    return replace(open_picture(image, name=name, limits=limits), changes=tuple(changes))
