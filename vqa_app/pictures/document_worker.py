"""Draw pages of PDF documents and SVG drawings, as a process of its own.

Reads the file from stdin and one JSON object of options from the command line. Writes one line of
JSON, then the pixels of each picture, as RGB without padding:

    {"pages": 3, "sizes": [[1654, 2339]], "scales": [2.78], "left_out": 0}
    {"error": "password"}

The decoders are libraries in C++ and Rust that end their process when they run out of memory and
have no time limit, so this process limits itself, and `vqa_app.pictures.documents` ends it when it
takes too long. Imports nothing of the package: it must start fast.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

POINTS_PER_INCH = 72.0
_SVG = "{http://www.w3.org/2000/svg}"
_REFERENCE = re.compile(r"\s*(#|data:image/(png|jpe?g|gif|webp)[;,])", re.IGNORECASE)
"""References inside of a drawing. resvg would read any other as a file of this machine."""
_LENGTH = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(px|pt|pc|mm|cm|in)?\s*", re.IGNORECASE)
_PIXELS = {"px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
"""CSS pixels of a unit of length."""


def limit_process(memory: int, seconds: int) -> None:
    """Limit address space and CPU time, forbid files and core dumps; not possible on Windows."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):  # macOS refuses some; the time limit outside remains
            continue


# PDF


def draw_pages(data: bytes, options: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Draw `count` pages from page `first` on, the longest side at most `longest` pixels.

    A page that cannot be drawn has the size [0, 0]. After `budget` seconds no further page is
    begun.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        return {"error": "password" if "password" in str(error).lower() else "damaged"}, []
    pages = len(document)
    document.init_forms()  # draws what was filled in; scripts are not part of this build
    end = time.monotonic() + options["budget"]
    sizes: list[list[int]] = []
    scales: list[float] = []
    pixels: list[bytes] = []
    for index in range(options["first"] - 1, min(pages, options["first"] - 1 + options["count"])):
        if sizes and time.monotonic() > end:
            break
        try:
            page = document[index]
            width, height = page.get_size()
            scale = _page_scale(width, height, options)
            image = page.render(scale=scale).to_pil().convert("RGB")
        except (pypdfium2.PdfiumError, ValueError, ArithmeticError):
            scale, image = 0.0, Image.new("RGB", (0, 0))
        sizes.append(list(image.size))
        scales.append(scale)
        pixels.append(image.tobytes())
    return {"pages": pages, "sizes": sizes, "scales": scales}, pixels


def _page_scale(width: float, height: float, options: dict[str, Any]) -> float:
    """Return the scale of a page, given in points, that all limits allow."""
    scales = (
        float(options["dpi"]) / POINTS_PER_INCH,
        float(options["longest"]) / max(width, height),
        math.sqrt(options["pixels"] / (width * height)),
    )
    scale = min(scales)
    while math.ceil(width * scale) * math.ceil(height * scale) > options["pixels"]:
        scale *= 0.99  # sides are rounded up
    return scale


# SVG


def draw_svg(data: bytes, options: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Draw an SVG on white, without anything that it refers to outside of itself.

    Its longest side gets at least `shortest` and at most `longest` pixels.
    """
    import resvg_py

    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError):
        return {"error": "damaged"}, []
    if root.tag not in ("svg", f"{_SVG}svg"):
        return {"error": "no drawing"}, []
    left_out = _remove_references(root)
    size = _intrinsic_size(root)
    if size is not None:
        longest = min(max(*size, options["shortest"]), options["longest"])
        scale = min(longest / max(size), math.sqrt(options["pixels"] / (size[0] * size[1])))
        if root.get("viewBox") is None:
            root.set("viewBox", f"0 0 {size[0]:g} {size[1]:g}")
        for name, length in zip(("width", "height"), size, strict=True):
            root.set(name, str(max(1, int(length * scale + 0.001))))
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    sans = "DejaVu Sans"
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=ElementTree.tostring(root, encoding="unicode"),
            background="white",
            font_dirs=_bundled_fonts(),
            font_family=sans,
            serif_family=sans,
            sans_serif_family=sans,
            monospace_family="DejaVu Sans Mono",
        )
    except ValueError:
        return {"error": "damaged"}, []
    image = Image.open(io.BytesIO(bytes(png)), formats=("PNG",)).convert("RGB")
    if image.width * image.height > options["pixels"]:  # its size was nowhere given
        image.thumbnail((options["shortest"], options["shortest"]))
    return {"sizes": [list(image.size)], "left_out": left_out}, [image.tobytes()]


def _remove_references(root: ElementTree.Element) -> int:
    """Remove scripts, and references to anything outside of the drawing; return their number."""
    removed = 0
    for element in list(root.iter()):
        for child in list(element):
            if isinstance(child.tag, str) and child.tag.rpartition("}")[2] == "script":
                element.remove(child)
                removed += 1
        for name in list(element.attrib):
            if name.rpartition("}")[2] != "href" or _REFERENCE.match(element.attrib[name]):
                continue
            del element.attrib[name]
            removed += element.tag.rpartition("}")[2] != "a"  # links draw nothing
    return removed


def _intrinsic_size(root: ElementTree.Element) -> tuple[float, float] | None:
    """Return the size in CSS pixels that a drawing asks for, or None if it names none."""
    width, height = _length(root.get("width")), _length(root.get("height"))
    box = [float(part) for part in re.findall(r"-?[0-9.]+(?:e[+-]?\d+)?", root.get("viewBox", ""))]
    if len(box) == 4 and box[2] > 0 and box[3] > 0:
        if width and not height:
            height = width * box[3] / box[2]
        elif height and not width:
            width = height * box[2] / box[3]
        width, height = width or box[2], height or box[3]
    return (width, height) if width and height else None


def _length(text: str | None) -> float | None:
    """Return a length in CSS pixels; None for a percentage or an invalid one."""
    found = _LENGTH.fullmatch(text or "")
    return float(found[1]) * _PIXELS[(found[2] or "px").lower()] if found else None


def _bundled_fonts() -> list[str]:
    """Return the folder of matplotlib's fonts: a server often has none of its own."""
    spec = find_spec("matplotlib")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return [str(Path(place, "mpl-data", "fonts", "ttf")) for place in places]


def main() -> None:
    """Draw what the command line asks for."""
    options = json.loads(sys.argv[1])
    limit_process(options["memory"], options["seconds"])
    data = sys.stdin.buffer.read()
    draw = {"pdf": draw_pages, "svg": draw_svg}[options["kind"]]
    try:
        found, pixels = draw(data, options)
    except MemoryError:
        found, pixels = {"error": "memory"}, []
    except Exception:  # the libraries raise anything on a damaged file
        found, pixels = {"error": "damaged"}, []
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n" + b"".join(pixels))


if __name__ == "__main__":
    main()
