"""Draw pages of PDF documents and SVG drawings, hostile ones included."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.documents import pdf, svg
from vqa_app.errors import ImageError
from vqa_app.pictures import documents
from vqa_app.pictures.documents import is_document, open_document, preview_pages
from vqa_app.pictures.picture import ImageLimits, open_picture


def about(colour: tuple[int, int, int], wanted: tuple[int, int, int]) -> bool:
    return all(abs(a - b) < 12 for a, b in zip(colour, wanted, strict=True))


# PDF


def test_a_chosen_page_of_a_pdf_is_drawn_and_says_which_it_is() -> None:
    picture = open_document(pdf(), "plan.pdf", page=3)
    assert picture.image.size == (round(200 * 200 / 72), round(100 * 200 / 72))
    assert about(picture.image.getpixel((50, 50)), (0, 0, 255))
    assert picture.changes == ("page 3 of 3, drawn at 200 dpi",)
    assert picture.name == "plan.pdf, page 3"


def test_without_a_page_the_first_one_is_drawn() -> None:
    picture = open_document(pdf(("red",)), "plan.pdf")
    assert about(picture.image.getpixel((50, 50)), (255, 0, 0))
    assert picture.name == "plan.pdf"


@pytest.mark.parametrize("page", [0, 4])
def test_a_page_that_does_not_exist_is_named(page: int) -> None:
    with pytest.raises(ImageError, match=f"plan.pdf has no page {page}"):
        open_document(pdf(), "plan.pdf", page=page)


def test_a_poster_gets_a_lower_resolution_and_says_so() -> None:
    picture = open_document(pdf(("red",), (5000, 500)), "poster.pdf")
    assert picture.image.width == documents.LONGEST_PAGE
    assert picture.changes == ("page 1 of 1, drawn at 43 dpi",)


def test_a_page_obeys_the_limit_of_pixels() -> None:
    picture = open_document(pdf(("red",)), "plan.pdf", limits=ImageLimits(max_pixels=10_000))
    assert picture.image.width * picture.image.height <= 10_200


def test_previews_are_small_and_come_in_order() -> None:
    found = preview_pages(pdf(), "plan.pdf", first=2)
    assert (found.pages, found.first, len(found.images)) == (3, 2, 2)
    assert all(image and max(image.size) == documents.PREVIEW_LONGEST for image in found.images)
    assert about(found.images[0].getpixel((9, 9)), (0, 255, 0))


def test_a_preview_has_a_limited_number_of_pages() -> None:
    found = preview_pages(pdf(("red",) * 30, (20, 20)), "plan.pdf")
    assert (found.pages, len(found.images)) == (30, documents.PREVIEW_PAGES)


def test_previews_stop_when_pages_are_slow(monkeypatch) -> None:
    monkeypatch.setattr(documents, "PREVIEW_SECONDS", 0.0)
    assert len(preview_pages(pdf(), "plan.pdf").images) == 1


def test_a_page_far_behind_the_end_has_no_preview() -> None:
    assert preview_pages(pdf(), "plan.pdf", first=99).images == ()


@pytest.mark.parametrize("data", [b"%PDF-1.7 nothing", pdf()[:200], b"%PDF-1.4\n" + b"\0" * 999])
def test_a_damaged_pdf_is_named(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"plan\.pdf is damaged or incomplete"):
        open_document(data, "plan.pdf")


def test_a_pdf_behind_a_password_says_so() -> None:
    locked = pdf().replace(
        b"trailer\n<<",
        b"trailer\n<< /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <" + b"41" * 32 + b"> /U <"
        + b"42" * 32 + b"> >> /ID [<00> <00>]",
    )  # fmt: skip
    with pytest.raises(ImageError, match="protected by a password"):
        open_document(locked, "plan.pdf")


def test_a_file_that_is_too_large_is_not_opened() -> None:
    with pytest.raises(ImageError, match="larger than 1 MB"):
        open_document(pdf() + b" " * 2**20, "plan.pdf", limits=ImageLimits(max_bytes=2**20))
    with pytest.raises(ImageError, match="larger than"):
        preview_pages(pdf(), "plan.pdf", limits=ImageLimits(max_bytes=1000))


# SVG


def test_an_svg_is_drawn_and_says_how() -> None:
    picture = open_document(svg('<script/><rect width="9" height="9"/>'), "icon.svg")
    assert picture.image.size == (1024, 512)
    assert picture.changes == (
        "SVG drawn at 1,024 × 512 pixels",
        "1 reference or script left out",
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (svg()[:-5], r"icon\.svg is damaged or incomplete"),
        (b"<note><svg></svg></note>", "is an XML file, but not an SVG drawing"),
    ],
)
def test_a_file_that_is_no_svg_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        open_document(data, "icon.svg")


def nested(depth: int) -> bytes:
    return svg("<g>" * depth + '<rect width="9" height="9"/>' + "</g>" * depth)


def laughs() -> bytes:
    entities = "".join(
        f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10)
    )  # a thousand million
    return svg("<text>&l9;</text>", before=f'<!DOCTYPE svg [<!ENTITY l0 "ha">{entities}]>')


def uses(levels: int) -> bytes:
    """Return a drawing in which every level shows the one below it ten times."""
    groups = '<g id="g0"><rect width="9" height="9"/></g>' + "".join(
        f'<g id="g{n}">{f"""<use href="#g{n - 1}" x="1"/>""" * 10}</g>' for n in range(1, levels)
    )
    return svg(f'<defs>{groups}</defs><use href="#g{levels - 1}"/>')


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [nested(200_000), laughs(), uses(40)],
    ids=["deep", "laughs", "uses"],
)
def test_a_hostile_svg_ends_in_time(data: bytes, monkeypatch) -> None:
    monkeypatch.setattr(documents, "SECONDS", 2)
    start = time.monotonic()
    with contextlib.suppress(ImageError):
        open_document(data, "bomb.svg")
    assert time.monotonic() - start < 20


def test_a_document_that_takes_too_long_is_ended(tmp_path, monkeypatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(documents, "_WORKER", worker)
    monkeypatch.setattr(documents, "SECONDS", 1)
    with pytest.raises(ImageError, match=r"icon\.svg took longer than 1 seconds"):
        open_document(svg(), "icon.svg")


def test_a_document_that_needs_too_much_memory_is_ended() -> None:
    with pytest.raises(ImageError, match="too much memory"):
        open_document(svg("", 'width="100%" height="1e9"'), "tall.svg")


# Telling documents from pictures


@pytest.mark.parametrize(
    "data",
    [
        pdf(),
        b"\r\n" + pdf(),
        svg(),
        svg(before="<?xml version='1.0'?>\n<!-- " + "x" * 3000 + " -->"),
        b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'/>",
    ],
)
def test_documents_are_recognised_by_their_content(data: bytes) -> None:
    assert is_document(data)


@pytest.mark.parametrize("data", [b"<!doctype html><html><svg></svg></html>", b"text <svg>", b""])
def test_other_files_are_no_documents(data: bytes) -> None:
    assert not is_document(data)


@pytest.mark.parametrize("data", [pdf(), svg()])
def test_everything_else_goes_on_refusing_documents(data: bytes) -> None:
    with pytest.raises(ImageError, match="Expected a picture"):
        open_picture(data)
