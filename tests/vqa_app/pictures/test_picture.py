"""Every file becomes an upright, opaque RGB picture, or raises an error that names the file.

Timed tests measure the CPU time of this process, because test machines are shared.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vqa_app.errors import ImageError
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, ImageLimits, blank_like, open_picture


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_colours(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 8 × 4."""
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 0, 255), (4, 0, 8, 4))
    return image.convert(mode)


def near(pixel: object, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.all(np.abs(np.subtract(pixel, colour)) <= tolerance))


def greys(data: bytes) -> list[int]:
    """Return the red values of the opened picture."""
    return [pixel[0] for pixel in open_picture(data).image.get_flattened_data()]


def png_header(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its data does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


# Sources and formats


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_listed_format_opens(kind: str) -> None:
    picture = open_picture(encoded(two_colours(), kind), name=f"a.{kind.lower()}")
    assert picture.image.mode == "RGB"
    assert picture.image.size == (8, 4)
    assert near(picture.image.getpixel((0, 0)), (255, 0, 0), 40)
    assert near(picture.image.getpixel((7, 3)), (0, 0, 255), 40)


def test_heic_opens_if_pillow_heif_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(two_colours().resize((64, 32))).save(buffer)
    picture = open_picture(buffer.getvalue(), name="phone.heic")
    assert picture.image.size == (64, 32)
    assert near(picture.image.getpixel((5, 5)), (255, 0, 0), 40)


def test_the_error_for_heic_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"phone\.heic is a HEIC picture") as caught:
        open_picture(b"\0\0\0\x18ftypheic" + b"\0" * 100, name="phone.heic")
    assert "pip install pillow-heif" in caught.value.hint


def test_a_damaged_heic_file_is_reported_as_damaged() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(two_colours().resize((64, 32))).save(buffer)
    for data in (buffer.getvalue()[:60], b"\0\0\0\x18ftypheic" + b"\0" * 100):
        with pytest.raises(ImageError, match=r"phone\.heic .*damaged") as caught:
            open_picture(data, name="phone.heic")
        assert "install" not in str(caught.value)


def test_all_sources_give_the_same_picture(tmp_path: Path) -> None:
    data = encoded(two_colours())
    path = tmp_path / "two.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    with path.open("rb") as file, Image.open(path) as opened:
        pictures = [
            open_picture(data),
            open_picture(path),
            open_picture(str(path)),
            open_picture(file),
            open_picture(io.BytesIO(data)),
            open_picture(opened),
            open_picture(two_colours()),
            open_picture(uri),
            open_picture("data:image/png," + "".join(f"%{byte:02x}" for byte in data)),
        ]
    assert len(set(pictures)) == 1
    assert [picture.name for picture in pictures[:4]] == ["picture", *["two.png"] * 3]
    assert pictures[5].name == "two.png"


def test_a_picture_is_independent_of_the_callers_image() -> None:
    image = two_colours()
    picture = open_picture(image)
    image.paste((0, 255, 0), (0, 0, 8, 4))
    assert near(picture.image.getpixel((0, 0)), (255, 0, 0))


# Identity


def test_pictures_are_equal_by_their_pixels() -> None:
    png, bmp = open_picture(encoded(two_colours())), open_picture(encoded(two_colours(), "BMP"))
    assert png == bmp
    assert hash(png) == hash(bmp)
    assert png != open_picture(encoded(two_colours().rotate(180)))


def test_the_digest_depends_on_the_size() -> None:
    assert open_picture(Image.new("RGB", (2, 3))) != open_picture(Image.new("RGB", (3, 2)))


def test_the_digest_of_strips_equals_that_of_the_whole_picture() -> None:
    image = tiny.picture(0, (1500, 1100)).image
    whole = hashlib.sha256(b"RGB 1500x1100\n" + image.tobytes()).hexdigest()
    assert open_picture(image).digest == whole


def test_a_blank_picture_has_the_same_size_and_one_colour() -> None:
    blank = blank_like(open_picture(two_colours()))
    assert blank.image.size == (8, 4)
    assert len(blank.image.getcolors()) == 1


# Normalisation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), (255, 255, 255))
    upright.paste((255, 0, 0), (0, 0, 16, 16))
    upright.paste((0, 0, 255), (32, 16, 48, 32))
    how = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(how[orientation]) if orientation in how else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = open_picture(encoded(stored, kind, exif=exif))
    assert picture.image.size == (48, 32)
    assert near(picture.image.getpixel((4, 4)), (255, 0, 0), 40)
    assert near(picture.image.getpixel((44, 28)), (0, 0, 255), 40)
    assert near(picture.image.getpixel((44, 4)), (255, 255, 255), 40)
    assert len(picture.changes) == (orientation != 1)


