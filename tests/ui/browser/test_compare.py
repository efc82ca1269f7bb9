"""Comparing models."""

from __future__ import annotations

import pytest

from tests.documents import pdf
from tests.fake_engine import FakeEngine
from tests.ui.browser.conftest import Visitor, expect, wait_for
from tests.ui.browser.test_page import serious_violations
from tests.ui.server import running


def test_compare_warns_about_the_same_model_twice(visit):
    page = visit().page
    page.evaluate("vqa.on('models', () => { window.updated = true; })")
    page.click("nav [data-view-of=compare]")
    wait_for(page, "() => window.updated")  # the reply to the request sent on opening
    hint = page.locator("#compare-form .note")
    expect(hint).to_be_hidden()
    page.get_by_label("Model 1").select_option("fake")
    expect(hint).to_contain_text("the same model")
    page.get_by_label("Model 1").select_option("other")
    expect(hint).to_be_hidden()


def test_compare_says_when_there_is_no_other_model(visit):
    page = visit().page
    page.click("nav [data-view-of=compare]")
    hint, first = page.evaluate("""() => {
        const { models } = vqa.state;
        for (const choice of models.choices) choice.here = choice.key === models.picked;
        vqa.emit('models', models);
        const form = document.getElementById('compare-form');
        return [form.querySelector('.note').innerText, form.querySelector('select').value];
    }""")
    assert "No other model is on this machine yet" in hint
    assert first == "fake"


def test_compared_models_stay_selected_when_the_list_changes(visit):
    page = visit().page
    page.click("nav [data-view-of=compare]")
    page.get_by_label("Model 2").select_option("other")
    page.get_by_label("Model 1").select_option("fake")
    chosen = page.evaluate("""() => {
        const { models } = vqa.state;
        const choices = [...models.choices, { ...models.choices[0], key: 'new', label: 'New' }];
        vqa.emit('models', { ...models, choices });
        const selects = [...document.querySelectorAll('#compare-form select')];
        return selects.map((one) => one.value).concat(selects[0].options.length);
    }""")
    assert chosen == ["fake", "other", 3]


def test_pages_of_a_pdf_are_chosen_for_a_comparison(visit, engine, tmp_path):
    (tmp_path / "plan.pdf").write_bytes(pdf(size=(60, 90)))
    page = visit().page
    page.click("nav [data-view-of=compare]")
    page.set_input_files("#compare-form input[type=file]", str(tmp_path / "plan.pdf"))
    page.get_by_label("Page 3").check()
    page.get_by_label("Page 2").check()
    page.locator(".pdf-actions .primary").click()
    expect(page.locator(".compare-picture img")).to_have_count(2)
    page.click("#compare-form [type=submit]")
    page.locator("#compared .facts").nth(1).wait_for()
    green, blue = (one.image.getpixel((9, 9)) for one in engine.asked[-1][0].pictures)
    assert green[1] > 100 > 12 > green[2]
    assert blue[2] > 240 > 12 > blue[1]


def test_nothing_is_left_of_add_a_model_where_all_are_compared(visit):
    page = visit().page
    page.click("nav [data-view-of=compare]")
    expect(page.get_by_label("Model 2")).to_be_visible()
    expect(page.get_by_text("Add a model")).to_be_hidden()
    models, buttons = (
        page.locator(f"#compare-form > {selector}").bounding_box()
        for selector in (".columns", ".actions:visible >> nth=0")
    )
    gap = page.locator("#compare-form").evaluate("(form) => parseFloat(getComputedStyle(form).gap)")
    assert buttons["y"] - models["y"] - models["height"] == pytest.approx(gap, abs=1)


def test_code_in_a_comparison_can_be_copied(visit, engine):
    engine.answer = "```\nx = 1\n```"
    page = visit().page
    page.click("nav [data-view-of=compare]")
    page.fill("#compare-form input[aria-label=Question]", "What is it?")
    page.click("#compare-form [type=submit]")
    page.locator("#compared .facts").nth(1).wait_for()
    page.get_by_label("Copy the code").click()
    expect(page.locator(".toast")).to_have_text("Copied")


