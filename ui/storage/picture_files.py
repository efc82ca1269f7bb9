"""Pictures on disk, by digest: re-encoded as PNG, so that no byte of an upload is ever served back.

Who may see one is the store's business (`Store.picture`): a digest is no secret.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

from PIL import Image

from vqa_app.errors import ImageError
from vqa_app.files import atomic_file
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, ImageLimits, Picture, open_picture

THUMBNAIL = 480
"""Longest side of what the chat shows, in pixels: 240 CSS pixels on a double-density screen."""

LARGE = 2048
"""Longest side of what opens large."""

_SMALL = 512 << 10
"""Bytes of a PNG that may as well be sent as it is: drawings stay sharp so."""
_LARGE_FILE = 4 << 20
"""Bytes of a PNG from which on it is handed out as JPEG: a photo, four to eight times as large."""
_IN_MEMORY = 256 << 20
"""Bytes of pixels that are kept decoded."""


class PictureStore:
    """Files `<folder>/<first two digits>/<digest>.png`, the latest pictures also in memory.

    Args:
        folder: made where it is missing.
        limits: what may come in.
    """

    def __init__(self, folder: Path, limits: ImageLimits | None = None) -> None:
        self.folder = folder
        self.limits = limits or ImageLimits()
        self._recent: OrderedDict[str, Picture] = OrderedDict()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self, data: bytes | Image.Image, name: str, limits: ImageLimits | None = None
    ) -> Picture:
        """Checks, normalises and keeps a picture.

        Args:
            limits: others than the shelf's own; `STORED_PICTURE_LIMITS` for what was exported here.

        Raises:
            ImageError: it cannot be read or is too large.
        """
        picture = open_picture(data, name=name, limits=limits or self.limits)
        file = self.file(picture.digest)
        if not file.exists():
            # Level 1: three times as fast as the default for a tenth more bytes.
            _write(file, _encoded(picture.image, "PNG", compress_level=1))
        self._keep(picture)
        return picture

    def get(self, digest: str) -> Picture:
        """The picture of a digest.

        Raises:
            ImageError: there is none.
        """
        with self._lock:
            if digest in self._recent:
                self._recent.move_to_end(digest)
                return self._recent[digest]
        file = self.file(digest)
        if not file.exists():
            raise ImageError("This picture is not kept here any more.", "Add it again.")
        picture = open_picture(file, name="picture", limits=STORED_PICTURE_LIMITS)
        self._keep(picture)
        return picture

    def remove(self, digest: str) -> None:
        """Forgets a picture and its files."""
        with self._lock:
            self._recent.pop(digest, None)
        file = self.file(digest)
        for one in (file, *file.parent.glob(f"{digest}*.jpg")):
            one.unlink(missing_ok=True)

    def link(self, digest: str, folder: Path) -> None:
        """Puts the picture's file into a folder, too, where it outlives the one here."""
        target = folder / f"{digest}.png"
        if target.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.file(digest), target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(self.file(digest), target)

    def smaller(self, digest: str, longest: int) -> Path:
        """The picture with at most `longest` pixels a side: itself where it is small, otherwise a
        JPEG that is made when first asked for.
        """
        whole = self.file(digest)
        file = whole.with_suffix(f".{longest}.jpg")
        if not file.exists():
            image = self.get(digest).image
            if max(image.size) <= longest and whole.stat().st_size <= _SMALL:
                return whole
            image = image.copy()
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            _write(file, _encoded(image, "JPEG", quality=88))
        return file

    def portable(self, digest: str) -> bytes:
        """The picture for a file that is carried away: the PNG, or a large one's finest JPEG."""
        whole = self.file(digest)
        if whole.stat().st_size <= _LARGE_FILE:
            return whole.read_bytes()
        return _encoded(self.get(digest).image, "JPEG", quality=95, subsampling=0)

    def file(self, digest: str) -> Path:
        """Where the picture lies or would lie; anything but a SHA-256 in hex is refused."""
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ImageError("This is not a picture.", "Add it again.")
        return self.folder / digest[:2] / f"{digest}.png"

    def _keep(self, picture: Picture) -> None:
        with self._lock:
            self._recent[picture.digest] = picture
            self._recent.move_to_end(picture.digest)
            while len(self._recent) > 1 and self._size() > _IN_MEMORY:
                self._recent.popitem(last=False)

    def _size(self) -> int:
        return sum(3 * kept.image.width * kept.image.height for kept in self._recent.values())


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _write(file: Path, data: bytes) -> None:
    """Write a file that only this user may read, completely or not at all."""
    with atomic_file(file, mode=0o600) as temporary:
        temporary.write_bytes(data)