def test_rotations_are_described_clockwise() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = open_picture(encoded(two_colours(), "JPEG", exif=exif))
    assert picture.changes == ("rotated 90° by EXIF",)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_is_ignored() -> None:
    picture = open_picture(encoded(two_colours(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert picture.image.size == (8, 4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    picture = open_picture(encoded(Image.fromarray(values), kind))
    assert [pixel[0] for pixel in picture.image.get_flattened_data()] == [0, 1, 100, 255]
    assert picture.changes == ("16-bit values scaled to 8-bit",)


def test_a_sixteen_bit_tiff_with_white_as_zero_is_inverted() -> None:
    values = np.array([[0, 65535]], dtype=np.uint16)
    data = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    if Image.open(io.BytesIO(data)).tag_v2[262] != 0:  # type: ignore[attr-defined]
        pytest.fail("Pillow did not write the tag for white as zero")
    assert greys(data) == [255, 0]


def test_floats_and_wide_integers_are_scaled() -> None:
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    wide = Image.fromarray(np.array([[-1000, 0, 1000]], dtype=np.int32))
    odd = Image.fromarray(np.array([[np.nan, 0.0, 1.0]], dtype=np.float32))
    assert greys(encoded(unit, "TIFF")) == [0, 128, 255]
    assert greys(encoded(wide, "TIFF")) == [0, 128, 255]
    assert greys(encoded(odd, "TIFF")) == [0, 0, 255]


def test_sixteen_bit_grey_keeps_its_transparent_value() -> None:
    values = np.array([[1000, 65535]], dtype=np.uint16)
    data = encoded(Image.fromarray(values), "PNG", transparency=1000)
    assert next(iter(open_picture(data).image.get_flattened_data())) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    picture = open_picture(encoded(two_colours("CMYK").resize((32, 16), 0), kind))
    assert near(picture.image.getpixel((4, 8)), (255, 0, 0), 40)
    assert picture.changes == ("CMYK colours converted to RGB",)


def test_lab_becomes_rgb() -> None:
    grey = Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (255, 128, 128)])
    assert near(open_picture(encoded(grey, "TIFF")).image.getpixel((0, 0)), (255, 255, 255), 6)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_replaced_by_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    picture = open_picture(encoded(image.convert(mode)))
    assert list(picture.image.get_flattened_data()) == [(255, 255, 255), (0, 0, 0)]
    assert picture.changes == ("transparency replaced by white",)


def test_partial_transparency_is_blended() -> None:
    picture = open_picture(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert near(picture.image.getpixel((0, 0)), (127, 127, 127), 1)


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    assert open_picture(encoded(two_colours("RGBA"))).changes == ()


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    picture = open_picture(encoded(image, "PNG", transparency=0))
    assert list(picture.image.get_flattened_data()) == [(255, 255, 255), (200, 100, 50)]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_one_bit_pictures_open(kind: str) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 255)
    pixels = list(open_picture(encoded(image, kind)).image.get_flattened_data())
    assert pixels == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_is_reduced_to_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (20 * n, 0, 255 - 20 * n)) for n in range(12)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    picture = open_picture(data)
    assert near(picture.image.getpixel((4, 4)), (0, 0, 255), 20)
    assert picture.changes == ("first of 12 frames",)


def test_a_tiff_is_reduced_to_its_first_page() -> None:
    data = encoded(two_colours(), "TIFF", save_all=True, append_images=[Image.new("RGB", (8, 4))])
    picture = open_picture(data)
    assert near(picture.image.getpixel((0, 0)), (255, 0, 0))
    assert picture.changes == ("first of several pages",)


def test_metadata_is_removed() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    picture = open_picture(encoded(two_colours(), "JPEG", exif=exif))
    assert picture.image.info == {}
    assert not picture.image.getexif()


# Extreme sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
def test_extreme_sizes_open(size: tuple[int, int]) -> None:
    assert open_picture(encoded(Image.new("L", size, 7))).image.size == size


# Files that are rejected, by name


def test_an_empty_file_is_rejected() -> None:
    with pytest.raises(ImageError, match=r"a\.png is empty"):
        open_picture(b"", name="a.png")


def test_missing_files_folders_and_invalid_paths_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"There is no file .*gone\.png"):
        open_picture(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder"):
        open_picture(tmp_path)
    with pytest.raises(ImageError, match="Could not read"):
        open_picture("a\0b.png")
    with pytest.raises(ImageError, match="Could not read"):
        open_picture("x" * 5000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_rejected_by_name(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match=r"cut\.img"):
        open_picture(data[: int(len(data) * part)], name="cut.img")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_corrupted_files_open_or_raise_an_image_error(kind: str) -> None:
    data = encoded(two_colours().resize((32, 16)), kind)
    rng = np.random.default_rng(1)
    messages = []
    for _ in range(60):
        broken = bytearray(data)
        for index in rng.integers(0, len(data), 4):
            broken[index] = rng.integers(256)
        try:
            picture = open_picture(bytes(broken), name="broken.img")
        except ImageError as error:
            messages.append(str(error))
        else:
            assert picture.image.mode == "RGB"
    assert all("broken.img" in message for message in messages)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"<!DOCTYPE html><html><body>404</body></html>", r"a web page \(HTML\)"),
        (b"Just a few words.\n", "a text file"),
        (b"PK\x03\x04" + b"\0" * 40, "a ZIP archive"),
        (b"\0\0\0\x20ftypisom" + b"\0" * 40, "a video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes(range(256)), "an unknown format"),
    ],
)
def test_the_error_for_another_file_names_its_type(data: bytes, what: str) -> None:
    with pytest.raises(ImageError, match=rf"photo\.png seems to be {what}") as caught:
        open_picture(data, name="photo.png")
    assert "JPEG, PNG" in caught.value.hint


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "EPS", "PCX", "JPEG2000"])
def test_other_formats_of_pillow_are_rejected(kind: str) -> None:
    with pytest.raises(ImageError, match=r"odd\.file"):
        open_picture(encoded(two_colours().resize((32, 32)), kind), name="odd.file")