def test_one_comparison_at_a_time_and_errors_are_shown(visit, engine):
    engine.hold(1)
    page = visit().page
    page.click("nav [data-view-of=compare]")
    page.fill("#compare-form input[aria-label=Question]", "What is it?")
    button = page.locator("#compare-form [type=submit]")
    button.click()
    expect(button).to_be_disabled()
    expect(page.locator("#compared .answer")).to_have_count(2)
    expect(button).to_be_disabled()
    engine.release()
    expect(page.locator("#compared .facts")).to_have_count(2)
    expect(button).to_be_enabled()
    engine.error = RuntimeError("broken")
    button.click()
    expect(page.locator("#compared")).to_have_text(
        "Something went wrong on our side. Please try again."
    )
    expect(button).to_be_enabled()


def test_comparison_can_be_stopped_and_repeated(visit, engine):
    engine.hold(1)
    page = visit().page
    page.click("nav [data-view-of=compare]")
    page.fill("#compare-form input[aria-label=Question]", "What is it?")
    button, stop = page.locator("#compare-form [type=submit]"), page.locator("#compare-form .stop")
    expect(stop).to_be_hidden()
    button.click()
    expect(page.locator("#compared .answer")).to_have_count(2)
    stop.click()
    expect(page.locator("#compared .panel").nth(1)).to_contain_text("Stopped.")
    expect(button).to_be_enabled()
    engine.release()
    button.click()
    expect(page.locator("#compared .facts")).to_have_count(2)
    expect(page.locator("#compared")).not_to_contain_text("Stopped")


def test_several_models_get_several_pictures_and_a_reload_keeps_them(
    browser, contexts, tmp_path, pictures
):
    engines = {
        "fake": FakeEngine("one"),
        "other": FakeEngine("two"),
        "third": FakeEngine("a third answer"),
    }
    with running(engines, tmp_path) as server:
        visitor = Visitor(browser, server.address, contexts)
        visitor.open()
        page = visitor.page
        page.click("nav [data-view-of=compare]")
        page.click("text=Add a model")
        expect(page.get_by_label("Model 3", exact=True)).to_be_focused()
        expect(page.locator("#compare-form select")).to_have_count(3)
        expect(page.get_by_text("Add a model")).to_be_hidden()  # there is no fourth one
        chosen = ["other", "fake", "third"]
        for number, key in enumerate(chosen, 1):
            page.get_by_label(f"Model {number}", exact=True).select_option(key)
        page.set_input_files("#compare-form input[type=file]", [*map(str, pictures[:2])])
        expect(page.locator(".compare-picture img")).to_have_count(2)
        page.fill("#compare-form input[aria-label=Question]", "What is it?")
        page.click("#compare-form [type=submit]")
        page.locator("#compared .facts").nth(2).wait_for()
        assert len(engines["third"].asked[-1][0].pictures) == 2
        answers = page.locator("#compared .answer")
        expect(answers.nth(2)).to_have_text("a third answer")
        for width in (320, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert serious_violations(page) == []

        page.reload()
        expect(answers).to_have_count(3)
        expect(answers.nth(2)).to_have_text("a third answer")
        expect(page.locator(".compare-picture img")).to_have_count(2)
        expect(page.locator("#compare-form input[aria-label=Question]")).to_have_value(
            "What is it?"
        )
        selects = page.locator("#compare-form select")
        assert selects.evaluate_all("all => all.map((one) => one.value)") == chosen
        page.get_by_label("Remove model 3").click()
        expect(page.get_by_text("Add a model")).to_be_focused()
        expect(selects).to_have_count(2)
        page.get_by_label("Remove picture 1").click()
        expect(page.locator(".compare-picture img")).to_have_count(1)
        page.click("#compare-form [type=submit]")
        expect(page.locator("#compared .facts")).to_have_count(2)
        visitor.close()
        assert not visitor.errors


def test_a_reload_ends_a_comparison_and_says_so(visit, engine):
    engine.hold(1)
    page = visit().page
    page.click("nav [data-view-of=compare]")
    page.fill("#compare-form input[aria-label=Question]", "What is it?")
    page.click("#compare-form [type=submit]")
    expect(page.locator("#compared .answer")).to_have_count(2)
    page.reload()
    expect(page.locator("#compared .panel").nth(1)).to_contain_text("Stopped.")
    expect(page.locator("#compare-form [type=submit]")).to_be_enabled()
    engine.release()
