"""Two models, one question."""

from __future__ import annotations

from tests.ui.browser.conftest import expect, wait_for


def test_comparing_says_so_where_both_are_the_same_model(visit):
    page = visit().page
    page.evaluate("vqa.on('models', () => { window.told = true; })")
    page.click("nav [data-view-of=compare]")
    wait_for(page, "() => window.told")  # what the page asked for when it was opened
    hint = page.locator("#compare-form .note")
    expect(hint).to_be_hidden()
    page.get_by_label("First model").select_option("fake")
    expect(hint).to_contain_text("the same model")
    page.get_by_label("First model").select_option("other")
    expect(hint).to_be_hidden()


def test_comparing_says_so_where_no_other_model_is_here(visit):
    page = visit().page
    page.click("nav [data-view-of=compare]")
    told, first = page.evaluate("""() => {
        const { models } = vqa.state;
        for (const choice of models.choices) choice.here = choice.key === models.picked;
        vqa.emit('models', models);
        const form = document.getElementById('compare-form');
        return [form.querySelector('.note').innerText, form.querySelector('select').value];
    }""")
    assert "No other model is on this machine yet" in told
    assert first == "fake"


def test_what_is_chosen_to_compare_stays_when_the_list_changes(visit):
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


def test_code_in_a_comparison_is_copied(visit, engine):
    engine.answer = "```\nx = 1\n```"
    page = visit().page
    page.click("nav [data-view-of=compare]")
    page.fill("#compare-form input[aria-label=Question]", "What is it?")
    page.click("#compare-form [type=submit]")
    page.locator("#compared .facts").nth(1).wait_for()
    page.get_by_label("Copy the code").click()
    expect(page.locator(".toast")).to_have_text("Copied")


def test_a_comparison_runs_once_at_a_time_and_says_what_went_wrong(visit, engine):
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


def test_a_comparison_is_stopped_and_asked_again(visit, engine):
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
