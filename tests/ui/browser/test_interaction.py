"""Interaction with the page: waiting, drafts, focus and errors."""

from __future__ import annotations

import base64
import re

from tests.ui.browser.conftest import Visitor, expect, wait_for
from tests.ui.browser.test_chat import PASTE, held_back

REQUESTS = "**/vqa/requests/*"


def test_question_right_after_new_chat_starts_a_chat(visit):
    visitor = visit()
    page = visitor.page
    visitor.ask("About cats?")
    with held_back(page, REQUESTS):
        page.click(".new")
        page.keyboard.type("About dogs?")
        page.keyboard.press("Enter")
        expect(visitor.questions).to_have_text(["About dogs?"])
    expect(page.locator("#list .title")).to_have_text(["About dogs?", "About cats?"])
    expect(visitor.questions).to_have_text(["About dogs?"])


def test_question_right_after_opening_a_chat_is_asked_there(visit):
    visitor = visit()
    page = visitor.page
    visitor.ask("About cats?")
    page.click(".new")
    visitor.ask("About dogs?")
    with held_back(page, REQUESTS):
        page.click("#list .title:has-text('cats')")
        page.keyboard.type("And kittens?")
        page.keyboard.press("Enter")
        assert page.input_value("#question") == "And kittens?"  # kept until the chat is open
    expect(visitor.questions).to_have_text(["About cats?", "And kittens?"])


def test_question_is_shown_before_the_server_has_it(visit, pictures):
    visitor = visit()
    page = visitor.page
    visitor.attach(pictures[0])
    with held_back(page, REQUESTS):
        visitor.ask("What is it?", wait=False)
        expect(visitor.questions).to_have_text(["What is it?"])
        expect(page.locator("article .state")).to_have_text("Sending")
        expect(page.locator("article .thumb")).to_have_count(1)
        expect(page.locator("#empty")).to_be_hidden()
    visitor.answered()
    expect(visitor.questions).to_have_text(["What is it?"])


def test_title_being_edited_survives_a_redraw_of_the_list(visit):
    visitor = visit()
    page = visitor.page
    visitor.ask("About cats?")
    page.get_by_label("More for About cats?").click()
    page.click("[role=menuitem]:has-text('Rename')")
    box = page.locator("#list input")
    box.fill("My hal")
    page.evaluate("vqa.emit('list', [...vqa.state.list])")
    page.evaluate("vqa.on('list', (list) => { window.kept = list[0].title; })")
    expect(box).to_be_focused()
    box.press_sequentially("f")
    box.press("Enter")
    title = page.locator("#list .title")
    expect(title).to_have_text("My half")
    expect(title).to_be_focused()
    wait_for(page, "() => window.kept === 'My half'")  # the server has it
    page.reload()
    expect(title).to_have_text("My half")


def test_example_question_keeps_the_draft(visit, pictures):
    visitor = visit()
    page = visitor.page
    visitor.attach(pictures[0])
    page.fill("#question", "A long thought")
    page.locator("#cards .card").first.click()
    visitor.answered()
    expect(visitor.answers).to_contain_text("about one picture")
    expect(page.locator("#question")).to_have_value("A long thought")
    expect(page.locator("#tray .thumb img")).to_have_count(1)


def test_new_scene_replaces_the_previous_scene_but_no_draft(visit):
    page = visit().page
    box, tray = page.locator("#question"), page.locator("#tray .thumb img")
    page.click(".card.more")
    expect(tray).to_have_count(1)
    expect(box).not_to_have_value("")
    first = tray.get_attribute("src")
    page.click(".card.more")
    expect(tray).not_to_have_attribute("src", first)
    expect(tray).to_have_count(1)
    box.fill("My own question")
    second = tray.get_attribute("src")
    page.click(".card.more")
    expect(tray).not_to_have_attribute("src", second)
    expect(box).to_have_value("My own question")


def test_text_with_a_picture_of_it_is_pasted_as_text(visit, pictures):
    page = visit().page
    with_text = PASTE.replace(
        "const event", "transfer.setData('text/plain', '1\\t2'); const event"
    ).replace("bubbles: true", "bubbles: true, cancelable: true")
    with_text = re.sub(r"(\w+\.getElementById.*dispatchEvent\(event\));", r"return \1;", with_text)
    assert page.evaluate(with_text, base64.b64encode(pictures[0].read_bytes()).decode())
    expect(page.locator("#tray li")).to_have_count(0)


def test_picture_can_be_removed_during_upload(visit, pictures):
    visitor = visit()
    page = visitor.page
    with held_back(page, "**/vqa/pictures?name=*"):
        page.set_input_files("#files", str(pictures[0]))
        page.get_by_label("Remove picture 1").click()
        expect(page.locator("#tray li")).to_have_count(0)
    expect(page.locator(".toast")).to_have_count(0)
    visitor.ask("Nothing there?")
    expect(visitor.answers).to_contain_text("about no picture")


