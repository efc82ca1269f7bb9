"""Picture files by digest, re-encoded as PNG so that no byte of an upload is served back.

Access is checked in the database (`Store.picture`); a digest is not a secret.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

from PIL import Image

from vqa_app.errors import ImageError
from vqa_app.files import atomic_file, delete, is_disk_error
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, ImageLimits, Picture, open_picture

THUMBNAIL = 480
"""Longest side of a thumbnail in pixels: 240 CSS pixels on a double-density screen."""

LARGE = 2048
"""Longest side of an enlarged picture in pixels."""

_SMALL_PNG_BYTES = 512 << 10
"""Largest PNG in bytes that is served unchanged, so that drawings stay sharp."""
_LARGE_PNG_BYTES = 4 << 20
"""PNGs above this size in bytes are exported as JPEG: photos are four to eight times smaller so."""
_CACHE_BYTES = 256 << 20
"""Bytes of decoded pixels that are cached."""


class PictureStore:
    """Pictures in `<folder>/<first two digits>/<digest>.png`, with a cache of decoded ones.

    Args:
        folder: Created if missing.
        limits: The largest pictures that are accepted.
    """

    def __init__(self, folder: Path, limits: ImageLimits | None = None) -> None:
        self.folder = folder
        self.limits = limits or ImageLimits()
        self._cached: OrderedDict[str, Picture] = OrderedDict()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self, data: bytes | Image.Image | Picture, name: str, limits: ImageLimits | None = None
    ) -> Picture:
        """Validate, normalise and store a picture.

        Args:
            data: The bytes of a file, an image, or a picture that was opened already.
            name: What the picture is called in messages.
            limits: Instead of the store's own; `STORED_PICTURE_LIMITS` for exported pictures.

        Raises:
            ImageError: It cannot be read or is too large.
        """
        picture = open_picture(data, name=name, limits=limits or self.limits)
        self.write(picture)
        return picture

    def write(self, picture: Picture) -> None:
        """Write the file of a picture, unless it is there."""
        file = self.file(picture.digest)
        if not file.exists():
            _write(file, _stored_png(picture.image))
        self._cache(picture)

    def get(self, digest: str) -> Picture:
        """Return the picture with a digest.

        Raises:
            ImageError: It is not stored.
        """
        with self._lock:
            if digest in self._cached:
                self._cached.move_to_end(digest)
                return self._cached[digest]
        file = self.file(digest)
        if not file.exists():
            raise _not_stored()
        picture = open_picture(file, name="picture", limits=STORED_PICTURE_LIMITS)
        self._cache(picture)
        return picture

    def remove(self, digest: str) -> None:
        """Delete a picture and its files."""
        with self._lock:
            self._cached.pop(digest, None)
        file = self.file(digest)
        # The picture first: `resized` deletes what it made of a picture that has gone.
        delete(file)
        for resized in file.parent.glob(f"{digest}*.jpg"):
            delete(resized)

    def link(self, picture: Picture, folder: Path) -> None:
        """Hard-link or copy a picture into a folder, so that it survives deletion here."""
        target = folder / f"{picture.digest}.png"
        if target.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.file(picture.digest), target)
        except OSError:  # deleted here, another disk, or a file system without hard links
            _write(target, _stored_png(picture.image))

    def resized(self, digest: str, longest: int) -> Path:
        """Return the file of the picture with at most `longest` pixels per side.

        Small pictures are returned unchanged; for others a JPEG is created on first use, unless the
        disk is full.

        Raises:
            ImageError: It is not stored, or is deleted meanwhile.
        """
        whole = self.file(digest)
        file = whole.with_suffix(f".{longest}.jpg")
        if not file.exists():
            image = self.get(digest).image
            if max(image.size) <= longest and _size(whole) <= _SMALL_PNG_BYTES:
                return whole
            image = image.copy()
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            try:
                _write(file, _encode(image, "JPEG", quality=88))
            except OSError as error:
                if not is_disk_error(error):
                    raise
                return whole
            if not whole.exists():
                delete(file)
                raise _not_stored()
        return file

    def export_bytes(self, digest: str) -> bytes:
        """Return the picture for an export: the PNG, or a JPEG of high quality if that is large.

        Raises:
            ImageError: It is not stored.
        """
        whole = self.file(digest)
        if _size(whole) > _LARGE_PNG_BYTES:
            return _encode(self.get(digest).image, "JPEG", quality=95, subsampling=0)
        try:
            return whole.read_bytes()
        except FileNotFoundError as error:
            raise _not_stored() from error

    def file(self, digest: str) -> Path:
        """Return the path of a picture, whether or not it exists.

        Raises:
            ImageError: The digest is not a SHA-256 in hexadecimal, so it could name another file.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ImageError("This is not a picture.", "Add it again.")
        return self.folder / digest[:2] / f"{digest}.png"

    def _cache(self, picture: Picture) -> None:
        with self._lock:
            self._cached[picture.digest] = picture
            self._cached.move_to_end(picture.digest)
            while len(self._cached) > 1 and self._cached_bytes() > _CACHE_BYTES:
                self._cached.popitem(last=False)

    def _cached_bytes(self) -> int:
        return sum(
            3 * picture.image.width * picture.image.height for picture in self._cached.values()
        )


def _not_stored() -> ImageError:
    return ImageError("This picture is no longer stored.", "Add it again.")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError as error:
        raise _not_stored() from error


def _stored_png(image: Image.Image) -> bytes:
    # Level 1 is three times as fast as the default, for files a tenth larger.
    return _encode(image, "PNG", compress_level=1)


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _write(file: Path, data: bytes) -> None:
    """Write a file that only this user may read, completely or not at all."""
    with atomic_file(file, mode=0o600) as temporary:
        temporary.write_bytes(data)
