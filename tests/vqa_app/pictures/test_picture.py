"""Every kind of picture ends as upright opaque RGB or as an error that names the file.

Times are of this process alone: machines that run tests are shared.
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


def near(pixel: object, colour: tuple[int, int, int], slack: int = 12) -> bool:
    return bool(np.all(np.abs(np.subtract(pixel, colour)) <= slack))


def greys(data: bytes) -> list[int]:
    """The red values of the picture that these bytes become."""
    return [pixel[0] for pixel in open_picture(data).image.get_flattened_data()]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

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


# What comes in


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_listed_format_opens(kind: str) -> None:
    picture = open_picture(encoded(two_colours(), kind), name=f"a.{kind.lower()}")
    assert picture.image.mode == "RGB"
    assert picture.image.size == (8, 4)
    assert near(picture.image.getpixel((0, 0)), (255, 0, 0), 40)
    assert near(picture.image.getpixel((7, 3)), (0, 0, 255), 40)


def test_heic_opens_where_the_extra_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(two_colours().resize((64, 32))).save(buffer)
    picture = open_picture(buffer.getvalue(), name="phone.heic")
    assert picture.image.size == (64, 32)
    assert near(picture.image.getpixel((5, 5)), (255, 0, 0), 40)


def test_heic_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="phone.heic is a HEIC picture") as caught:
        open_picture(b"\0\0\0\x18ftypheic" + b"\0" * 100, name="phone.heic")
    assert "pip install pillow-heif" in caught.value.hint


def test_a_damaged_heic_is_called_damaged_where_the_extra_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(two_colours().resize((64, 32))).save(buffer)
    for data in (buffer.getvalue()[:60], b"\0\0\0\x18ftypheic" + b"\0" * 100):
        with pytest.raises(ImageError, match="phone.heic .*damaged") as caught:
            open_picture(data, name="phone.heic")
        assert "install" not in str(caught.value)


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
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


def test_an_image_that_the_caller_holds_is_not_changed() -> None:
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


def test_the_digest_covers_the_shape() -> None:
    assert open_picture(Image.new("RGB", (2, 3))) != open_picture(Image.new("RGB", (3, 2)))


def test_the_digest_is_that_of_the_whole_picture() -> None:
    image = tiny.picture(0, (1500, 1100)).image
    whole = hashlib.sha256(b"RGB 1500x1100\n" + image.tobytes()).hexdigest()
    assert open_picture(image).digest == whole


def test_a_blank_has_the_size_and_nothing_else() -> None:
    blank = blank_like(open_picture(two_colours()))
    assert blank.image.size == (8, 4)
    assert len(blank.image.getcolors()) == 1


# What normalising does


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


def test_a_rotation_is_told_clockwise() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = open_picture(encoded(two_colours(), "JPEG", exif=exif))
    assert picture.changes == ("rotated 90° by EXIF",)


def test_unreadable_exif_does_not_matter() -> None:
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
        pytest.fail("the fixture must say that white is zero")
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
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    picture = open_picture(encoded(image.convert(mode)))
    assert list(picture.image.get_flattened_data()) == [(255, 255, 255), (0, 0, 0)]
    assert picture.changes == ("transparency laid on white",)


def test_half_transparent_is_blended() -> None:
    picture = open_picture(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert near(picture.image.getpixel((0, 0)), (127, 127, 127), 1)


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    assert open_picture(encoded(two_colours("RGBA"))).changes == ()


def test_a_palette_with_a_transparent_entry() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    picture = open_picture(encoded(image, "PNG", transparency=0))
    assert list(picture.image.get_flattened_data()) == [(255, 255, 255), (200, 100, 50)]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_one_bit_pictures(kind: str) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 255)
    pixels = list(open_picture(encoded(image, kind)).image.get_flattened_data())
    assert pixels == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (20 * n, 0, 255 - 20 * n)) for n in range(12)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    picture = open_picture(data)
    assert near(picture.image.getpixel((4, 4)), (0, 0, 255), 20)
    assert picture.changes == ("first of 12 frames",)


def test_the_first_page_of_a_tiff() -> None:
    data = encoded(two_colours(), "TIFF", save_all=True, append_images=[Image.new("RGB", (8, 4))])
    picture = open_picture(data)
    assert near(picture.image.getpixel((0, 0)), (255, 0, 0))
    assert picture.changes == ("first of several pages",)


def test_metadata_is_let_go() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    picture = open_picture(encoded(two_colours(), "JPEG", exif=exif))
    assert picture.image.info == {}
    assert not picture.image.getexif()


# Odd sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
def test_odd_sizes_are_pictures_too(size: tuple[int, int]) -> None:
    assert open_picture(encoded(Image.new("L", size, 7))).image.size == size


# What is refused, each by name


def test_no_bytes() -> None:
    with pytest.raises(ImageError, match=r"a\.png is empty"):
        open_picture(b"", name="a.png")


def test_a_missing_file_a_folder_and_a_bad_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="There is no file .*gone.png"):
        open_picture(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder"):
        open_picture(tmp_path)
    with pytest.raises(ImageError, match="could not be read"):
        open_picture("a\0b.png")
    with pytest.raises(ImageError, match="could not be read"):
        open_picture("x" * 5000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused_by_name(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match=r"cut\.img"):
        open_picture(data[: int(len(data) * part)], name="cut.img")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_flipped_bytes_never_escape_as_another_error(kind: str) -> None:
    data = encoded(two_colours().resize((32, 16)), kind)
    dice = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(data)
        for place in dice.integers(0, len(data), 4):
            broken[place] = dice.integers(256)
        try:
            picture = open_picture(bytes(broken), name="broken.img")
        except ImageError as error:
            assert "broken.img" in str(error)
        else:
            assert picture.image.mode == "RGB"


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
def test_other_files_are_refused_with_what_they_seem_to_be(data: bytes, what: str) -> None:
    with pytest.raises(ImageError, match=rf"photo\.png .* seems to be {what}") as caught:
        open_picture(data, name="photo.png")
    assert "JPEG, PNG" in caught.value.hint


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "EPS", "PCX", "JPEG2000"])
def test_formats_that_pillow_knows_but_nobody_asked_for_are_refused(kind: str) -> None:
    with pytest.raises(ImageError, match=r"odd\.file"):
        open_picture(encoded(two_colours().resize((32, 32)), kind), name="odd.file")


def test_a_web_address_is_not_opened() -> None:
    with pytest.raises(ImageError, match="web address"):
        open_picture("https://example.com/cat.png")


@pytest.mark.parametrize("uri", ["data:image/png;base64,!!!", "data:image/png;base64", "data:,"])
def test_a_bad_data_uri_is_refused(uri: str) -> None:
    with pytest.raises(ImageError):
        open_picture(uri)


def test_a_file_opened_as_text_is_refused() -> None:
    with pytest.raises(ImageError, match="opened as text"):
        open_picture(io.StringIO("x"))  # type: ignore[arg-type]


def test_names_cannot_garble_a_terminal() -> None:
    with pytest.raises(ImageError) as caught:
        open_picture(b"", name="\x1b[31mred\n.png" + "x" * 500)
    assert "\x1b" not in str(caught.value)
    assert len(caught.value.problem) < 160


# Limits


def test_too_many_bytes_are_refused_before_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)  # sparse: takes no room
    began = time.process_time()
    with pytest.raises(ImageError, match=r"big\.png is larger than 20 MB"):
        open_picture(path)
    assert time.process_time() - began < 1.0


def test_an_endless_stream_is_read_up_to_the_limit() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    with pytest.raises(ImageError, match="larger than 20 MB"):
        open_picture("/dev/zero")


def test_what_any_limit_lets_in_can_be_opened_again_as_our_png() -> None:
    assert STORED_PICTURE_LIMITS.max_pixels == Image.MAX_IMAGE_PIXELS
    assert STORED_PICTURE_LIMITS.max_bytes > 3 * STORED_PICTURE_LIMITS.max_pixels


def test_the_limits_are_settings() -> None:
    data = encoded(Image.new("RGB", (100, 100)))
    with pytest.raises(ImageError, match="0.0 megapixels"):
        open_picture(data, limits=ImageLimits(max_pixels=9_999))
    with pytest.raises(ImageError, match="larger than"):
        open_picture(data, limits=ImageLimits(max_bytes=len(data) - 1))
    limits = ImageLimits(max_bytes=len(data), max_pixels=10_000)
    assert open_picture(data, limits=limits).image.size == (100, 100)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((10_000, 6_000), "60.0 megapixels"),
        ((12_000, 10_000), "megapixels|far too many"),  # Pillow warns
        ((40_000, 40_000), "far too many pixels"),  # Pillow refuses
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_from_the_header(size: tuple[int, int], said: str) -> None:
    began = time.process_time()
    with pytest.raises(ImageError, match=rf"bomb\.png .*({said})"):
        open_picture(png_header(*size), name="bomb.png")
    assert time.process_time() - began < 1.0


def test_pillows_guard_holds_above_a_generous_limit() -> None:
    with pytest.raises(ImageError):
        open_picture(png_header(40_000, 40_000), limits=ImageLimits(max_pixels=10**12))


def test_refusing_a_bomb_takes_no_memory() -> None:
    """A 60 megapixel PNG would take 180 MB; refusing it takes next to nothing."""
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


def test_a_gif_of_a_million_frames_is_not_walked() -> None:
    data = encoded(two_colours("P"), "GIF")
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\0"
    many = data[:-1] + frame * 1_000_000 + b";"
    began = time.process_time()
    assert open_picture(many).changes == ("first frame of an animation",)
    assert time.process_time() - began < 1.0
