"""Layout of the page: aspect ratios, edges, overlaps."""

from __future__ import annotations

import json
import re
from io import BytesIO

import pytest
from PIL import Image

from tests.ui.browser.conftest import expect, wait_for
from tests.ui.browser.test_page import overflow
from tests.waiting import until

LOADED = "[...document.querySelectorAll('.overlay img')].every((image) => image.naturalWidth)"
PLACED = (
    "[...document.querySelectorAll('.overlay')]"
    ".every((node) => node.style.getPropertyValue('--ratio'))"
)
PHONE = {"viewport": {"width": 375, "height": 720}, "has_touch": True, "is_mobile": True}


def picture(folder, width: int, height: int, colour="teal"):
    file = folder / f"{width}x{height}.png"
    Image.new("RGB", (width, height), colour).save(file)
    return file


def box(locator) -> dict[str, float]:
    expect(locator).to_be_visible()
    found: list[dict[str, float]] = []
    until(lambda: found.extend(filter(None, [locator.bounding_box()])) or found)  # may be redrawn
    return found[0]


LONG = "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz"
"""A word that is longer than a small phone is wide."""
SMALL_PHONE = {**PHONE, "viewport": {"width": 320, "height": 640}}
OUTSIDE = """() => [...document.querySelectorAll("#vqa *")].filter((node) => {
  const { left, right, width, height } = node.getBoundingClientRect();
  const scrolled = node.closest("#tray, .answer .table, pre, #side, .skip");
  return width && height && node.checkVisibility({ visibilityProperty: true }) && !scrolled
    && (left < -1 || right > innerWidth + 1);
}).map((node) => node.outerHTML.slice(0, 80))"""
"""What is wholly or partly beyond an edge of the screen, besides what scrolls by itself."""
LINES = """(nodes) => nodes.map((node) => {
  const range = document.createRange();
  range.selectNodeContents(node);
  return new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size;
})"""
"""In how many lines the text of each element is written."""


def open_settings(visitor, pictures):
    visitor.page.click("[data-do=settings]")
    visitor.page.wait_for_selector("#set-language")


def open_drawing(visitor, pictures):
    page = visitor.page
    page.click("[data-do=draw]")
    for tools in page.locator("#sheet .choices").all():
        tops = tools.locator("label").evaluate_all(
            "(all) => all.map((one) => one.getBoundingClientRect().top)"
        )
        assert len(set(tops)) == 1, "expected the tools in one row"


def open_download(visitor, pictures):
    page = visitor.page
    described = {
        "key": "big", "label": "Big", "name": f"owner/{'a-long-name-' * 6}", "here": False,
        "size": 1.8e9, "disk": 5e10, "memory": 3.2e9, "memory_free": 2e9,
        "licence": ["Apache 2.0"], "note": ["Photographs."], "possible": True,
        "figures": ["RealWorldQA 58.4, DocVQA 91.2"], "figures_source": ["its model card"],
        "problems": [{"key": "download.noMemory", "values": {}}],
    }  # fmt: skip
    reply = json.dumps({"model_described": described}) + "\n"
    page.route("**/vqa/requests/models", lambda route: route.fulfill(body=reply))
    page.evaluate("vqa.withModel({ here: false, key: 'big', label: 'Big' }, () => {})")
    facts = page.locator(".facts-list")
    assert box(facts.locator("dd").first)["width"] > 0.9 * box(facts)["width"]


def open_teach(visitor, pictures):
    page = visitor.page
    visitor.attach(*pictures)
    visitor.ask(f"What is a {LONG}?")
    page.get_by_label("This is wrong").click()
    field = page.locator(".correction input")
    assert box(field)["width"] > 200, "expected room to write in"
    field.fill("A red square beside a blue one, as far as one can see")
    field.press("Enter")
    page.locator(".corrected").wait_for()
    page.evaluate("vqa.show('teach')")
    row = page.locator("#taught > li").first
    assert box(row.locator(".thumb").first)["x"] == pytest.approx(box(row)["x"], abs=2)
    assert page.evaluate(OUTSIDE) == []
    page.locator("#taught .row-tools button").first.click()


