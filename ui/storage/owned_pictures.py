"""Pictures with their owners: the files on disk together with their entries in the database.

Owners share the file of identical pictures, and the last one who deletes the picture deletes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ui.storage.database import Store
from ui.storage.picture_files import PictureStore
from vqa_app.pictures.picture import ImageLimits, Picture


def add_owned_picture(
    store: Store,
    picture_store: PictureStore,
    owner: str,
    data: bytes | Image.Image | Picture,
    name: str,
    *,
    limits: ImageLimits | None = None,
    changes: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Picture:
    """Store a picture as an owner's.

    Args:
        store: Gets the entry.
        picture_store: Gets the file.
        owner: Whose picture it becomes.
        data: The bytes of a file, or an image.
        name: What the picture is called.
        limits: See `PictureStore.add`.
        changes: What was changed when the picture was read first; None if that is now.
        facts: More metadata, for the page.

    Raises:
        ImageError: The picture cannot be read or is too large.
    """
    picture = picture_store.add(data, name, limits)
    own = {
        "changes": list(picture.changes if changes is None else changes),
        "size": list(picture.image.size),
    }
    store.add_picture(owner, picture.digest, name, {**own, **(facts or {})})
    # Another owner may have deleted the file before the entry was there, which now protects it.
    picture_store.write(picture)
    return picture
