"""PDF documents and SVG drawings for tests."""

from __future__ import annotations

import io

from PIL import Image

COLOURS = ("red", "lime", "blue")


def pdf(colours: tuple[str, ...] = COLOURS, size: tuple[int, int] = (200, 100)) -> bytes:
    """Return a document with a page of one colour for each, 72 pixels an inch."""
    first, *others = (Image.new("RGB", size, colour) for colour in colours)
    buffer = io.BytesIO()
    first.save(buffer, "PDF", save_all=True, append_images=others)
    return buffer.getvalue()


def svg(body: str = "", attributes: str = 'width="40" height="20"', before: str = "") -> bytes:
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"{before}<svg {namespaces} {attributes}>{body}</svg>".encode()