def open_looked(visitor, pictures):
    page = visitor.page
    visitor.attach(*pictures)
    visitor.ask(f"What is a {LONG}?")
    page.locator(".foot .look").click()
    page.locator("#sheet .words").wait_for()


def open_compare(visitor, pictures):
    page = visitor.page
    page.evaluate("vqa.show('compare')")
    page.set_input_files("#compare-form input[type=file]", list(map(str, pictures)))
    page.locator(".compare-picture img").nth(1).wait_for()
    page.fill("#compare-form input[aria-label=Question]", "What is it?")
    page.click("#compare-form [type=submit]")
    page.locator("#compared .facts").nth(1).wait_for()
    padding = page.get_by_label("Model 1").evaluate("(node) => getComputedStyle(node).paddingRight")
    assert padding == "34px", "expected room for the arrow"


def open_trained(visitor, pictures):
    page = visitor.page
    row = f"{{question: 'What is a {LONG}?', pictures: [], before: 'a cat', after: 'a hat'}}"
    part = f"{{rows: [{{...{row}, right: 'a hat', scores: [0, 1]}}], of: 1, before: 0, after: 1}}"
    follows = "{question: 'What is it?', answer: 'a hat'}"
    near = f"{{rows: [{row}, {{...{row}, follows: {follows}}}]}}"
    job = JOB.replace("stopped", "done").replace(
        "comparison: null", f"comparison: {{taught: {part}, neighbours: {near}, world: {part}}}"
    )
    status = f"{{base: 'Fake', bases: [], sources: [], busy: false, job: {job}}}"
    line = page.evaluate(f"() => JSON.stringify({{training: {status}}}) + '\\n'")
    page.route("**/vqa/requests/train", lambda route: route.fulfill(body=line))
    page.evaluate("vqa.show('train')")
    headings = page.locator(".outcome thead th + th")
    expect(headings).to_have_text(["Before", "After"])
    assert headings.evaluate_all(LINES) == [1, 1]
    near = page.locator(".pairs").nth(1)
    expect(near).to_contain_text("after “What is it?” – a hat")
    expect(near.locator(".mark")).to_have_count(0)


def open_comparison(visitor, pictures):
    page = visitor.page
    job = JOB.replace("stopped", "comparing").replace("'hats'", "'hats-and-scarves'")
    training = f"{{base: 'Fake', bases: [], sources: [], busy: false, job: {job}}}"
    reply = page.evaluate(f"() => JSON.stringify({{training: {training}}})") + "\n"
    page.route("**/vqa/requests/train", lambda route: route.fulfill(body=reply))
    page.evaluate("vqa.show('train')")
    button = page.locator(".job-head button")
    button.wait_for()
    longest = "Überspringe den Vergleich"  # as long as in other languages
    page.locator(".job-head .badge").evaluate("(node, words) => node.textContent = words", longest)
    button.evaluate("(node, words) => node.textContent = words", longest)
    assert page.locator(".job-head .badge, .job-head button").evaluate_all(LINES) == [1, 1]


@pytest.mark.parametrize(
    "show",
    [
        open_settings,
        open_drawing,
        open_download,
        open_teach,
        open_looked,
        open_compare,
        open_trained,
        open_comparison,
    ],
    ids=lambda show: show.__name__,
)
def test_nothing_is_off_the_screen_of_a_small_phone(visit, pictures, show):
    visitor = visit(**SMALL_PHONE)
    show(visitor, pictures)
    assert visitor.page.evaluate(OUTSIDE) == []
    assert overflow(visitor.page) <= 0