def test_a_web_address_is_not_opened() -> None:
    with pytest.raises(ImageError, match="web address"):
        open_picture("https://example.com/cat.png")


@pytest.mark.parametrize("uri", ["data:image/png;base64,!!!", "data:image/png;base64", "data:,"])
def test_an_invalid_data_uri_is_rejected(uri: str) -> None:
    with pytest.raises(ImageError):
        open_picture(uri)


def test_a_file_opened_as_text_is_rejected() -> None:
    with pytest.raises(ImageError, match="opened as text"):
        open_picture(io.StringIO("x"))  # type: ignore[arg-type]


def test_messages_shorten_names_and_remove_control_characters() -> None:
    with pytest.raises(ImageError) as caught:
        open_picture(b"", name="\x1b[31mred\n.png" + "x" * 500)
    assert "\x1b" not in str(caught.value)
    assert len(caught.value.problem) < 160


# Limits


def test_a_large_file_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)  # a sparse file
    began = time.process_time()
    with pytest.raises(ImageError, match=r"big\.png is larger than 20 MB"):
        open_picture(path)
    assert time.process_time() - began < 1.0


def test_an_endless_stream_is_read_up_to_the_limit() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    with pytest.raises(ImageError, match="larger than 20 MB"):
        open_picture("/dev/zero")


def test_any_accepted_picture_can_be_stored_as_png_and_opened_again() -> None:
    assert STORED_PICTURE_LIMITS.max_pixels == Image.MAX_IMAGE_PIXELS
    assert STORED_PICTURE_LIMITS.max_bytes > 3 * STORED_PICTURE_LIMITS.max_pixels


def test_limits_are_configurable() -> None:
    data = encoded(Image.new("RGB", (100, 100)))
    with pytest.raises(ImageError, match=r"= 0\.01 megapixels; the limit is 0\.009999\."):
        open_picture(data, limits=ImageLimits(max_pixels=9_999))
    with pytest.raises(ImageError, match="larger than"):
        open_picture(data, limits=ImageLimits(max_bytes=len(data) - 1))
    limits = ImageLimits(max_bytes=len(data), max_pixels=10_000)
    assert open_picture(data, limits=limits).image.size == (100, 100)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((10_000, 6_000), "60 megapixels"),
        ((12_000, 10_000), "megapixels|far too many"),  # Pillow warns
        ((40_000, 40_000), "far too many pixels"),  # Pillow raises an error
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_detected_in_the_header(size: tuple[int, int], message: str) -> None:
    began = time.process_time()
    with pytest.raises(ImageError, match=rf"bomb\.png .*({message})"):
        open_picture(png_header(*size), name="bomb.png")
    assert time.process_time() - began < 1.0


def test_pillows_own_limit_applies_in_addition() -> None:
    with pytest.raises(ImageError):
        open_picture(png_header(40_000, 40_000), limits=ImageLimits(max_pixels=10**12))


def test_rejecting_a_decompression_bomb_takes_little_memory() -> None:
    """Decoding a PNG of 60 megapixels would take 180 MB."""
    code = (
        "import io, resource, sys; from PIL import Image\n"
        "from vqa_app.pictures.picture import open_picture; from vqa_app.errors import ImageError\n"
        "data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: open_picture(data)\n"
        "except ImageError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    pytest.importorskip("resource")
    bomb = encoded(Image.new("L", (10_000, 6_000)), compress_level=1)
    output = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True)
    assert int(output.stdout) < 20_000  # kB


def test_the_frames_of_a_large_gif_are_not_counted() -> None:
    data = encoded(two_colours("P"), "GIF")
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\0"
    many = data[:-1] + frame * 1_000_000 + b";"
    began = time.process_time()
    assert open_picture(many).changes == ("first frame of an animation",)
    assert time.process_time() - began < 1.0
