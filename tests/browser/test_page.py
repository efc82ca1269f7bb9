"""The page itself: phone, dark, keyboard only, accessibility, where it looked."""

from __future__ import annotations

import pytest

from tests.browser.conftest import WAIT, needed


def serious(page) -> list[str]:
    """axe-core's serious and critical findings."""
    axe = needed("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_violation_in_any_state(visit, scheme, pictures):
    visitor = visit(color_scheme=scheme)
    page = visitor.page
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    problems = {"empty": serious(page)}
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    visitor.ask("And **now**?")
    problems["chat"] = serious(page)
    page.locator(".foot .look").first.click()
    page.wait_for_selector(".overlay")
    problems["looked"] = serious(page)
    page.keyboard.press("Escape")
    page.click("[data-do=settings]")
    problems["settings"] = serious(page)
    page.keyboard.press("Escape")
    for view in ("teach", "train", "compare"):
        page.click(f"nav [data-view-of={view}]")
        page.wait_for_selector(f"#view-{view} h1")
        page.wait_for_timeout(300)
        problems[view] = serious(page)
    assert {state: found for state, found in problems.items() if found} == {}


def test_phone(visit):
    visitor = visit(viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True)
    page = visitor.page
    assert overflow(page) <= 0
    page.locator("#cards .card").first.tap()
    visitor.answered()
    assert overflow(page) <= 0
    box = page.locator("#composer").bounding_box()
    assert box["x"] >= 0 and box["y"] + box["height"] <= 720
    assert not page.locator("#side .new").is_visible()
    page.locator(".side-open").first.tap()
    page.locator("#list .title").first.wait_for()
    page.locator("nav [data-view-of=train]").tap()
    page.wait_for_selector("#view-train h1")
    assert overflow(page) <= 0


def test_dark_is_chosen_and_stays(visit):
    visitor = visit()
    visitor.page.click("[data-do=theme]")
    assert visitor.page.evaluate("document.body.classList.contains('dark')")
    visitor.page.reload()
    visitor.page.wait_for_selector("#cards .card", state="attached")
    assert visitor.page.evaluate("document.body.classList.contains('dark')")


def test_keyboard_only(visit):
    """Ask, look, close, edit, open a menu: without a mouse."""
    visitor = visit()
    page = visitor.page
    focused = (
        "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
    )
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("Hello?")
    page.keyboard.press("Enter")
    visitor.answered()
    for _ in range(60):
        page.keyboard.press("Shift+Tab")
        if "Where it looked" in page.evaluate(focused):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#sheet[open] .note")
    page.keyboard.press("Escape")
    assert "Where it looked" in page.evaluate(focused)
    page.focus("#question")
    page.keyboard.press("ArrowUp")
    assert page.input_value("#question") == "Hello?"
    page.keyboard.press("Escape")
    assert page.input_value("#question") == ""
    page.focus("#model")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "model"


def test_where_it_looked(visit, engine, pictures):
    visitor = visit()
    page = visitor.page
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    assert page.locator(".foot .badge").count() == 0  # computed only when asked
    page.locator(".foot .look").click()
    page.wait_for_selector(".overlay canvas")
    words = page.locator(".words .word").all_inner_texts()
    assert words[0] == "The whole answer" and words[1:3] == ["You", "asked"]
    draw = "document.querySelector('.overlay canvas').toDataURL()"
    whole = page.evaluate(draw)
    page.click(".word:has-text('asked')")
    assert page.evaluate(draw) != whole
    assert page.get_attribute(".word:has-text('asked')", "aria-pressed") == "true"
    before = page.evaluate(draw)
    page.fill(".opacity input", "0.1")
    assert page.evaluate(draw) != before
    page.keyboard.press("Escape")
    assert page.inner_text(".foot .badge") == "The answer comes from the picture"


def test_where_it_looked_says_so_where_the_model_cannot_tell(visit, engine, pictures):
    engine._attention_maps = False
    try:
        visitor = visit()
        visitor.attach(pictures[0])
        visitor.ask("What is it?")
        visitor.page.locator(".foot .look").click()
        visitor.page.wait_for_selector("#sheet :text('no attention maps')")
        assert visitor.page.locator(".word").count() == 0
    finally:
        engine._attention_maps = True


def test_the_drawing_pad_becomes_a_picture(visit):
    visitor = visit()
    page = visitor.page
    page.click("[data-do=draw]")
    box = page.locator(".pad").bounding_box()
    page.click(".choices [aria-label=circle]")
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=3)
    page.mouse.up()
    page.click("#sheet .primary")
    page.wait_for_selector("#tray .thumb img")
    visitor.ask("What did I draw?")
    assert "about one picture" in visitor.answers[0]


def test_a_new_scene_is_drawn_with_a_question(visit):
    visitor = visit()
    visitor.page.click(".card.more")
    visitor.page.wait_for_selector("#tray .thumb img")
    assert visitor.page.input_value("#question").endswith(("?", "."))  # "Name the second digit."


def test_dropping_files_anywhere(visit):
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
    assert not visitor.page.is_visible("#drop")