@pytest.mark.parametrize("options", [{}, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("sizes", [[(90, 120)], [(100, 300), (320, 240)], [(600, 60)]], ids=str)
def test_attention_map_keeps_the_aspect_ratio(visit, tmp_path, sizes, options):
    visitor = visit(**options)
    page = visitor.page
    visitor.attach(*[picture(tmp_path, *size) for size in sizes])
    visitor.ask("What is it?")
    page.locator(".foot .look").click()
    overlays = page.locator(".overlay")
    expect(overlays).to_have_count(len(sizes))
    wait_for(page, LOADED)
    wait_for(page, PLACED)
    for position, (width, height) in enumerate(sizes):
        overlay = overlays.nth(position)
        shown, covered = box(overlay.locator("img")), box(overlay.locator("canvas"))
        assert shown["width"] / shown["height"] == pytest.approx(width / height, rel=0.02)
        assert covered == pytest.approx(shown, abs=1)
        assert min(shown["width"], shown["height"]) > 25


def test_white_picture_has_an_edge(visit, tmp_path):
    visitor = visit()
    visitor.attach(picture(tmp_path, 120, 120, "white"))
    visitor.ask("What is it?")
    visitor.attach(picture(tmp_path, 100, 120, "white"))
    wait_for(
        visitor.page,
        "[...document.querySelectorAll('.thumb img')].every((image) => image.naturalWidth)",
    )
    for thumb in (visitor.page.locator("article .thumb"), visitor.page.locator("#tray .thumb")):
        seen = Image.open(BytesIO(thumb.screenshot())).convert("L")
        middle = seen.height // 2
        assert min(seen.getpixel((x, middle)) for x in range(3)) < 235
        assert seen.getpixel((seen.width // 2, middle)) > 250


def test_attachments_do_not_cover_the_chat(visit, engine, pictures):
    engine.answer = "\n\n".join(f"Line {number}." for number in range(25))
    visitor = visit()
    page = visitor.page
    visitor.ask("A long one?")
    visitor.attach(*pictures)
    at_the_end = "{ const s = vqa.$('scroll'); s.scrollHeight - s.scrollTop - s.clientHeight < 2 }"
    wait_for(page, at_the_end)  # it scrolled to make room
    page.evaluate("vqa.$('scroll').scrollTop = 0")
    latest, composer = page.locator("#latest"), box(page.locator("#composer"))
    expect(latest).to_be_visible()
    place = box(latest)
    assert place["y"] + place["height"] <= composer["y"]
    latest.click()
    wait_for(page, at_the_end)
    page.click(".new")
    expect(latest).to_be_hidden()


TABLE = "| name | " + " | ".join("x" * 30 for _ in range(4)) + " |\n|---|---|---|---|---|\n"
WIDE = (
    f"{TABLE}| squares | 1 | 2 | 3 | 4 |\n\n{'very' * 60}long\n\n> said\n\n```\n{'code ' * 60}\n```"
)


def test_wide_table_scrolls_without_breaking_words(visit, engine):
    engine.answer = WIDE
    visitor = visit(**PHONE)
    page = visitor.page
    visitor.ask("A table?")
    assert overflow(page) <= 0
    line = box(page.locator(".answer th").first)["height"]
    assert box(page.locator(".answer td").first)["height"] == pytest.approx(line, abs=3)

    name = page.url.partition("#")[2]
    saved = page.request.get(f"{visitor.address}vqa/conversations/{name}.html").text()
    exported = visitor.tab()
    exported.set_content(saved)
    assert overflow(exported) <= 0
    expect(exported.locator("blockquote")).to_have_css("border-left-style", "solid")
    assert box(exported.locator("td").first)["height"] == pytest.approx(
        box(exported.locator("th").first)["height"], abs=3
    )


def test_model_view_is_shown_near_the_picture(visit, tmp_path):
    visitor = visit()
    page = visitor.page
    visitor.attach(picture(tmp_path, 900, 1600))
    page.locator("#tray .thumb").click()
    page.click("text=What the model saw")
    page.wait_for_selector(
        ".seen", state="attached"
    )  # empty, because the fake engine has no model view
    page.evaluate("""() => {
        const digest = /pictures.([^?]+)/.exec(document.querySelector('#sheet .large').src)[1];
        const canvas = document.createElement('canvas');
        canvas.width = canvas.height = 256;
        const shown = [{ data: canvas.toDataURL(), size: [256, 256] }];
        vqa.emit('saw', { digest, shown, tokens: 256, changes: ['rotated'] });
    }""")
    expect(page.locator("#saw .note")).to_contain_text("256 tokens")
    expect(page.locator("#saw .note")).to_be_in_viewport(ratio=1)
    expect(page.locator(".pixels")).to_be_in_viewport(ratio=0.9)


def test_notice_is_centred(visit):
    page = visit().page
    for view in ("chat", "teach"):
        page.click(f"nav [data-view-of={view}]")
        page.evaluate("vqa.toast('Saved.')")
        notice, side = box(page.locator(".toast")), box(page.locator("#side"))
        middle = (side["width"] + 1280) / 2
        assert notice["x"] + notice["width"] / 2 == pytest.approx(middle, abs=2)
    page.click("#view-teach .side-open, #side [data-do=side]")
    expect(page.locator("#side")).to_be_hidden()
    middle = "{ const { x, width } = document.querySelector('.toast').getBoundingClientRect();"
    wait_for(page, f"{middle} Math.abs(x + width / 2 - 640) < 2 }}")


def test_long_word_does_not_overflow_the_page(visit):
    visitor = visit(**PHONE)
    page = visitor.page
    visitor.ask("What is it?")
    page.evaluate("""() => {
        const { view } = vqa.state;
        view.turns[0].facts.model = 'x'.repeat(200);
        vqa.emit('view', view, { channel: 'tabs' });
    }""")
    facts = box(page.locator("article .facts"))
    assert facts["x"] + facts["width"] <= 375
    assert overflow(page) <= 0


def test_key_hint_is_shown_while_typing(visit):
    page = visit().page
    hint = page.locator("#keys")
    expect(hint).to_be_hidden()
    page.fill("#question", "What")
    expect(hint).to_have_text("Enter to ask, Shift + Enter for a new line")
    expect(hint).to_be_visible()


JOB = """{name: 'hats', base: 'Fake', stage: 'lora', state: 'stopped', phase: 'training', done: 2,
  of: 8, losses: [[1, 3], [2, 1]], evaluations: [], watch: [], messages: [], comparison: null}"""


def test_single_chart_is_as_large_as_one_of_two(visit):
    page = visit().page
    page.click("nav [data-view-of=train]")
    page.wait_for_selector("#train-form [name=source]")
    # Drawn and measured at once, because a status from the server may arrive at any moment.
    width = page.evaluate(f"""() => {{
        vqa.emit('training', {{base: 'Fake', bases: [], sources: [], busy: false, job: {JOB}}});
        return document.querySelector('#job .chart').getBoundingClientRect().width;
    }}""")
    assert 100 < width <= 400


def test_chat_shows_its_time(visit, site):
    visitor = visit()
    page = visitor.page
    visitor.ask("What is this?")
    expect(page.locator("#list .when")).to_have_text(re.compile(r"\d\d:\d\d"))
    shown, title = page.evaluate("""() => {
        vqa.emit('list', vqa.state.list.concat(
            {id: 'old', title: 'Old', when: new Date(2001, 4, 6).getTime() / 1000}));
        const last = (found) => [...document.querySelectorAll(found)].at(-1);
        return [last('#list .when').innerText, last('#list .title').title];
    }""")
    assert shown == "2001"
    assert "2001" in title


def test_drawing_pad_fits_a_phone(visit):
    page = visit(**PHONE).page
    page.locator("[data-do=draw]").tap()
    pad, sheet = box(page.locator("#sheet .pad")), box(page.locator("#sheet"))
    assert pad["width"] == pytest.approx(pad["height"], abs=1)
    assert pad["x"] - sheet["x"] == pytest.approx(
        sheet["x"] + sheet["width"] - pad["x"] - pad["width"], abs=2
    )


def test_thin_and_tiny_pictures_are_visible_and_clickable(visit, tmp_path):
    visitor = visit(**PHONE)
    page = visitor.page
    visitor.attach(picture(tmp_path, 10, 3000), picture(tmp_path, 1, 1, "red"))
    visitor.ask("What is it?")
    for thumb in page.locator("article .thumb").all():
        place = box(thumb)
        assert min(place["width"], place["height"]) >= 56
    page.locator(".foot .look").click()
    wait_for(page, f"document.querySelector('.overlay') && {PLACED}")
    for overlay in page.locator(".overlay").all():
        place = box(overlay)
        assert min(place["width"], place["height"]) >= 24
        assert place["height"] < 720


def test_model_list_fits_a_narrow_phone(visit):
    page = visit(**{**PHONE, "viewport": {"width": 360, "height": 720}}).page
    page.locator("#model").tap()
    place = box(page.locator("#models"))
    assert place["x"] + place["width"] <= 360
