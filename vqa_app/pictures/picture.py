"""The one door for pictures: bytes, files, PIL images, data URIs to normalised RGB.

Whatever comes in is treated as hostile: only formats from a list are decoded, sizes are read from
the header before any pixel is, and every way to fail ends in an `ImageError` that names the file.
Nothing here opens a URL; `vqa_app.pictures.download` does that for the shell alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes

from PIL import Image, UnidentifiedImageError

from vqa_app.errors import ImageError, UsageError
from vqa_app.pictures.file_type import detect_type
from vqa_app.pictures.rgb import to_rgb

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of what is decoded; HEIF joins them where pillow-heif is installed."""

SUPPORTED = "Pictures may be JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF files."

_COUNTED_GIF_BYTES = 4 * 2**20
"""Counting frames walks the file, about 1 µs a frame of 12 bytes or more: bounded at 0.4 s."""

_HASHED_PIXELS = 1 << 20

_ORIENTATION = 0x0112
_TURNS: dict[int, tuple[Image.Transpose, str]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored by EXIF"),
    3: (Image.Transpose.ROTATE_180, "rotated 180° by EXIF"),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, "flipped upside down by EXIF"),
    5: (Image.Transpose.TRANSPOSE, "rotated 90° and mirrored by EXIF"),
    6: (Image.Transpose.ROTATE_270, "rotated 90° by EXIF"),
    7: (Image.Transpose.TRANSVERSE, "rotated 270° and mirrored by EXIF"),
    8: (Image.Transpose.ROTATE_90, "rotated 270° by EXIF"),
}
"""EXIF orientation to what undoes it; rotations are told clockwise."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost. Pillow's own guard against decompression bombs
    (`PIL.Image.MAX_IMAGE_PIXELS`, 89 megapixels) holds on top, as an error.
    """

    max_bytes: int = 20 * 2**20
    """Largest file."""
    max_pixels: int = 50_000_000
    """Most pixels, width × height, read from the header before decoding."""

    @classmethod
    def of(cls, megabytes: float, megapixels: float) -> ImageLimits:
        """In the units of the command line.

        Raises:
            UsageError: one of them is no size.
        """
        for value, unit in ((megabytes, "MB"), (megapixels, "megapixels")):
            if not 0 <= value <= 1e6:
                raise UsageError(
                    f"Pictures cannot be limited to {value:g} {unit}.",
                    "Give a value from 0 to 1e6.",
                )
        return cls(int(megabytes * 2**20), int(megapixels * 1e6))


