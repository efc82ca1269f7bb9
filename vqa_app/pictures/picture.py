"""Open pictures from bytes, files, PIL images or data URIs, and normalise them to upright RGB.

All input is untrusted: only listed formats are decoded, sizes are checked in the header before any
pixel is decoded, and every failure raises an `ImageError` that names the file. Nothing here opens a
URL; `vqa_app.pictures.download` does so, for the shell only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes

from PIL import Image, UnidentifiedImageError

from vqa_app.errors import ImageError, first_line
from vqa_app.numeric import LARGEST, checked_float, checked_integer
from vqa_app.pictures.file_type import detect_type
from vqa_app.pictures.names import SUFFIXES
from vqa_app.pictures.rgb import to_rgb
from vqa_app.suggestions import suggest

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of the formats that are decoded. If pillow-heif is installed, so is HEIF."""

SUPPORTED = "Pictures may be JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF files."

_COUNTED_GIF_BYTES = 4 * 2**20
"""Size of the largest GIF whose frames are counted. Counting takes about 1 µs for each frame of 12
bytes or more, so 0.4 s at most."""

_HASHED_PIXELS = 1 << 20
"""Pixels hashed at a time."""

_ORIENTATION = 0x0112
_ORIENTATIONS: dict[int, tuple[Image.Transpose, str]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored by EXIF"),
    3: (Image.Transpose.ROTATE_180, "rotated 180° by EXIF"),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, "flipped upside down by EXIF"),
    5: (Image.Transpose.TRANSPOSE, "rotated 90° and mirrored by EXIF"),
    6: (Image.Transpose.ROTATE_270, "rotated 90° by EXIF"),
    7: (Image.Transpose.TRANSVERSE, "rotated 270° and mirrored by EXIF"),
    8: (Image.Transpose.ROTATE_90, "rotated 270° by EXIF"),
}
"""For each EXIF orientation, the operation that undoes it, and its description (clockwise)."""


@dataclass(frozen=True)
class ImageLimits:
    """The largest picture to accept.

    In addition, Pillow's own limit against decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`, 89
    megapixels) applies, as an error.
    """

    max_bytes: int = 20 * 2**20
    """Size of the largest file, in bytes."""
    max_pixels: int = 50_000_000
    """Most pixels, width × height, checked in the header before decoding."""

    def __post_init__(self) -> None:
        """Check the limits, and convert them to whole numbers."""
        for name in ("max_bytes", "max_pixels"):
            number = checked_integer(name, getattr(self, name), 0, LARGEST)
            object.__setattr__(self, name, number)  # the dataclass is frozen

    @classmethod
    def of(cls, megabytes: float, megapixels: float) -> ImageLimits:
        """Return limits given in the units of the command line.

        Raises:
            UsageError: A value is too small, so that no picture would be accepted, too large, or
                not a number.
        """
        megabytes = checked_float("--max-file-mb", megabytes, 1e-6, 1e6)
        megapixels = checked_float("--max-megapixels", megapixels, 1e-6, 89)
        return cls(int(megabytes * 2**20), int(megapixels * 1e6))


STORED_PICTURE_LIMITS = ImageLimits(
    max_bytes=320 << 20, max_pixels=Image.MAX_IMAGE_PIXELS or 1 << 30
)
"""Limits for PNG files that we wrote ourselves. They may be several times as large as the file that
was opened: up to 270 MB for the most pixels that Pillow accepts."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A normalised picture; pictures with equal pixels are equal."""

    image: Image.Image
    """RGB, upright and opaque. Do not modify it."""
    digest: str
    """SHA-256 over mode, size and pixels, in hex."""
    name: str = "picture"
    """File name, for messages."""
    changes: tuple[str, ...] = ()
    """Descriptions of what normalisation changed, such as "rotated 90° by EXIF"."""
    low_detail: bool = False
    """Whether a model spends as few tokens on it as it can; see `at_low_detail`."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"Picture({self.name!r}, {width}×{height}, {self.digest[:12]})"


PictureSource: TypeAlias = (
    "bytes | str | Path | BinaryIO | Image.Image | np.ndarray[Any, Any] | Picture"
)
"""Anything that `open_picture` accepts."""


def open_picture(
    source: PictureSource,
    *,
    name: str | None = None,
    limits: ImageLimits | None = None,
) -> Picture:
    """Read and normalise a picture.

    Args:
        source: The file's bytes, its path, a `data:` URI, a binary file object, a PIL image, or a
            uint8 array [rows, columns] or [rows, columns, 3 or 4]. A string is never opened as a
            URL. A `Picture` is returned unchanged.
        name: Name of the picture in messages; the file's name by default.
        limits: The largest file and the most pixels to accept; `ImageLimits()` by default.

    Raises:
        ImageError: The picture cannot be read, is too large, or is in none of `FORMATS`.
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
    """Return a uniform grey picture of the same size, a baseline without visual information."""
    return _picture(Image.new("RGB", picture.image.size, (127, 127, 127)), f"blank {picture.name}")