def test_back_returns_to_the_previous_chat_and_reload_stays(visit):
    visitor = visit()
    page = visitor.page
    visitor.ask("About cats?")
    page.click(".new")
    visitor.ask("About dogs?")
    page.click("#list .title:has-text('cats')")
    expect(visitor.questions).to_have_text(["About cats?"])
    page.click("nav [data-view-of=train]")
    page.reload()
    shell = page.locator("#vqa")
    expect(shell).to_have_attribute("data-view", "train")
    page.go_back()
    expect(shell).to_have_attribute("data-view", "chat")
    expect(visitor.questions).to_have_text(["About cats?"])
    page.go_back()
    expect(visitor.questions).to_have_text(["About dogs?"])
    page.go_forward()
    expect(visitor.questions).to_have_text(["About cats?"])


def test_skip_link_keeps_the_chat(visit):
    visitor = visit()
    page = visitor.page
    visitor.ask("About cats?")
    address = page.url
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    assert page.url == address
    page.click("nav [data-view-of=train]")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#view-train h1")).to_be_focused()


def test_lost_connection_during_an_answer_is_reported(visit, engine):
    engine.hold(2)
    visitor = visit()
    visitor.changed, page = True, visitor.page
    page.clock.install()
    visitor.ask("A long one?", wait=False)
    expect(page.locator(".answer.running")).to_have_text("You asked")
    visitor.context.set_offline(True)
    page.clock.fast_forward(16_000)
    expect(page.locator(".toast.error")).to_contain_text("cannot be reached")
    engine.release()


def test_page_works_without_browser_storage(browser, site):
    visitor = Visitor(browser, site.address)
    visitor.context.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"])
             Object.defineProperty(window, name,
               { get() { throw new DOMException("blocked", "SecurityError"); } });"""
    )
    try:
        visitor.open()
        visitor.ask("Still there?")
        expect(visitor.answers).to_contain_text("no picture")
        was = visitor.page.evaluate("document.body.classList.contains('dark')")
        for now in (not was, was):
            visitor.page.click("[data-do=theme]")
            assert visitor.page.evaluate("document.body.classList.contains('dark')") == now
    finally:
        visitor.context.close()


def test_invalid_setting_is_reset(visit):
    page = visit().page
    page.click("[data-do=settings]")
    box = page.locator("#set-temperature")
    box.fill("0.5")
    box.press("Tab")
    wait_for(page, "() => vqa.state.settings.temperature === 0.5")
    box.fill("99")
    box.press("Tab")
    expect(box).to_have_value("0.5")


def test_focus_is_kept_after_a_redraw(visit):
    visitor = visit()
    page, press = visitor.page, visitor.page.keyboard.press
    visitor.ask("What is it?")
    for label in ("This is right", "Answer again", "Previous version"):
        button = page.get_by_label(label)
        button.focus()
        press("Enter")
        if label == "This is right":
            expect(button).to_have_attribute("aria-pressed", "true")
        elif label == "Answer again":
            page.wait_for_selector("text='2 / 2'")
            visitor.answered()
        else:
            page.wait_for_selector("text='1 / 2'")
            button = page.get_by_label("Next version")  # the previous one is disabled now
        expect(button).to_be_focused()
    page.get_by_label("This is wrong").focus()
    press("Enter")
    expect(page.locator(".correction input")).to_be_focused()
    page.keyboard.type("A cat.")
    press("Enter")
    wrong = page.get_by_label("This is wrong")
    expect(wrong).to_have_attribute("aria-pressed", "true")
    expect(wrong).to_be_focused()
    page.locator("#list .title").focus()
    press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.click("nav [data-view-of=teach]")
    page.get_by_label("Edit this row").focus()
    press("Enter")
    press("Enter")
    expect(page.get_by_label("Edit this row")).to_be_focused()


def test_model_list_closes_when_it_loses_the_focus(visit):
    page = visit().page
    page.focus("#model")
    page.keyboard.press("Enter")
    expect(page.locator("#models")).to_be_visible()
    page.focus("#question")
    expect(page.locator("#models")).to_be_hidden()


def test_drag_out_of_the_sheet_keeps_it_open_and_drawings_are_kept(visit):
    page = visit().page
    page.click("[data-do=draw]")
    pad = page.locator("#sheet .pad")
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=3)
    page.mouse.up()
    drawn = pad.evaluate("node => node.toDataURL()")
    title = page.locator("#sheet h2").bounding_box()
    page.mouse.move(title["x"] + 5, title["y"] + 5)
    page.mouse.down()
    page.mouse.move(5, 5, steps=3)
    page.mouse.up()
    expect(pad).to_be_visible()
    page.keyboard.press("Escape")
    expect(pad).to_be_hidden()
    page.click("[data-do=draw]")
    assert pad.evaluate("node => node.toDataURL()") == drawn


def test_notice_over_a_sheet_can_be_closed(visit):
    page = visit().page
    page.click("[data-do=draw]")
    page.evaluate("vqa.sheet('Another one')")  # replaces the content
    page.evaluate("vqa.toast('It went wrong.', 'error')")
    page.locator(".toast [aria-label=Close]").click()
    expect(page.locator(".toast")).to_have_count(0)
    page.keyboard.press("Escape")
    page.evaluate("vqa.toast('Saved again.')")
    expect(page.locator(".stage .toast")).to_be_visible()
