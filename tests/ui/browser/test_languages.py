"""The page in the browser's language: translated, and inside the screen at every width."""

from __future__ import annotations

import pytest

from tests.ui.browser.conftest import expect
from ui.texts import catalogue, language_names

LOCALES = {"de-DE": "de", "es-ES": "es", "fr-FR": "fr", "zh-CN": "zh-Hans"}
OUTSIDE = """() => [...document.querySelectorAll("#vqa *")]
  .filter((node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
  .filter((node) => node.matches("button, a, input, select, label, h1, h2, p, small, legend, li"))
  .filter((node) => !node.closest("#side, .skip, [aria-hidden=true]"))
  .filter((node) => {
    const { left, right, width } = node.getBoundingClientRect();
    const clipped = node.matches("button, label") && node.scrollWidth > node.clientWidth + 1;
    return width && (left < -1 || right > innerWidth + 1 || clipped && node.id !== "model");
  })
  .map((node) => node.outerHTML.slice(0, 160))"""
"""What reaches beyond the screen or out of its button; the model's name may be cut."""


def test_every_language_is_tried_here() -> None:
    assert {*LOCALES.values(), "en"} == {*language_names()}


@pytest.mark.parametrize("locale", sorted(LOCALES))
def test_page_is_in_the_language_of_the_browser(visit, pictures, locale):
    texts = catalogue(LOCALES[locale])
    visitor = visit(locale=locale)
    page = visitor.page
    assert page.locator("html").get_attribute("lang") == LOCALES[locale]
    expect(page.locator("#side .new")).to_have_text(str(texts["sidebar.newChat"]))
    expect(page.locator("#question")).to_have_attribute(
        "placeholder", str(texts["composer.placeholder"])
    )
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    expect(page.locator(".foot .look")).to_have_text(str(texts["look.title"]))
    page.get_by_role("button", name=str(texts["chat.wrong"])).click()
    expect(page.locator(".correction input")).to_have_attribute(
        "placeholder", str(texts["teach.whatIsRight"])
    )
    page.keyboard.press("Escape")
    page.get_by_role("button", name=str(texts["chat.right"])).click()
    expect(page.locator(".toast")).to_contain_text(str(texts["teach.saved"]))
    page.locator(".toast button").click()

    for width in (320, 1280):
        page.set_viewport_size({"width": width, "height": 720})
        page.evaluate("vqa.newChat()")
        expect(page.locator("#about")).to_be_visible()
        assert page.evaluate(OUTSIDE) == []
        page.evaluate("vqa.open(vqa.state.list[0].id)")
        expect(page.locator(".foot .look")).to_be_visible()
        assert page.evaluate(OUTSIDE) == []
        page.evaluate("vqa.$('model-name').textContent = 'A model with a long name'")
        assert page.evaluate(OUTSIDE) == []
        page.click("[data-do=draw]")
        expect(page.locator("#sheet h2")).to_have_text(str(texts["draw.title"]))
        assert page.evaluate(OUTSIDE) == []
        page.keyboard.press("Escape")
        page.click("[data-do=settings]")
        expect(page.locator("#settings h2")).to_have_text(str(texts["settings.title"]))
        assert page.evaluate(OUTSIDE) == []
        page.keyboard.press("Escape")
        for view in ("teach", "train", "compare"):
            page.evaluate("vqa.show", view)
            expect(page.locator(f"#view-{view} h1")).to_have_text(str(texts[f"page.{view}"]))
            expect(page.locator(f"#view-{view} button.primary").first).to_be_visible()
            assert page.evaluate(OUTSIDE) == []
        page.evaluate("vqa.show('chat')")


def test_messages_of_the_server_are_in_the_language_of_the_browser(visit, tmp_path):
    file = tmp_path / "letter.png"
    file.write_text("Dear all")
    visitor = visit(locale="de-AT")
    visitor.page.set_input_files("#files", [str(file)])
    toast = visitor.page.locator(".toast.error")
    expect(toast).to_contain_text("Das ist kein Bild: letter.png scheint")


def test_a_language_can_be_chosen_and_left(visit):
    visitor = visit(locale="pt-BR")
    page = visitor.page
    expect(page.locator("#side .new")).to_have_text("New chat")
    page.click("[data-do=settings]")
    page.select_option("#set-language", "fr")
    expect(page.locator("#side .new")).to_have_text("Nouvelle discussion")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "fr")
    page.click("[data-do=settings]")
    expect(page.locator("#set-language")).to_have_value("fr")
    page.select_option("#set-language", "")
    expect(page.locator("#side .new")).to_have_text("New chat")


def test_a_model_that_knows_only_english_says_so_on_a_page_in_another_language(visit):
    page = visit(locale="de-DE").page
    fine = page.locator("#fine")
    expect(fine).not_to_contain_text("Englisch")
    page.evaluate(
        "vqa.emit('models', Object.assign(vqa.state.models, { picked: 'run', only_english: true }))"
    )
    expect(fine).to_contain_text("Dieses Modell versteht und antwortet Englisch.")


def test_numbers_and_dates_follow_the_language(visit):
    page = visit(locale="de-DE").page
    assert page.evaluate("vqa.t('teach.rows', { count: 1 })") == "1 Zeile"
    assert page.evaluate("vqa.t('teach.rows', { count: 1234 })") == "1.234 Zeilen"
    assert page.evaluate("vqa.duration(200)") == "3 Min."
    assert page.evaluate("vqa.message(['Odd.', { key: 'server.again', values: {} }])") == (
        "Odd. Versuchen Sie es noch einmal."
    )
