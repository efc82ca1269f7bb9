"""The page without a mouse: shortcuts, lists, and where the focus goes. Notices cover nothing."""

from __future__ import annotations

import pytest

from tests.ui.browser.conftest import expect, wait_for
from tests.ui.browser.test_layout import PHONE, box

ON_BODY = "document.activeElement === document.body"


def test_shortcuts_search_start_a_chat_and_explain_themselves(visit):
    visitor = visit()
    page, press = visitor.page, visitor.page.keyboard.press
    visitor.ask("About cats?")
    visitor.ask("And birds?")
    press("Control+Shift+O")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#question")).to_be_focused()
    visitor.ask("About dogs?")
    press("Control+k")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("cat")
    expect(page.locator("#list .title")).to_have_text(["About cats?"])
    press("Enter")
    expect(visitor.questions).to_have_text(["About cats?", "And birds?"])
    expect(page.locator("#question")).to_be_focused()
    press("Control+/")
    expect(page.locator("#sheet h2")).to_have_text("Keyboard shortcuts")
    press("Control+k")  # not behind the dialog
    expect(page.locator("#sheet")).to_be_visible()
    press("Escape")
    page.keyboard.type("Why?")
    expect(page.locator("#question")).to_have_value("Why?")
    press("Control+k")
    press("Escape")
    expect(page.locator("#search")).to_have_value("")
    expect(page.locator("#question")).to_be_focused()


def test_search_shortcut_opens_the_sidebar_of_a_phone(visit):
    visitor = visit(**PHONE)
    visitor.ask("About cats?")
    expect(visitor.page.locator("#search")).to_be_hidden()
    visitor.page.keyboard.press("Control+k")
    expect(visitor.page.locator("#search")).to_be_focused()
    expect(visitor.page.locator("#search")).to_be_visible()


def test_focus_is_never_on_the_body(visit, engine):
    visitor = visit()
    page, press = visitor.page, visitor.page.keyboard.press
    page.locator("#cards .card").first.focus()
    press("Enter")
    visitor.answered()
    expect(page.locator("#question")).to_be_focused()

    page.click("[data-do=settings]")
    reset = page.get_by_role("button", name="Reset to the model's defaults")
    page.fill("#set-temperature", "0.5")
    page.locator("#set-temperature").press("Tab")
    wait_for(page, "() => vqa.state.settings.temperature === 0.5")
    reset.focus()
    press("Enter")
    expect(page.locator("#set-temperature")).to_have_value("")
    expect(reset).to_be_focused()
    press("Escape")

    engine.hold(2)
    visitor.ask("A long one?", wait=False)
    expect(page.locator(".answer.running")).to_be_visible()
    page.locator(".stop-button").focus()
    press("Enter")
    visitor.answered()
    expect(page.locator("#question")).to_be_focused()

    page.locator("#side [data-do=side]").focus()
    press("Enter")
    expect(page.locator("#side")).to_be_hidden()
    wait_for(page, f"!({ON_BODY})")


def test_model_list_is_used_by_arrows_end_and_letters(visit):
    page = visit().page
    press = page.keyboard.press
    page.focus("#model")
    press("ArrowDown")
    options = page.locator("#models [role=option]")
    expect(options.first).to_be_focused()
    press("End")
    expect(options.last).to_be_focused()
    press("Home")
    expect(options.first).to_be_focused()
    press("o")
    expect(page.get_by_role("option", name="Other")).to_be_focused()
    press("Escape")
    expect(page.locator("#model")).to_be_focused()


def test_each_chat_is_one_tab_stop(visit):
    visitor = visit()
    page, press = visitor.page, visitor.page.keyboard.press
    visitor.ask("About cats?")
    page.click(".new")
    visitor.ask("About dogs?")
    titles = page.locator("#list .title")
    titles.first.focus()
    press("Tab")
    expect(titles.nth(1)).to_be_focused()
    press("ArrowUp")
    expect(titles.first).to_be_focused()
    press("ArrowRight")
    more = page.get_by_label("More for About dogs?")
    expect(more).to_be_focused()
    press("Enter")
    press("End")
    expect(page.get_by_role("menuitem").last).to_be_focused()
    press("Escape")
    expect(more).to_be_focused()
    press("ArrowLeft")
    expect(titles.first).to_be_focused()


@pytest.mark.parametrize("options", [{}, PHONE], ids=["wide", "phone"])
def test_notice_covers_neither_answers_nor_buttons(visit, engine, options):
    engine.answer = "\n\n".join(f"Line {number}." for number in range(25))
    visitor = visit(**options)
    page = visitor.page
    visitor.ask("A long one?")
    page.evaluate("vqa.toast('Saved: you can train on it.')")
    notice = box(page.locator(".toast"))
    for above in ("article .facts", "article .answer p:last-child"):
        place = box(page.locator(above))
        assert place["y"] + place["height"] <= notice["y"]
    assert notice["y"] + notice["height"] <= box(page.locator("#composer"))["y"]
    page.evaluate("vqa.show('compare')")
    page.evaluate("vqa.toast('It went wrong.', 'error')")
    notice, view = box(page.locator(".toast")), box(page.locator("#view-compare"))
    assert view["y"] + view["height"] <= notice["y"]


def test_notices_replace_each_other_and_leave_with_their_page(visit):
    visitor = visit()
    page = visitor.page
    visitor.ask("About cats?")
    toast = page.locator(".toast")
    page.evaluate("vqa.toast('One.'), vqa.toast('Two.', 'error')")
    expect(toast).to_have_text("Two.")
    page.click("nav [data-view-of=teach]")
    expect(toast).to_have_count(0)
    page.evaluate("vqa.toast('Three.')")
    page.click("nav [data-view-of=chat]")
    expect(toast).to_have_count(0)
    page.evaluate("vqa.toast('Four.')")
    page.click(".new")
    expect(toast).to_have_count(0)


def test_keys_of_an_input_method_are_no_commands(visit):
    visitor = visit()
    page = visitor.page
    visitor.ask("About cats?")
    compose = """(node, key) => node.dispatchEvent(
        new KeyboardEvent("keydown", {key, isComposing: true, bubbles: true, cancelable: true}))"""
    page.fill("#question", "neko")
    page.locator("#question").evaluate(compose, "Enter")
    expect(page.locator("#question")).to_have_value("neko")
    page.fill("#search", "cats")
    page.locator("#search").evaluate(compose, "Escape")
    expect(page.locator("#search")).to_have_value("cats")
    page.fill("#search", "")
    page.locator("#list .title").click(button="right")
    page.get_by_role("menuitem", name="Rename").click()
    page.locator("#list li > input").evaluate(compose, "Enter")
    expect(page.locator("#list li > input")).to_be_focused()
