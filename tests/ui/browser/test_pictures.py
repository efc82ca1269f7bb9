"""Regions, rotations, pages of documents and pictures by address, in the browser."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image

from tests.documents import pdf, svg
from tests.ui.browser.conftest import expect
from tests.ui.browser.test_page import serious_violations
from vqa_app.engine.protocol import Answer


@pytest.fixture
def halves(tmp_path):
    """Return a picture of 400 × 200 pixels, red on the left and blue on the right."""
    image = Image.new("RGB", (400, 200), "red")
    image.paste("blue", (200, 0, 400, 200))
    image.save(tmp_path / "halves.png")
    return tmp_path / "halves.png"


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.pdf").write_bytes(pdf(size=(60, 90)))
    return tmp_path / "plan.pdf"


def open_tray(visitor, place: int = 0) -> None:
    visitor.page.locator("#tray .thumb").nth(place).click()
    visitor.page.locator(".picture-stage img").evaluate("(image) => image.decode()")


def asked_pictures(visitor, site) -> list[Image.Image]:
    """Return the pictures of the last question, as they are stored."""
    sources = visitor.page.locator("article.turn").last.locator(".question img").all()
    addresses = [source.get_attribute("src").partition("?")[0] for source in sources]
    found = [visitor.context.request.get(site.address + address) for address in addresses]
    return [Image.open(io.BytesIO(answer.body())) for answer in found]


def test_a_region_is_marked_with_the_mouse_and_asked_about(visit, site, halves):
    visitor = visit()
    page = visitor.page
    visitor.attach(halves)
    open_tray(visitor)
    box = page.locator(".picture-stage img").bounding_box()
    x, y, width, height = box["x"], box["y"], box["width"], box["height"]
    scale = min(width / 400, height / 200)
    middle, top = x + width / 2, y + (height - 200 * scale) / 2
    page.mouse.move(middle + 100 * scale, top + 50 * scale)
    page.mouse.down()
    page.mouse.move(middle + 190 * scale, top + 150 * scale, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Ask about this region").click()
    expect(page.locator("#tray .thumb")).to_have_count(1)
    visitor.ask("Which colour is it?")
    (asked,) = asked_pictures(visitor, site)
    assert abs(asked.width - 90) <= 3
    assert abs(asked.height - 100) <= 3
    assert asked.getcolors() == [(asked.width * asked.height, (0, 0, 255))]
    expect(page.get_by_text("Asked about this region of halves.png.")).to_be_visible()


def test_a_region_is_marked_with_the_keyboard(visit, site, halves):
    visitor = visit()
    page = visitor.page
    visitor.attach(halves)
    page.locator("#tray .thumb").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Mark a region").press("Enter")
    region = page.get_by_role("application", name="Region of the picture")
    expect(region).to_be_focused()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    expect(
        page.get_by_text("200 × 104 pixels, 200 from the left, 50 from the top.")
    ).to_be_visible()
    page.keyboard.press("Escape")
    expect(region).to_be_hidden()
    expect(page.locator("#sheet")).to_be_visible()
    page.get_by_role("button", name="Mark a region").press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    visitor.ask("Which colours are there?")
    (asked,) = asked_pictures(visitor, site)
    assert asked.size == (200, 100)


def test_the_whole_picture_goes_along_where_the_person_wants_it(visit, site, halves):
    visitor = visit()
    page = visitor.page
    visitor.attach(halves)
    open_tray(visitor)
    page.get_by_role("button", name="Mark a region").click()
    page.get_by_label("Give the model the whole picture, too").check()
    page.get_by_role("button", name="Ask about this region").click()
    expect(page.locator("#tray .thumb")).to_have_count(2)
    visitor.ask("What is there?")
    assert [one.size for one in asked_pictures(visitor, site)] == [(400, 200), (200, 100)]
    expect(page.get_by_text("Picture 2 is a region of halves.png.")).to_be_visible()


def test_a_region_of_an_earlier_picture_is_asked_about(visit, site, halves):
    visitor = visit()
    page = visitor.page
    visitor.attach(halves)
    visitor.ask("What is it?")
    page.locator("article.turn .thumb").click()
    page.get_by_role("button", name="Mark a region").click()
    page.get_by_role("button", name="Ask about this region").click()
    open_tray(visitor)
    expect(page.get_by_text("A region of halves.png")).to_be_visible()
    page.get_by_role("button", name="Ask about the whole picture").click()
    visitor.ask("And now?")
    assert [one.size for one in asked_pictures(visitor, site)] == [(400, 200)]


def test_a_region_is_marked_with_a_finger(visit, halves):
    visitor = visit(viewport={"width": 320, "height": 640}, has_touch=True)
    page = visitor.page
    visitor.attach(halves)
    open_tray(visitor)
    page.get_by_role("button", name="Mark a region").tap()
    assert page.locator(".picture-stage").bounding_box()["height"] > 150, "expected room to mark"
    handle = page.locator(".handle.se").bounding_box()
    at = {"clientX": handle["x"] + 14, "clientY": handle["y"] + 14}
    touch = {"pointerId": 7, "pointerType": "touch", "isPrimary": True, "bubbles": True}
    script = """(node, [kind, event]) => {
      node.closest('.picture-stage').setPointerCapture = () => {};
      node.dispatchEvent(new PointerEvent(kind, event));
    }"""
    for kind, dx in (("pointerdown", 0), ("pointermove", 200), ("pointerup", 200)):
        event = {**touch, **at, "clientX": at["clientX"] + dx}
        page.locator(".handle.se").evaluate(script, [kind, event])
    expect(page.get_by_text(re.compile(r"300 × (9\d|10\d) pixels, 100 from"))).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_an_attached_picture_is_rotated(visit, site, halves):
    visitor = visit()
    page = visitor.page
    visitor.attach(halves)
    open_tray(visitor)
    page.get_by_role("button", name="Rotate to the right").click()
    expect(page.get_by_text("200 × 400 pixels. Changed: rotated 90° clockwise.")).to_be_visible()
    expect(page.get_by_role("button", name="Rotate to the right")).to_be_focused()
    page.keyboard.press("Escape")
    visitor.ask("What is it?")
    (asked,) = asked_pictures(visitor, site)
    assert asked.getpixel((5, 5)) == (255, 0, 0)
    assert asked.size == (200, 400)


def test_pages_of_a_pdf_are_chosen(visit, site, plan):
    visitor = visit()
    page = visitor.page
    page.set_input_files("#files", str(plan))
    expect(page.get_by_text("3 pages. Choose up to 8.")).to_be_visible()
    add = page.locator(".pdf-actions .primary")
    expect(add).to_be_disabled()
    page.get_by_label("Page 3").check()
    page.get_by_label("Page 1").check()
    expect(add).to_have_text("Add 2 pages")
    add.click()
    page.locator("#tray .thumb img").nth(1).wait_for()
    visitor.ask("What is on these?")
    first, last = (one.getpixel((9, 9)) for one in asked_pictures(visitor, site))
    assert first[0] > 240 > 12 > first[2]
    assert last[2] > 240 > 12 > last[0]


def test_no_page_is_added_when_the_choice_is_cancelled(visit, plan, pictures):
    visitor = visit()
    page = visitor.page
    page.set_input_files("#files", str(plan))
    page.get_by_label("Page 1").check()
    page.keyboard.press("Escape")
    visitor.attach(pictures[0])
    expect(page.locator("#tray .thumb")).to_have_count(1)


def test_no_more_pages_can_be_chosen_than_fit(visit, tmp_path):
    (tmp_path / "long.pdf").write_bytes(pdf(("red",) * 30, (20, 20)))
    page = visit().page
    page.set_input_files("#files", str(tmp_path / "long.pdf"))
    page.get_by_role("button", name="More pages").click()
    expect(page.get_by_label("Page 25")).to_be_focused()
    expect(page.get_by_role("button", name="More pages")).to_be_hidden()
    for number in range(1, 9):
        page.get_by_label(f"Page {number}", exact=True).check()
    expect(page.get_by_label("Page 30")).to_be_disabled()


def test_a_pdf_of_one_page_and_an_svg_need_no_choice(visit, tmp_path):
    (tmp_path / "one.pdf").write_bytes(pdf(("red",)))
    (tmp_path / "icon.svg").write_bytes(
        svg('<script>alert(1)</script><rect width="9" height="9"/>')
    )
    visitor = visit()
    visitor.attach(tmp_path / "one.pdf", tmp_path / "icon.svg")
    lost = visitor.page.locator("#estimate")
    expect(lost).to_contain_text("icon.svg: 1 reference or script left out")
    open_tray(visitor)
    expect(visitor.page.get_by_text("SVG drawn at 1,024 × 512 pixels, 1 reference")).to_be_visible()
    visitor.page.keyboard.press("Escape")
    visitor.page.get_by_label("Remove picture 1").click()
    expect(lost).not_to_contain_text("left out")


def test_a_damaged_document_is_named(visit, tmp_path):
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 nothing")
    page = visit().page
    page.set_input_files("#files", str(tmp_path / "bad.pdf"))
    expect(page.get_by_text("bad.pdf is damaged or incomplete.")).to_be_visible()
    expect(page.locator("#tray li")).to_have_count(0)


def test_a_picture_is_added_by_its_address_where_that_is_allowed(visit, site, monkeypatch, halves):
    hidden = visit()
    expect(hidden.page.locator("#by-address")).to_be_hidden()
    service = site.application.service
    monkeypatch.setattr(service, "picture_hosts", frozenset({"pictures.example.com"}))
    data = halves.read_bytes()
    monkeypatch.setattr("ui.chat.service.fetch_for_visitor", lambda *_: (data, "halves.png"))
    page = visit().page
    page.get_by_role("button", name="Add a picture by its address").click()
    page.keyboard.type("https://pictures.example.com/halves.png")
    page.keyboard.press("Enter")
    page.locator("#tray .thumb img").wait_for()
    expect(page.locator("#question")).to_be_focused()


def test_the_new_sheets_are_accessible(visit, halves, plan):
    visitor = visit(viewport={"width": 320, "height": 640})
    page = visitor.page
    visitor.attach(halves)
    open_tray(visitor)
    page.get_by_role("button", name="Mark a region").click()
    assert not serious_violations(page)
    page.keyboard.press("Enter")
    page.set_input_files("#files", str(plan))
    page.get_by_label("Page 3").wait_for()
    assert not serious_violations(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


# Before asking


def test_the_cost_of_a_question_stands_below_it_before_it_is_asked(visit, site, pictures):
    visitor = visit()
    page = visitor.page
    expect(page.locator("#fine")).to_have_text("Answers can be wrong. Check for yourself.")
    visitor.attach(pictures[0])
    page.fill("#question", "What is it?")
    expect(page.locator("#fine")).to_contain_text("19 tokens, 16 for pictures.")
    speed = Answer("red", "stop", 20, 16, 0, 1, 0.5, 0.0, 1.0)
    site.application.service.speeds.add("fake", speed)
    page.fill("#question", "What is that?")
    expect(page.locator("#fine")).to_contain_text("The first word comes after about 1 second.")
    page.fill("#question", "")
    page.get_by_role("button", name="Remove picture 1").click()
    expect(page.locator("#fine")).to_have_text("Answers can be wrong. Check for yourself.")


def test_a_picture_that_reaches_the_model_smaller_is_never_silently_so(visit, halves):
    visitor = visit()
    visitor.attach(halves)
    note = "The model gets halves.png in 32 × 32 pixels; it has 400 × 200."
    expect(visitor.page.locator("#estimate")).to_contain_text(note)


# Drawing


def draw(page, *, start=(0.3, 0.3), end=(0.6, 0.6)) -> None:
    box = page.locator(".pad").bounding_box()
    (x, y), (to_x, to_y) = (
        (box["x"] + share[0] * box["width"], box["y"] + share[1] * box["height"])
        for share in (start, end)
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=3)
    page.mouse.up()


def drawn_colours(page) -> set:
    """Return the colours on the pad that cover more than the soft edges of a line."""
    script = """(pad) => {
      const counts = {};
      const { data } = pad.getContext("2d").getImageData(0, 0, pad.width, pad.height);
      for (let at = 0; at < data.length; at += 4) {
        const key = [data[at], data[at + 1], data[at + 2]].join();
        counts[key] = (counts[key] || 0) + 1;
      }
      return Object.entries(counts).filter(([, count]) => count > 300).map(([key]) => key);
    }"""
    return set(page.locator(".pad").evaluate(script))


WHITE = "255,255,255"


def test_a_blank_sheet_is_not_sent(visit):
    page = visit().page
    page.get_by_role("button", name="Draw something").click()
    page.get_by_role("button", name="Ask about it").click()
    expect(page.get_by_text("The sheet is blank. Draw something first.")).to_be_visible()
    draw(page)
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Ask about it").click()
    expect(page.locator(".pad")).to_be_visible()
    expect(page.locator("#tray li")).to_have_count(0)


def test_a_drawing_that_the_server_refuses_is_kept(visit):
    page = visit().page
    page.route(
        "**/vqa/pictures?*", lambda route: route.fulfill(status=507, json={"error": "Full."})
    )
    page.get_by_role("button", name="Draw something").click()
    draw(page)
    page.get_by_role("button", name="Ask about it").click()
    expect(page.locator(".toast.error")).to_have_text("Full.")
    page.get_by_role("button", name="Draw something").click()
    assert len(drawn_colours(page)) > 1
    page.unroute_all()
    page.get_by_role("button", name="Ask about it").click()
    page.locator("#tray .thumb img").wait_for()


def test_lines_text_and_any_colour_are_drawn_and_erased(visit):
    page = visit().page
    page.get_by_role("button", name="Draw something").click()
    page.get_by_label("Line").check(force=True)
    page.get_by_label("Any colour").fill("#12ab34")
    draw(page)
    assert drawn_colours(page) == {WHITE, "18,171,52"}
    page.get_by_label("Eraser").check(force=True)
    for shift in (-0.05, 0, 0.05):
        draw(page, start=(0.25 + shift, 0.25 - shift), end=(0.65 + shift, 0.65 - shift))
    assert drawn_colours(page) == {WHITE}
    page.get_by_label("Text", exact=True).check(force=True)
    words = page.get_by_label("Words to place with a tap")
    expect(words).to_be_focused()
    page.keyboard.type("HELLO")
    page.get_by_label("Red").check(force=True)
    words.press("Enter")
    page.keyboard.press("Enter")
    assert "220,38,38" in drawn_colours(page)
    page.get_by_role("button", name="Ask about it").click()
    page.locator("#tray .thumb img").wait_for()


# Without scripts, and shared as a link


def test_without_scripts_the_page_says_what_it_needs(visit):
    """Chromium shows it where scripts are off; Playwright's switch for that comes too late."""
    assert "This page needs JavaScript." in visit().page.locator("noscript").text_content()


def test_a_shared_link_is_described_by_the_page_itself(visit):
    page = visit().page
    title = page.locator("meta[property='og:title']")
    expect(title).to_have_attribute("content", "Look & Ask")
    described = page.locator("meta[property='og:description']")
    assert "Ask about pictures" in described.get_attribute("content")
    assert "gradio" not in page.locator("head").inner_html().lower()