LOW_DETAIL_SIDE = 512
"""Longer side of a picture at low detail, in pixels."""


def at_low_detail(picture: Picture) -> Picture:
    """Return a smaller copy, on which a model that has a choice spends few tokens.

    It has an identity of its own, because models process it in another way.
    """
    image = picture.image.copy()
    image.thumbnail((LOW_DETAIL_SIDE, LOW_DETAIL_SIDE), Image.Resampling.LANCZOS)
    digest = hashlib.sha256(f"low detail {picture.digest}".encode()).hexdigest()
    return replace(picture, image=image, digest=digest, low_detail=True)


def digest_of(image: Image.Image) -> str:
    """Return the SHA-256 over mode, size and pixels, in hex.

    Pixels alone would collide: an image of one colour has the same bytes in 2×3 and 3×2.
    """
    width, height = image.size
    hashed = hashlib.sha256(f"{image.mode} {width}x{height}\n".encode())
    rows = max(1, _HASHED_PIXELS // max(width, 1))
    for top in range(0, height, rows):  # in strips, so as not to copy a large picture
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
    """Return the name without control characters, shortened to at most 80 characters."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown if len(shown) <= 80 else f"{shown[:38]}…{shown[-38:]}"


def _of_array(array: Any, name: str) -> Image.Image:
    try:
        return Image.fromarray(array)
    except (TypeError, ValueError) as error:
        raise ImageError(
            f"{name}: expected a picture, got an array of {array.dtype} {list(array.shape)}.",
            "Use uint8 values of shape [rows, columns] or [rows, columns, 3].",
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
                f"Expected a file, got the web address {name}.",
                "Download the picture first, or pass the address to `vqa-app ask`.",
            )
        else:
            data = _read_file(Path(text), name, max_bytes)
    else:
        data = _read_stream(source, name, max_bytes)
    if len(data) > max_bytes:
        raise _too_many_bytes(name, max_bytes)
    if not data:
        raise ImageError(
            f"{name} is empty (0 bytes).", "Check that it was saved or sent completely."
        )
    return data


def _read_file(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise _too_many_bytes(name, max_bytes)
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        hint = suggest(path, path=_may_be_picture, otherwise="Check the path.")
        raise ImageError(f"There is no file {_printable(str(path))}.", hint) from None
    except IsADirectoryError:
        raise ImageError(
            f"{_printable(str(path))} is a folder, not a picture.", "Choose a file in it."
        ) from None
    except PermissionError:
        raise ImageError(
            f"No permission to read {_printable(str(path))}.", "Change its permissions or copy it."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or "its name has a NUL character"
        raise ImageError(f"Could not read {name}: {reason}.", "Check the path.") from error


def _may_be_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _read_stream(stream: Any, name: str, max_bytes: int) -> bytes:
    if not hasattr(stream, "read"):
        raise ImageError(
            f"Expected a picture, got a value of type {type(stream).__name__}.",
            "Use a path, a file's bytes, a binary file, a data: URI, a PIL image or an array.",
        )
    try:
        data = None if isinstance(stream, io.TextIOBase) else stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: the file was closed
        reason = getattr(error, "strerror", None) or "the file is closed"
        raise ImageError(f"Could not read {name}: {reason}.", "Open it again.") from error
    if not isinstance(data, bytes):
        raise ImageError(f"{name} was opened as text.", 'Open it with mode "rb".')
    return data


def _read_data_uri(uri: str, name: str, max_bytes: int) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise ImageError("The data: URI has no comma before its data.", "Check how it was made.")
    if len(body) > 3 * max_bytes + 3:  # %XX encoding takes three characters a byte
        raise _too_many_bytes(name, max_bytes)
    data = unquote_to_bytes(body)
    if not header.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(
            "The data: URI is not valid base64.", "Check that it was copied completely."
        ) from error


def _too_many_bytes(name: str, max_bytes: int) -> ImageError:
    return ImageError(
        f"{name} is larger than {max_bytes / 2**20:.3g} MB.",
        "Reduce its size, for example by saving it as JPEG.",
    )


# From bytes to an opened image, without decoding its pixels


def _identify(data: bytes, name: str) -> Image.Image:
    kind = detect_type(data)
    formats: tuple[str, ...] = FORMATS
    has_decoder = kind in FORMATS
    if kind == "HEIC" and _heif_registered():
        formats, has_decoder = (*FORMATS, "HEIF"), True
    try:
        return Image.open(BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} would decompress to far too many pixels and was not opened.",
            "Reduce its resolution.",
        ) from error
    except UnidentifiedImageError:
        raise _undecodable(kind, name, has_decoder) from None
    except Exception as error:  # decoders raise anything on a damaged file
        raise _damaged(name, kind, error) from error


def _undecodable(kind: str, name: str, has_decoder: bool) -> ImageError:
    """Return the error for a file that no decoder accepts.

    Args:
        kind: The type that the file seems to have.
        name: Name of the picture in messages.
        has_decoder: Whether there is a decoder for this type.
    """
    if has_decoder:
        return ImageError(
            f"{name} starts like a {kind} file but is damaged or truncated.",
            "Open it in an image editor and save it again.",
        )
    if kind == "HEIC":
        return ImageError(
            f"{name} is a HEIC picture, but HEIC support is not installed.",
            "Run `pip install pillow-heif`, or save the picture as JPEG.",
        )
    return ImageError(f"Expected a picture, but {name} seems to be {kind}.", SUPPORTED)


def _damaged(name: str, kind: str, error: Exception) -> ImageError:
    reason = _printable(first_line(error))
    return ImageError(
        f"{name} is a damaged or incomplete {kind} file ({reason.rstrip('.')}).",
        "Download it again, or open it in an image editor and save a copy.",
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
            f"{name} has {width:,} × {height:,} = {width * height / 1e6:.4g} megapixels;"
            f" the limit is {most / 1e6:.4g}.",
            "Reduce its resolution.",
        )
    if not width or not height:
        raise ImageError(
            f"{name} has no pixels ({width:,} × {height:,}).", "Choose another picture."
        )


def _frames(image: Image.Image, size: int) -> str:
    """Describe which frame of several is used; "" if there is only one."""
    kind = image.format
    if kind == "MPO":  # phones append previews and depth maps to a JPEG
        return ""
    try:
        if not getattr(image, "is_animated", False):
            return ""
        if kind == "TIFF":  # its pages are a linked list, which may be long and slow to read
            return "first of several pages"
        if kind == "GIF" and size > _COUNTED_GIF_BYTES:
            return "first frame of an animation"
        return f"first of {getattr(image, 'n_frames')} frames"  # noqa: B009  Pillow's types lack it
    except Exception:  # damage after the first frame does not matter
        return "first frame of an animation"


# From an opened image to a normalised one


def _decode(image: Image.Image, name: str, kind: str, frames: str) -> Picture:
    try:
        orientation = _orientation(image)
        image.load()
        changes = [frames] if frames else []
        if orientation in _ORIENTATIONS:
            changes.append(_ORIENTATIONS[orientation][1])
        if _orientation(image) in _ORIENTATIONS:  # Pillow rotates TIFFs while loading them
            image = image.transpose(_ORIENTATIONS[orientation][0])
        rgb = to_rgb(image, changes)
    except MemoryError as error:
        raise ImageError(f"Not enough memory to open {name}.", "Reduce its resolution.") from error
    except Exception as error:  # decoders raise anything on a damaged file
        raise _damaged(name, kind or "image", error) from error
    return _picture(rgb, name, tuple(changes))


def _picture(image: Image.Image, name: str, changes: tuple[str, ...] = ()) -> Picture:
    return Picture(image, digest_of(image), name, changes)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels may be fine even if the EXIF data cannot be read
        return 1
    return value if value in _ORIENTATIONS else 1
