"""Stored chats: searching, renaming, deleting, exporting."""

from __future__ import annotations

import json

import pytest

from tests.ui.browser.conftest import expect
from ui.storage.database import Store
from vqa_app.errors import UsageError


def test_conversations_are_searched_renamed_and_deleted(visit):
    visitor = visit()
    visitor.ask("About cats?")
    expect(visitor.answers).to_have_count(1)
    visitor.ask("And about birds?")
    visitor.page.click(".new")
    visitor.page.wait_for_selector("#empty", state="visible")
    visitor.ask("About dogs?")
    titles = visitor.page.locator("#list .title")
    expect(titles).to_have_text(["About dogs?", "About cats?"])
    for words in ("cat", "Birds"):
        visitor.page.fill("#search", words)
        expect(titles).to_have_text(["About cats?"])
        visitor.page.fill("#search", "")
        expect(titles).to_have_count(2)
    visitor.page.fill("#search", "fish")
    expect(visitor.page.locator("#list")).to_have_text("Nothing found.")
    visitor.page.fill("#search", "")
    visitor.page.locator("#list li").first.hover()
    visitor.page.get_by_label("More for About dogs?").click()
    visitor.page.click("[role=menuitem]:has-text('Rename')")
    visitor.page.fill("#list li input", "Puppies")
    visitor.page.press("#list li input", "Enter")
    visitor.page.wait_for_selector("#list .title:has-text('Puppies')")
    visitor.page.get_by_label("More for Puppies").click()
    visitor.page.click("[role=menuitem]:has-text('Delete')")
    visitor.page.wait_for_selector("#empty", state="visible")
    expect(titles).to_have_text(["About cats?"])


def test_deletion_of_a_question_needs_confirmation(visit):
    visitor = visit()
    page, press = visitor.page, visitor.page.keyboard.press
    visitor.ask("Keep me?")
    page.locator("article").hover()
    remove = page.get_by_role("button", name="Delete this question")
    remove.click()
    expect(page.locator("#sheet .keep")).to_be_focused()
    press("Escape")
    expect(remove).to_be_focused()
    expect(visitor.questions).to_have_text(["Keep me?"])
    remove.click()
    press("Tab")
    press("Enter")
    expect(visitor.questions).to_have_count(0)
    expect(page.locator("#question")).to_be_focused()


@pytest.fixture
def refuse(monkeypatch):
    """Return a function that makes the server refuse what a method of the store does."""

    def replace(method: str) -> None:
        def refused(*_: object, **__: object) -> None:
            raise UsageError("Not today.", "Try tomorrow.")

        monkeypatch.setattr(Store, method, refused)

    return replace


def test_a_chat_that_the_server_does_not_delete_comes_back_with_the_reason(visit, refuse):
    visitor = visit()
    page, press = visitor.page, visitor.page.keyboard.press
    visitor.ask("Keep me?")
    titles = page.locator("#list .title")
    refuse("mark_deleted")
    page.get_by_label("More for Keep me?").click()
    press("End")
    press("Enter")
    expect(page.locator(".toast.error")).to_contain_text("Not today. Try tomorrow.")
    expect(titles).to_have_text(["Keep me?"])
    expect(page.locator("#undo")).to_be_hidden()
    expect(visitor.questions).to_have_text(["Keep me?"])
    expect(page.locator("#question")).to_be_focused()


def test_a_refused_name_of_a_chat_stays_in_its_field(visit, refuse):
    visitor = visit()
    page = visitor.page
    visitor.ask("About cats?")
    refuse("rename")
    page.get_by_label("More for About cats?").click()
    page.click("[role=menuitem]:has-text('Rename')")
    page.fill("#list li input", "Puppies")
    page.press("#list li input", "Enter")
    expect(page.locator(".toast.error")).to_contain_text("Not today.")
    expect(page.locator("#list li input")).to_have_value("Puppies")
    page.press("#list li input", "Escape")
    expect(page.locator("#list .title")).to_have_text(["About cats?"])


def test_refused_settings_and_prompts_are_taken_back_and_written_texts_stay(visit, refuse):
    visitor = visit()
    page = visitor.page
    refuse("save_settings")
    page.click("[data-do=settings]")
    page.select_option("#set-style", "short")
    expect(page.locator(".toast.error")).to_contain_text("Not today.")
    expect(page.locator("#set-style")).to_have_value("sentence")
    page.fill("#set-system", "In rhymes.")
    page.press("#set-system", "Tab")
    expect(page.locator("#settings .refused")).to_have_text("Not today. Try tomorrow.")
    page.select_option("#set-style", "short")  # refused, too
    expect(page.locator("#set-system")).to_have_value("In rhymes.")
    page.keyboard.press("Escape")
    page.click("#instructions")
    page.fill("#sheet textarea", "In verse.")
    kept = page.locator("#sheet .library li", has_text="In verse.")
    page.get_by_role("button", name="Add to my prompts").click()
    expect(page.locator("#sheet .toast.error")).to_contain_text("Not today.")
    expect(kept).to_have_count(0)
    page.keyboard.press("Escape")
    visitor.ask("Hello?")
    refuse("set_system_prompt")
    page.evaluate("vqa.emit('do:instructions')")
    page.fill("#sheet textarea", "In prose.")
    page.click("#sheet .primary")
    expect(page.locator("#sheet .refused")).to_have_text("Not today. Try tomorrow.")
    expect(page.locator("#sheet textarea")).to_have_value("In prose.")