STORED_PICTURE_LIMITS = ImageLimits(
    max_bytes=320 << 20, max_pixels=Image.MAX_IMAGE_PIXELS or 1 << 30
)
"""For PNGs that we wrote: several times the bytes of the file that was let in, at most 270 MB for
as many pixels as Pillow opens."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A normalised picture. Two pictures are equal when their pixels are."""

    image: Image.Image
    """RGB, upright, opaque; not to be changed."""
    digest: str
    """SHA-256 (hex) over mode, size and pixels."""
    name: str = "picture"
    """File name, for messages."""
    changes: tuple[str, ...] = ()
    """What normalising changed, in words for a person: "rotated 90° by EXIF"."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"Picture({self.name!r}, {width}×{height}, {self.digest[:12]})"


PictureSource: TypeAlias = "bytes | str | Path | BinaryIO | Image.Image | np.ndarray | Picture"
"""What `open_picture` takes."""


def open_picture(
    source: PictureSource,
    *,
    name: str | None = None,
    limits: ImageLimits | None = None,
) -> Picture:
    """Reads and normalises a picture.

    Args:
        source: the file's bytes, its path, a `data:` URI, a binary file object, a PIL image, or an
            array of bytes [rows, columns] or [rows, columns, 3 or 4]. A string is never a URL. A
            picture comes back as it is.
        name: what messages call the picture; by default the file's name.
        limits: largest file and most pixels; `ImageLimits()` where not given.

    Raises:
        ImageError: it cannot be read, is too large, or is none of `FORMATS`.
    """
    if isinstance(source, Picture):
        return source
    limits = limits or ImageLimits()
    name = _printable(name or _name_of(source))
    if hasattr(source, "__array_interface__") and not isinstance(source, Image.Image):
        source = _of_array(source, name)
    if isinstance(source, Image.Image):
        _check_pixels(source, name, limits)
        return _decode(source, name, source.format or "", frames="")
    data = _read(source, name, limits.max_bytes)
    image = _identify(data, name)
    _check_pixels(image, name, limits)
    return _decode(image, name, image.format or "", _frames(image, len(data)))


def blank_like(picture: Picture) -> Picture:
    """A uniform grey picture of the same size: what a model sees when it sees nothing."""
    return _picture(Image.new("RGB", picture.image.size, (127, 127, 127)), f"blank {picture.name}")


def digest_of(image: Image.Image) -> str:
    """SHA-256 (hex) over mode, size, pixels; pixels alone collide (2×3 and 3×2 of one colour)."""
    width, height = image.size
    hashed = hashlib.sha256(f"{image.mode} {width}x{height}\n".encode())
    rows = max(1, _HASHED_PIXELS // max(width, 1))
    for top in range(0, height, rows):  # strip by strip: no second copy of a large picture
        strip = image.crop((0, top, width, min(top + rows, height)))
        hashed.update(strip.tobytes())
    return hashed.hexdigest()


# Reading bytes


def _name_of(source: object) -> str:
    if isinstance(source, str) and source[:5].lower() == "data:":
        return "picture"
    if not isinstance(source, (str, os.PathLike)):
        source = getattr(source, "filename", None) or getattr(source, "name", None)
    return Path(source).name or str(source) if isinstance(source, (str, os.PathLike)) else "picture"


def _printable(name: str) -> str:
    """A name that cannot garble a terminal or fill a screen."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown if len(shown) <= 80 else f"{shown[:38]}…{shown[-38:]}"


def _of_array(array: Any, name: str) -> Image.Image:
    try:
        return Image.fromarray(array)
    except (TypeError, ValueError) as error:
        raise ImageError(
            f"{name} is an array of {array.dtype} {list(array.shape)}, which is no picture.",
            "Give uint8 values of the shape [rows, columns] or [rows, columns, 3].",
        ) from error


def _read(source: bytes | str | Path | BinaryIO, name: str, max_bytes: int) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if text[:5].lower() == "data:":
            data = _read_data_uri(text, name, max_bytes)
        elif text[:7].lower() == "http://" or text[:8].lower() == "https://":
            raise ImageError(
                f"{name} is a web address, and this reads files.",
                "Download the picture first, or give the address to `vqa-app ask`.",
            )
        else:
            data = _read_file(Path(text), name, max_bytes)
    else:
        data = _read_stream(source, name, max_bytes)
    if len(data) > max_bytes:
        raise _too_many_bytes(name, max_bytes)
    if not data:
        raise ImageError(f"{name} is empty (0 bytes).", "Check that it was saved completely.")
    return data


def _read_file(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise _too_many_bytes(name, max_bytes)
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ImageError(f"There is no file {_printable(str(path))}.", "Check the path.") from None
    except IsADirectoryError:
        raise ImageError(
            f"{_printable(str(path))} is a folder, not a picture.", "Name a file in it."
        ) from None
    except PermissionError:
        raise ImageError(
            f"{_printable(str(path))} may not be read.", "Change its permissions or copy it."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} could not be read: {reason}.", "Check the path.") from error


def _read_stream(stream: Any, name: str, max_bytes: int) -> bytes:
    if not hasattr(stream, "read"):
        raise ImageError(
            f"A value of the type {type(stream).__name__} is no picture.",
            "Give a path, a file's bytes, a binary file, a data: URI, a PIL image or an array.",
        )
    try:
        data = None if isinstance(stream, io.TextIOBase) else stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: it was closed
        raise ImageError(f"{name} could not be read: {error}.", "Open it again.") from error
    if not isinstance(data, bytes):
        raise ImageError(f"{name} was opened as text.", 'Open it with mode "rb".')
    return data


def _read_data_uri(uri: str, name: str, max_bytes: int) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise ImageError("The data: URI has no comma before its content.", "Check how it was made.")
    if len(body) > 3 * max_bytes + 3:  # the widest encoding is %XX, three characters a byte
        raise _too_many_bytes(name, max_bytes)
    data = unquote_to_bytes(body)
    if not header.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(
            f"The data: URI is not proper base64: {error}.", "Check that it was copied completely."
        ) from error


def _too_many_bytes(name: str, max_bytes: int) -> ImageError:
    return ImageError(
        f"{name} is larger than {max_bytes / 2**20:.3g} MB.",
        "Save it smaller, for example as JPEG.",
    )


# From bytes to an opened image: nothing is decoded yet


def _identify(data: bytes, name: str) -> Image.Image:
    kind = detect_type(data)
    formats, known = FORMATS, kind in FORMATS
    if kind == "HEIC" and _heif_registered():
        formats, known = (*FORMATS, "HEIF"), True
    try:
        return Image.open(BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} would unpack to far too many pixels and was not opened.",
            "Save the picture with fewer pixels.",
        ) from error
    except UnidentifiedImageError:
        raise _unknown(kind, name, known) from None
    except Exception as error:  # decoders fail on a damaged file in every imaginable way
        raise _damaged(name, kind, error) from error


