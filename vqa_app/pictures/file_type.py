"""Guess a file's type from its first bytes, for messages and to tell documents from pictures.

Pillow decides which pictures it decodes.
"""

from __future__ import annotations

import re

PDF, SVG = "a PDF document", "an SVG drawing"
_SVG_HEAD = 1 << 16
"""Bytes in which an SVG's first element is looked for; comments and entities may precede it."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis")),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"mif1", b"msf1")),
    (0, b"%PDF", PDF),
    (0, b"%!PS", "a PostScript file"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"\0\0\1\0", "a Windows icon"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"II\x2b\0", "a BigTIFF picture"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (8, b"WAVE", "a sound file"),
    (0, b"ID3", "a sound file"),
    (0, b"PK\3\4", "a ZIP archive or Office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"version https://git-lfs", "a Git LFS pointer (fetch the real file with `git lfs pull`)"),
)


def detect_type(data: bytes) -> str:
    """Return one of Pillow's format names, "HEIC", or a description of some other type."""
    for offset, signature, kind in _SIGNATURES:
        if data.startswith(signature, offset):
            return kind
    if b"%PDF-" in data[:1024]:  # other bytes may precede it
        return PDF
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)"
    if start.startswith(b"<") and re.search(rb"<(\w+:)?svg[\s>]", data[:_SVG_HEAD]):
        return SVG
    if b"<html" in start:
        return "a web page (HTML)"
    if start.startswith(b"<?xml"):
        return "an XML file"
    if not any(byte < 9 or 13 < byte < 27 for byte in data[:1024]):
        return "a text file"
    return "an unknown format"