def test_deleted_chat_can_be_restored_for_a_while(visit):
    visitor = visit()
    page, press = visitor.page, visitor.page.keyboard.press
    visitor.ask("Keep me?")
    titles, undo = page.locator("#list .title"), page.locator("#undo")
    page.get_by_label("More for Keep me?").click()
    press("End")
    press("Enter")
    expect(titles).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    expect(undo).to_contain_text("Chat deleted.")
    expect(undo.get_by_role("button", name="Undo")).to_be_focused()
    press("Enter")
    expect(visitor.questions).to_have_text(["Keep me?"])
    expect(titles).to_have_text(["Keep me?"])
    expect(undo).to_be_hidden()
    page.evaluate("vqa.emit('undo_seconds', 0.2)")
    page.get_by_label("More for Keep me?").click()
    press("End")
    press("Enter")
    expect(undo).to_be_visible()
    expect(undo).to_be_hidden()
    expect(page.locator("#question")).to_be_focused()


def test_chats_are_pinned_archived_and_deleted_together(visit, pictures):
    visitor = visit()
    page = visitor.page
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    for question in ("Two?", "Three?"):
        page.click(".new")
        visitor.ask(question)
    titles, menu = page.locator("#list .title"), page.get_by_role("menuitem")
    expect(page.locator("#list img.thumbnail")).to_have_js_property("naturalWidth", 120)
    expect(page.locator("#list .snippet").last).to_contain_text("about one picture")

    page.get_by_label("More for What is it?").click()
    menu.filter(has_text="Pin").click()
    expect(titles).to_have_text(["What is it?", "Three?", "Two?"])
    page.get_by_label("More for Two?").click()
    menu.filter(has_text="Archive").click()
    expect(titles).to_have_text(["What is it?", "Three?"])
    page.click("#list .fold")
    expect(titles).to_have_text(["What is it?", "Three?", "Two?"])

    page.get_by_label("More for Three?").click()
    menu.filter(has_text="Select several").click()
    page.get_by_role("checkbox", name="What is it?").click()
    expect(page.locator("#selection")).to_contain_text("2 selected")
    page.locator("#selection").get_by_role("button", name="Delete").click()
    expect(titles).to_have_text(["Two?"])
    page.locator("#undo button").click()
    expect(titles).to_have_text(["What is it?", "Three?", "Two?"])


def test_export_and_import(visit, tmp_path, pictures):
    """The imported copy has the pictures, branches and ratings of the original."""
    visitor = visit()
    visitor.attach(pictures[0])
    visitor.ask("Keep me?")
    visitor.page.get_by_label("Answer again").click()
    visitor.page.wait_for_selector("text='2 / 2'")
    visitor.answered()
    right = visitor.page.get_by_label("This is right")
    right.click()
    expect(right).to_have_attribute("aria-pressed", "true")
    first = visitor.page.url
    visitor.page.get_by_label("More for Keep me?").click()
    with visitor.page.expect_download() as download:
        visitor.page.click("[role=menuitem]:has-text('Save as JSON')")
    file = tmp_path / "chat.json"
    download.value.save_as(file)
    assert json.loads(file.read_text("utf-8"))["title"] == "Keep me?"
    visitor.page.click("nav [data-view-of=teach]")
    visitor.page.set_input_files("#import-file", str(file))
    expect(visitor.page.locator("#vqa")).to_have_attribute("data-view", "chat")
    expect(visitor.page.locator("#list .title")).to_have_text(["Keep me?", "Keep me?"])
    expect(visitor.page).not_to_have_url(first)
    visitor.page.wait_for_selector("text='2 / 2'")
    expect(right).to_have_attribute("aria-pressed", "true")
    expect(visitor.page.locator("article .thumb img")).to_have_js_property("naturalWidth", 120)
    expect(visitor.answers).to_have_text(["You asked 'Keep me?' about one picture."])
    expect(visitor.page.locator("article .facts")).to_contain_text("75% sure of its words")
    visitor.page.get_by_label("Previous version").click()
    visitor.page.wait_for_selector("text='1 / 2'")
    expect(right).to_have_attribute("aria-pressed", "false")
