"""Draw SVG drawings in this process: their size, fonts, and what is left out of them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.documents import svg
from vqa_app.pictures.document_worker import draw_svg

WHITE, RED = (255, 255, 255), (255, 0, 0)


def drawn(data: bytes, pixels: int = 50_000_000) -> tuple[dict[str, Any], Image.Image]:
    """Return what the worker says of a drawing, and the picture."""
    found, parts = draw_svg(data, {"shortest": 1024, "longest": 2048, "pixels": pixels})
    return found, Image.frombytes("RGB", found["sizes"][0], parts[0])


def colours(data: bytes) -> set:
    return {colour for _, colour in drawn(data)[1].getcolors(1 << 24) or ()}


def png_uri() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_a_drawing_is_enlarged_on_white() -> None:
    image = drawn(svg('<rect width="20" height="20" fill="#f00"/>'))[1]
    assert image.size == (1024, 512)
    assert image.getpixel((256, 256)) == RED
    assert image.getpixel((800, 256)) == WHITE


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ('viewBox="0 0 24 24"', (1024, 1024)),
        ('viewBox="0 0 24 12" width="100%" height="100%"', (1024, 512)),
        ('viewBox="0,0,10,20" width="2000"', (1024, 2048)),
        ('width="5000" height="50"', (2048, 20)),
        ('width="1500px" height="1200px"', (1500, 1200)),
        ('width="1in" height="2in"', (512, 1024)),
        ('width="1e9" height="1e9"', (2048, 2048)),
        ('viewBox="0 0 1e9 1"', (2048, 1)),
    ],
)
def test_the_size_follows_what_a_drawing_asks_for(attributes: str, size: tuple[int, int]) -> None:
    assert drawn(svg('<rect width="9" height="9"/>', attributes))[1].size == size


def test_a_drawing_obeys_the_limit_of_pixels() -> None:
    width, height = drawn(svg(), pixels=10_000)[1].size
    assert 9_000 < width * height <= 10_000


def test_a_drawing_without_a_size_gets_that_of_its_content() -> None:
    assert (0, 0, 255) in colours(svg('<rect width="30" height="20" fill="#00f"/>', ""))


def test_text_is_drawn_where_its_font_is_missing() -> None:
    assert (0, 0, 0) in colours(svg('<text x="5" y="15" font-family="No Such Font">Hi</text>'))


@pytest.mark.parametrize(
    "reference",
    ["{file}", "file://{file}", "../..{file}", " {file}", "data:image/svg+xml;base64,{svg}"],
)
def test_no_file_of_this_machine_is_read(reference: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (20, 20), "red").save(secret)
    nested = svg(f'<image href="{secret}" width="20" height="20"/>')
    address = reference.format(file=secret, svg=base64.b64encode(nested).decode())
    spy = svg(
        f'<image href="{address}" width="20" height="20"/>'
        f'<image xlink:href="{address}" width="20" height="20"/>'
    )
    assert colours(spy) == {WHITE}
    assert drawn(spy)[0]["left_out"] == 2


def test_an_external_entity_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a" * 20)
    before = f'<!DOCTYPE svg [<!ENTITY x SYSTEM "file://{tmp_path}/secret.txt">]>'
    data = svg('<text y="15">&x;</text>', before=before)
    assert draw_svg(data, {})[0] == {"error": "damaged"}


def test_pictures_inside_a_drawing_are_drawn() -> None:
    data = svg(f'<image href="{png_uri()}" width="20" height="20"/>')
    assert RED in colours(data)
    assert drawn(data)[0]["left_out"] == 0


def test_shapes_that_are_used_again_are_drawn() -> None:
    rect = '<rect id="r" width="5" height="5" fill="#f00"/>'
    assert (
        drawn(svg(f'<defs>{rect}</defs><use xlink:href="#r" x="20"/>'))[1].getpixel((550, 50))
        == RED
    )


def test_links_are_nothing_that_is_left_out() -> None:
    body = '<a href="https://example.com/"><rect width="40" height="20" fill="#f00"/></a>'
    assert drawn(svg(body))[0]["left_out"] == 0
    assert colours(svg(body)) == {RED}


def test_scripts_are_left_out() -> None:
    assert drawn(svg("<g><script>for(;;){}</script></g><script/>"))[0]["left_out"] == 2


def test_internal_entities_are_filled_in() -> None:
    """As in files of older drawing programs."""
    before = '<!DOCTYPE svg [<!ENTITY red "#ff0000">]>'
    assert colours(svg('<rect width="40" height="20" fill="&red;"/>', before=before)) == {RED}


@pytest.mark.parametrize("data", [svg()[:-5], b"<svg>&nothing;</svg>", b"<svg \xff></svg>"])
def test_a_damaged_drawing_is_recognised(data: bytes) -> None:
    assert draw_svg(data, {})[0] == {"error": "damaged"}


def test_another_xml_file_is_no_drawing() -> None:
    assert draw_svg(b"<note><svg/></note>", {})[0] == {"error": "no drawing"}
