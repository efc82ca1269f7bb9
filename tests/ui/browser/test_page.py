"""The page itself: phone, dark theme, keyboard, accessibility, attention map."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from PIL import Image

from tests.fake_engine import FakeEngine
from tests.proxy import proxy
from tests.ui.browser.conftest import WAIT, Visitor, expect, import_or_skip, wait_for
from tests.ui.browser.test_chat import held_back
from tests.ui.server import running
from tests.waiting import PATIENCE
from ui.chat import examples
from vqa_app.errors import ModelError

COLOUR_RULES = ("color-contrast", "link-in-text-block")
"""The rules of axe-core that depend on the theme."""


def serious_violations(page, rules: Iterable[str] = ()) -> list[str]:
    """Return the serious and critical findings of axe-core, by default of all rules."""
    script = import_or_skip("axe_playwright_python.base").AXE_SCRIPT
    if not page.evaluate("'axe' in window"):
        page.evaluate(script)
    chosen = {"runOnly": {"type": "rule", "values": list(rules)}} if rules else {}
    options = {"resultTypes": ["violations"], **chosen}
    found = page.evaluate("async options => (await axe.run(options)).violations", options)
    return [
        f"{rule['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def test_no_serious_accessibility_violation_in_any_state(visit, engine, pictures):
    visitor = visit(color_scheme="light", reduced_motion="reduce")  # no colour transitions
    page = visitor.page

    def violations() -> list[str]:
        found = serious_violations(page)
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("body.dark", state="attached")
        found += [f"dark: {problem}" for problem in serious_violations(page, COLOUR_RULES)]
        page.emulate_media(color_scheme="light")
        page.wait_for_selector("body:not(.dark)", state="attached")
        return found

    problems = {"empty": violations()}
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    visitor.ask("And **now**?")
    problems["chat"] = violations()
    page.get_by_label("This is wrong").last.click()
    page.evaluate("vqa.toast('Done')")
    problems["correction and notice"] = violations()
    page.evaluate("vqa.toast('It went wrong.', 'error')")
    problems["error"] = violations()
    page.keyboard.press("Escape")
    page.click("#model")
    problems["models"] = violations()
    page.keyboard.press("Escape")
    page.get_by_label("More for").click()
    problems["chat menu"] = violations()
    page.keyboard.press("Escape")
    for state, opener in (
        ("picture", "article .thumb"), ("pad", "[data-do=draw]"), ("delete", "article [title^=Del]")
    ):  # fmt: skip
        page.locator(opener).first.click()
        problems[state] = violations()
        page.keyboard.press("Escape")
    page.locator(".foot .look").first.click()
    page.wait_for_selector(".overlay")
    problems["looked"] = violations()
    page.keyboard.press("Escape")
    page.click("[data-do=settings]")
    page.wait_for_selector("#set-system")
    problems["settings"] = violations()
    page.keyboard.press("Escape")
    engine.hold(1)
    visitor.ask("A long one?", wait=False)
    page.wait_for_selector(".answer.running")
    problems["answering"] = violations()
    engine.release()
    visitor.answered()
    engine.dropped = 4
    visitor.ask("Too much? `code`")
    expect(page.locator(".left-out")).to_have_count(2)
    engine.error = RuntimeError("broken")
    visitor.ask("Does it work?", wait=False)
    page.wait_for_selector(".failed")
    page.keyboard.type("Half a question")
    problems["left out, failed, writing"] = violations()
    page.locator("article").first.hover()
    page.get_by_label("Edit and ask again from here").first.click()
    expect(page.locator("#editing")).to_be_visible()
    problems["editing"] = violations()
    page.keyboard.press("Escape")
    for view, drawn in (
        ("teach", "#taught .nothing"),
        ("train", "#train-form [name=source]"),
        ("compare", "#compare-form select"),
    ):
        page.click(f"nav [data-view-of={view}]")
        page.locator(drawn).first.wait_for()
        problems[view] = violations()
    page.fill("#compare-form input[aria-label=Question]", "What is it?")
    page.click("#compare-form [type=submit]")
    page.locator("#compared .facts").nth(1).wait_for()
    problems["compared"] = violations()
    assert {state: found for state, found in problems.items() if found} == {}


def test_phone(visit):
    visitor = visit(
        viewport={"width": 375, "height": 720},
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
    )
    page = visitor.page
    assert overflow(page) <= 0
    page.locator("#cards .card").first.tap()
    visitor.answered()
    assert overflow(page) <= 0
    assert serious_violations(page) == []
    box = page.locator("#composer").bounding_box()
    assert box["x"] >= 0
    assert box["y"] + box["height"] <= 720
    expect(page.locator("#side .new")).to_be_hidden()
    page.locator(".side-open").first.tap()
    page.locator("#list .title").first.wait_for()
    expect(page.locator("#list .icon")).to_have_css("opacity", "1")  # there is no hover on a phone
    assert serious_violations(page) == []
    page.locator("nav [data-view-of=train]").tap()
    page.wait_for_selector("#train-form [name=source]")
    assert overflow(page) <= 0


def test_dark_theme_persists(visit):
    visitor = visit()
    visitor.page.click("[data-do=theme]")
    assert visitor.page.evaluate("document.body.classList.contains('dark')")
    visitor.page.reload()
    visitor.page.wait_for_selector("#cards .card", state="attached")
    assert visitor.page.evaluate("document.body.classList.contains('dark')")


def test_keyboard_only(visit, pictures):
    """Ask, open and close the attention map, edit, open a menu, without a mouse."""
    visitor = visit()
    page = visitor.page
    question, look = page.locator("#question"), page.locator("article .look")
    expect(question).to_be_focused()
    visitor.attach(pictures[0])
    page.keyboard.type("Hello?")
    page.keyboard.press("Enter")
    expect(question).to_have_value("")
    visitor.answered()
    for _ in range(60):
        page.keyboard.press("Shift+Tab")
        if look.evaluate("node => node === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#sheet[open] .overlay")
    page.keyboard.press("Escape")
    expect(look).to_be_focused()
    question.focus()
    page.keyboard.press("ArrowUp")
    expect(question).to_have_value("Hello?")
    page.keyboard.press("Escape")
    expect(question).to_have_value("")
    page.focus("#model")
    page.keyboard.press("Enter")
    expect(page.locator("#models [aria-selected=true]")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(page.locator("#model")).to_be_focused()


def test_closing_a_sheet_restores_the_focus(visit, engine, pictures):
    visitor = visit()
    page, look = visitor.page, visitor.page.locator(".foot .look")
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    look.click()
    page.wait_for_selector(".overlay canvas")
    expect(page.locator(".foot .badge")).to_have_count(1)  # the button was redrawn
    page.keyboard.press("Escape")
    expect(look).to_be_focused()
    look.click()
    page.wait_for_selector(".overlay canvas")
    # The dialog's `close` event comes a frame late, when the user may already be typing.
    page.evaluate(
        """() => new Promise((done) => {
          const sheet = vqa.$("sheet");
          sheet.addEventListener("close", () => setTimeout(done));
          sheet.close();
          vqa.$("question").focus();
        })"""
    )
    expect(page.locator("#question")).to_be_focused()


def test_a_late_reply_does_not_lead_back_to_the_chat_that_was_left(visit, pictures):
    visitor = visit()
    page = visitor.page
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    page.evaluate("for (const key of ['looked', 'taught']) vqa.on(key, () => (window[key] = true))")
    for name, button, key in (
        ("look", page.locator(".foot .look"), "looked"),
        ("teach", page.get_by_label("This is right"), "taught"),
    ):
        with held_back(page, f"**/vqa/requests/{name}"):
            button.click()
            page.keyboard.press("Escape")
            page.click(".new")
            expect(page.locator("#empty")).to_be_visible()
        wait_for(page, f"window.{key}")
        expect(page.locator("#empty")).to_be_visible()
        expect(visitor.questions).to_have_count(0)
        page.click("#list .title")
        expect(visitor.questions).to_have_count(1)


def test_question_before_the_first_reply_is_kept(visit, site):
    visitor = visit()
    page = visitor.page = visitor.tab()
    with held_back(page, "**/vqa/requests/*"):
        page.goto(site.address)
        expect(page.locator("#question")).to_be_focused()
        page.fill("#question", "Too early?")
        page.press("#question", "Enter")
        assert page.input_value("#question") == "Too early?"
    page.wait_for_selector(".bubble:has-text('Too early?')")
    visitor.answered()
    visitor.ask("And now?")
    expect(visitor.questions).to_have_text(["Too early?", "And now?"])


def test_question_before_the_script_runs_is_kept(visit, site):
    """Until then, Enter adds a line break to the text box."""
    visitor, held = visit(), []
    page = visitor.page = visitor.tab()
    page.route("**/vqa/page.js*", lambda route: held.append(route))
    page.goto(site.address, wait_until="commit")
    expect(page.locator(".submit-button")).to_be_disabled()
    page.fill("#question", "Too early?")
    page.press("#question", "Enter")
    assert page.input_value("#question") == "Too early?\n"
    for route in held:
        route.continue_()
    visitor.answered()
    expect(visitor.questions).to_have_text(["Too early?"])


def test_attention_map(visit, engine, pictures):
    visitor = visit()
    page = visitor.page
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    assert page.locator(".foot .badge").count() == 0  # computed only when asked
    page.locator(".foot .look").click()
    page.wait_for_selector(".overlay canvas")
    words = page.locator(".words .word").all_inner_texts()
    assert words[0] == "The whole answer"
    assert words[1:3] == ["You", "asked"]
    draw = "document.querySelector('.overlay canvas').toDataURL()"
    whole = page.evaluate(draw)
    page.click(".word:has-text('asked')")
    assert page.evaluate(draw) != whole
    expect(page.locator(".word:has-text('asked')")).to_have_attribute("aria-pressed", "true")
    before = page.evaluate(draw)
    page.fill(".opacity input", "0.1")
    assert page.evaluate(draw) != before
    page.keyboard.press("Escape")
    expect(page.locator(".foot .badge")).to_have_text("Depends on the picture")


def test_attention_map_says_when_it_is_unavailable(visit, engine, pictures):
    engine.attention_maps = False
    visitor = visit()
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    visitor.page.locator(".foot .look").click()
    visitor.page.wait_for_selector("#sheet :text('no attention maps')")
    expect(visitor.page.locator(".word")).to_have_count(0)


def test_late_reply_does_not_replace_newer_content(visit, engine, gate, pictures, monkeypatch):
    monkeypatch.setattr(engine, "image_gain", lambda *_: 1.5 * gate.wait(PATIENCE))
    visitor = visit()
    page = visitor.page
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    page.locator(".foot .look").click()
    page.wait_for_selector("#sheet .state")
    page.keyboard.press("Escape")
    page.click("[data-do=draw]")
    gate.set()
    expect(page.locator(".foot .badge")).to_have_count(1)  # the reply has arrived
    expect(page.locator("#sheet .pad")).to_be_visible()


def test_drawing_becomes_a_picture(visit):
    visitor = visit()
    page = visitor.page
    page.click("[data-do=draw]")
    box = page.locator(".pad").bounding_box()
    page.focus(".choices [aria-label=Pen]")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".choices [aria-label=Circle]")).to_be_checked()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=3)
    page.mouse.up()
    page.click("#sheet .primary")
    page.wait_for_selector("#tray .thumb img")
    visitor.ask("What did I draw?")
    expect(visitor.answers).to_contain_text("about one picture")


def test_new_scene_has_a_question(visit, monkeypatch):
    drawn = (Image.new("RGB", (64, 64), "teal"), "How many hats are there?")
    monkeypatch.setattr(examples, "new_scene", lambda: drawn)
    monkeypatch.setattr(examples, "knowledge", lambda choice: "drawings")
    visitor = visit()
    visitor.page.click(".card.more")
    visitor.page.wait_for_selector("#tray .thumb img")
    expect(visitor.page.locator("#question")).to_have_value("How many hats are there?")


@pytest.mark.parametrize("seed", [0, 1, 1 << 39])
def test_every_new_scene_has_a_picture_and_a_question(monkeypatch, seed):
    seeds = itertools.count(seed)  # not every seed gives a scene with questions
    monkeypatch.setattr(examples.secrets, "randbelow", lambda _: next(seeds))
    image, question = examples.new_scene()
    assert min(image.size) >= 64
    assert question.strip()


def test_files_can_be_dropped_anywhere(visit):
    visitor = visit()
    visitor.page.evaluate(
        """async () => {
          const canvas = document.createElement("canvas");
          const blob = await new Promise((done) => canvas.toBlob(done));
          const transfer = new DataTransfer();
          transfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
          for (const kind of ["dragenter", "dragover", "drop"]) {
            document.getElementById("log").dispatchEvent(
              new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
          }
        }"""
    )
    visitor.page.wait_for_selector("#tray .thumb img", timeout=WAIT)
    expect(visitor.page.locator("#drop")).to_be_hidden()


def test_behind_a_proxy_on_a_sub_path(browser, tmp_path, pictures):
    engine = FakeEngine(hold_after=2)
    with (
        running({"fake": engine}, tmp_path / "data", root_path="/see") as server,
        proxy(server.address.removesuffix("/see/"), "/see") as address,
    ):
        visitor = Visitor(browser, address)
        try:
            page = visitor.open()
            visitor.attach(pictures[0])
            visitor.ask("What is it?", wait=False)
            expect(page.locator(".answer.running")).to_have_text("You asked")  # it streams
            engine.release()
            visitor.answered()
            page.reload()
            expect(visitor.answers).to_have_text("You asked 'What is it?' about one picture.")
            expect(page.locator("article .thumb img")).to_have_js_property("complete", True)
            cookies = visitor.context.cookies()
            assert [cookie["path"] for cookie in cookies] == ["/see"]
        finally:
            visitor.context.close()
        assert not visitor.errors
        assert not visitor.outside


CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def test_photograph_is_taken_and_asked_about(playwright_chromium, site):
    """Uses Chromium's fake camera: a green field with a clock."""
    with playwright_chromium(*CAMERA) as browser:
        visitor = Visitor(browser, site.address)
        page = visitor.open()
        page.click("[data-do=camera]")
        wait_for(page, "() => document.querySelector('#sheet video')?.videoWidth > 0")
        page.click("#sheet .primary")
        page.wait_for_selector("#tray .thumb img")
        expect(page.locator("#sheet")).to_be_hidden()
        visitor.ask("What is there?")
        expect(visitor.answers).to_contain_text("about one picture")
        shown = (
            "() => { const i = document.querySelector('article .thumb img');"
            " return [i.naturalWidth, i.naturalHeight]; }"
        )
        wait_for(page, "() => document.querySelector('article .thumb img')?.naturalWidth")
        assert min(page.evaluate(shown)) > 100
        visitor.context.close()
    assert not visitor.errors
    assert not visitor.outside


def test_missing_camera_is_reported(visit):
    visitor = visit()
    visitor.page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error()); }"
    )
    visitor.page.click("[data-do=camera]")
    expect(visitor.page.locator(".toast.error")).to_contain_text("No camera")


def test_failed_model_load_is_shown_on_the_empty_screen(browser, contexts, tmp_path):
    def load(*_):
        raise ModelError("There is no model 'nothing'.", "Check its name.")

    with running({"fake": FakeEngine()}, tmp_path, preload=False, load=load) as found:
        visitor = Visitor(browser, found.address, contexts)
        visitor.open()
        expect(visitor.page.locator("#about")).to_contain_text("There is no model 'nothing'.")
        visitor.close()
