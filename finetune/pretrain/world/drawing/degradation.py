"""Degradation of pictures, such as happens to users' files: scaling, blur, JPEG."""

import io
import random

from PIL import Image, ImageFilter

FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def rescaled(picture: Image.Image, rng: random.Random, least: int, most: int) -> Image.Image:
    """Return the picture with a longer side of `least` to `most` pixels, by any filter."""
    longest = max(picture.size)
    target = round(least * (most / least) ** rng.random())
    size = tuple(max(4, round(v * target / longest)) for v in picture.size)
    return picture.resize(size, rng.choice(FILTERS))


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    """Return the picture after JPEG compression."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def degraded(picture: Image.Image, rng: random.Random, least: int = 96) -> Image.Image:
    """Return the picture randomly degraded; half of the pictures are left unchanged.

    `least` is the fewest pixels of the longer side at which its content can still be recognised.
    """
    if rng.random() < 0.5:
        return picture
    if rng.random() < 0.5:
        picture = rescaled(picture, rng, min(least, max(picture.size)), 640)
    if rng.random() < 0.25:
        reach = max(picture.size) / 128
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0) * reach))
    if rng.random() < 0.4:
        picture = compressed(picture, rng.randint(25, 92))
    return picture
