"""Convert images of any mode to 8-bit RGB: 16 and 32-bit values, transparency, CMYK, LAB."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

_PHOTOMETRIC = 262
"""The TIFF tag that says whether 0 is black or white."""


def to_rgb(image: Image.Image, changes: list[str]) -> Image.Image:
    """Return an RGB copy without metadata, and append to `changes` what was converted."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        image = _to_eight_bits(image, changes)
    elif mode in ("CMYK", "LAB"):
        image = _convert_colours(image)
        changes.append(f"{mode} colours converted to RGB")
    elif mode == "La":
        image = image.convert("LA")
    elif mode == "RGBa":
        image = image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if any(image.getchannel("A").histogram()[:255]):
            changes.append("transparency replaced by white")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    # Copy even RGB images, so that the caller's stays unchanged and the metadata is freed.
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _to_eight_bits(image: Image.Image, changes: list[str]) -> Image.Image:
    """Convert grey values of 16 or 32 bits to mode "L" or "LA"; Pillow would clip them at 255.

    16-bit values are divided by 257, so that black stays black and white stays white. For 32-bit
    integers and floats no value is defined as white: floats within 0 to 1 keep that range, and
    anything else is stretched from its minimum to its maximum.
    """
    import numpy as np

    values = np.asarray(image)  # [rows, columns]
    if image.mode.startswith("I;16"):
        grey = values / np.float32(257)
        changes.append("16-bit values scaled to 8-bit")
    else:
        values = np.where(np.isfinite(values), values, 0)
        low, high = float(values.min()), float(values.max())
        if image.mode == "F" and low >= 0.0 and high <= 1.0:
            low, high = 0.0, 1.0
        grey = (values - low) * (255.0 / (high - low) if high > low else 0.0)
        changes.append("32-bit values scaled to 8-bit")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # "white is zero" in TIFF
        grey = 255 - grey
    result = Image.fromarray(np.rint(grey).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return result


def _convert_colours(image: Image.Image) -> Image.Image:
    """Convert CMYK or LAB to RGB with the image's own colour profile, if it has a usable one."""
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    profile = image.info.get("icc_profile")
    if image.mode == "LAB":
        converted = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB"
        )
        assert converted is not None  # None is returned only for in-place conversion
        return converted
    if profile:
        try:
            converted = ImageCms.profileToProfile(image, BytesIO(profile), srgb, outputMode="RGB")
        except ImageCms.PyCMSError:
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")
