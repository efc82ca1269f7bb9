"""Pictures made of a stored one: rotated, or a region of it, to ask about that alone."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ui.chat.requests import PageRequest
from ui.chat.service import ChatService
from vqa_app.errors import UsageError

MIN_SIDE = 8
"""Shortest side of a region, in pixels; less is hardly a picture."""
_ROTATIONS = {
    90: Image.Transpose.ROTATE_270,  # Pillow counts the other way round
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


def edit_picture(
    service: ChatService, owner: str, digest: str, request: PageRequest
) -> dict[str, Any]:
    """Make a picture of one of the owner's, and return what the page shows of it.

    The request holds `rotate` (90, 180 or 270 degrees clockwise) or `region` ([left, top, right,
    bottom] in pixels). The picture that it is made of stays as it is.

    Raises:
        UsageError: The owner has no such picture, or there is no such rotation or region.
        ImageError: The picture is no longer stored.
    """
    known = service.store.picture(owner, digest)
    if known is None:
        raise UsageError("One of the pictures has been deleted.", "Add it again.")
    name, facts = known
    image = service.picture_store.get(digest).image
    changes = list(facts.get("changes", []))
    if "region" in request:
        left, top, right, bottom = box = _region(request["region"], image.size)
        words = f"only a region of {right - left:,} × {bottom - top:,} pixels"
        region = {"of": digest, "name": name, "box": list(box), "whole": list(image.size)}
        made = {"changes": [*changes, words], "region": region}
        return service.add_image(owner, image.crop(box), name, made)
    degrees = request.get("rotate")
    if degrees not in _ROTATIONS:
        raise UsageError("Pictures are rotated by 90, 180 or 270 degrees.", "Reload the page.")
    rotated = image.transpose(_ROTATIONS[degrees])
    kept = {name: value for name, value in facts.items() if name == "region"}
    words = f"rotated {degrees}° clockwise"
    return service.add_image(owner, rotated, name, {"changes": [*changes, words], **kept})


def _region(value: list[int] | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a region of a picture: left, top, right, bottom.

    Raises:
        UsageError: It is not within the picture, or too small.
    """
    width, height = size
    if not (
        value
        and len(value) == 4
        and 0 <= value[0] < value[2] <= width
        and 0 <= value[1] < value[3] <= height
    ):
        raise UsageError("The region is not within the picture.", "Mark it again.")
    if value[2] - value[0] < min(MIN_SIDE, width) or value[3] - value[1] < min(MIN_SIDE, height):
        raise UsageError("The region is too small.", "Mark a larger one.")
    left, top, right, bottom = value
    return left, top, right, bottom