def _unknown(kind: str, name: str, known: bool) -> ImageError:
    """Of a file that no decoder takes; `known` where there is one for this kind."""
    if known:
        return ImageError(
            f"{name} starts like a {kind} file but is damaged or cut off.",
            "Open it in an image editor and save it again.",
        )
    if kind == "HEIC":
        return ImageError(
            f"{name} is a HEIC picture, and HEIC support is not installed.",
            "Run `pip install pillow-heif`, or save the picture as JPEG.",
        )
    return ImageError(f"{name} is not a readable picture: it seems to be {kind}.", SUPPORTED)


def _damaged(name: str, kind: str, error: Exception) -> ImageError:
    reason = _printable(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
    return ImageError(
        f"{name} is a damaged or incomplete {kind} file ({reason.rstrip('.')}).",
        "Download or save it again, or open it in an image editor and save a copy.",
    )


def _heif_registered() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _check_pixels(image: Image.Image, name: str, limits: ImageLimits) -> None:
    width, height = image.size
    most = min(limits.max_pixels, Image.MAX_IMAGE_PIXELS or limits.max_pixels)
    if width * height > most:
        raise ImageError(
            f"{name} has {width} × {height} = {width * height / 1e6:.1f} megapixels;"
            f" the limit is {most / 1e6:.1f}.",
            "Save it with fewer pixels.",
        )
    if not width or not height:
        raise ImageError(f"{name} has no pixels ({width} × {height}).", "Choose another picture.")


def _frames(image: Image.Image, size: int) -> str:
    """What to tell of further frames; nothing where there are none."""
    kind = image.format
    if kind == "MPO":  # phones append previews and depth maps to a JPEG
        return ""
    try:
        if not getattr(image, "is_animated", False):
            return ""
        if kind == "TIFF":  # its pages are a linked list that may be long, and slow to walk
            return "first of several pages"
        if kind == "GIF" and size > _COUNTED_GIF_BYTES:
            return "first frame of an animation"
        return f"first of {image.n_frames} frames"  # type: ignore[attr-defined]
    except Exception:  # damage behind the first frame does not matter
        return "first frame of an animation"


# From an opened image to a normalised one


def _decode(image: Image.Image, name: str, kind: str, frames: str) -> Picture:
    try:
        turn = _orientation(image)
        image.load()
        changes = [frames] if frames else []
        if turn in _TURNS:
            changes.append(_TURNS[turn][1])
        if _orientation(image) in _TURNS:  # Pillow has turned TIFFs already
            image = image.transpose(_TURNS[turn][0])
        rgb = to_rgb(image, changes)
    except MemoryError as error:
        raise ImageError(f"Too little memory to open {name}.", "Save it smaller.") from error
    except Exception as error:  # decoders fail on a damaged file in every imaginable way
        raise _damaged(name, kind or "image", error) from error
    return _picture(rgb, name, tuple(changes))


def _picture(image: Image.Image, name: str, changes: tuple[str, ...] = ()) -> Picture:
    return Picture(image, digest_of(image), name, changes)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1
    return value if value in _TURNS else 1
