"""Comparing two models."""

from __future__ import annotations

from tests.ui.browser.conftest import expect, wait_for


def test_compare_warns_about_the_same_model_twice(visit):
    page = visit().page
    page.evaluate("vqa.on('models', () => { window.updated = true; })")
    page.click("nav [data-view-of=compare]")
    wait_for(page, "() => window.updated")  # the reply to the request sent on opening
    hint = page.locator("#compare-form .note")
    expect(hint).to_be_hidden()
    page.get_by_label("First model").select_option("fake")
    expect(hint).to_contain_text("the same model")
    page.get_by_label("First model").select_option("other")
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
    page.get_by_label("Second model").select_option("other")
    page.get_by_label("First model").select_option("fake")
    chosen = page.evaluate("""() => {
        const { models } = vqa.state;
        const choices = [...models.choices, { ...models.choices[0], key: 'new', label: 'New' }];
        vqa.emit('models', { ...models, choices });
        const selects = [...document.querySelectorAll('#compare-form select')];
        return selects.map((one) => one.value).concat(selects[0].options.length);
    }""")
    assert chosen == ["fake", "other", 3]


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
