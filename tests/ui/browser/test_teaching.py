"""Correct an answer, train on it, compare, switch to the trained model and back."""

from __future__ import annotations

import json
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from finetune.evaluation.report import save_watch_answers
from finetune.progress import Progress
from tests.fake_engine import FakeEngine
from tests.ui.browser.conftest import Visitor, expect
from tests.ui.browser.test_page import serious_violations
from tests.ui.server import running
from tests.waiting import PATIENCE, until
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest
from vqa_app.pictures.picture import open_picture
from vqa_app.serving.engine_pool import ModelChoice


class Trainer:
    """Replaces `finetune.training.train.train`: reports progress and writes a run."""

    def __init__(self) -> None:
        self.finish_training = threading.Event()
        self.configs = []

    def __call__(self, config, on_progress, cancel):
        self.configs.append(config)
        run = Path(config.out)
        run.mkdir(parents=True, exist_ok=True)
        for step in range(1, 5):
            on_progress(Progress("training", step, 8, loss=2.0 / step, seconds_left=4.0))
        on_progress(Progress("evaluating", 1, 1, evaluation={"vqa_accuracy": 0.5, "loss": 1.0}))
        while not self.finish_training.wait(0.05):
            if cancel.is_set():
                return SimpleNamespace(finished=False)
        for step in range(5, 9):
            on_progress(Progress("training", step, 8, loss=2.0 / step))
        on_progress(Progress("evaluating", 1, 1, evaluation={"vqa_accuracy": 1.0, "loss": 0.5}))
        seen = open_picture(Image.new("RGB", (120, 90), "green"))
        for step, answer in ((4, "a cat"), (6, "a hat"), (8, "a hat")):
            save_watch_answers(run, step, [("What is it?", "a hat", answer, [seen])])
        (run / "manifest.json").write_text("{}")
        return SimpleNamespace(finished=True)


@pytest.fixture
def training_site(browser, contexts, tmp_path):
    """Serve an application whose trained models answer "a hat"."""
    trainer = Trainer()
    engines = {"fake": FakeEngine("a cat")}

    def load(choice, progress):
        return engines.setdefault(choice.key, FakeEngine("a hat")).reopen()

    def choices():
        yield ModelChoice("fake", "Fake", "", "In the box", "fake")
        for run in sorted((tmp_path / "runs").glob("*/manifest.json")):
            name = run.parent.name
            yield ModelChoice(f"run-{name}", name, "", "Trained here", str(run.parent))

    with running(engines, tmp_path, load=load, choices=choices, train=trainer) as server:
        visitor = Visitor(browser, server.address, contexts)
        visitor.open()
        yield SimpleNamespace(visitor=visitor, trainer=trainer, server=server)
        trainer.finish_training.set()
        visitor.close()
        assert not visitor.errors
        assert not visitor.outside


def test_teach_train_compare_switch_and_go_back(training_site, pictures):
    visitor, page = training_site.visitor, training_site.visitor.page
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    expect(visitor.answers).to_have_text(["a cat"])
    page.get_by_label("This is wrong").click()
    page.fill(".correction input", "a hat")
    page.press(".correction input", "Enter")
    page.wait_for_selector("[aria-label='This is wrong'][aria-pressed=true]")

    page.click("nav [data-view-of=teach]")
    expect(page.locator("#taught .right")).to_have_text("a hat")
    page.click("#view-teach [data-view-of=train]")
    page.wait_for_selector("[name=source]:checked")
    page.uncheck("#train-rehearse")
    page.click("text=Check the data first")
    page.wait_for_selector("#preflight :text('1 row, 1 answer, 1 picture')")
    page.fill("#train-name", "hats")
    page.click("#train-form [type=submit]")
    page.wait_for_selector("#job .chart")
    expect(page.locator("#preflight .badge")).to_have_text("All fine")
    expect(page.locator("#job")).to_contain_text("about 4 sec left")
    assert serious_violations(page) == []

    # It continues without the page, is shown in another tab, and the chat works meanwhile.
    page.reload()
    page.wait_for_selector("#job .chart")
    page.click("nav [data-view-of=chat]")
    page.wait_for_selector("article")
    visitor.ask("Still answering?")
    expect(page.locator("#fine")).to_contain_text("slower")
    page.click("nav [data-view-of=train]")
    page.wait_for_selector("#job :text('hats')")
    expect(page.locator("#train-form [type=submit]")).to_be_disabled()
    training_site.trainer.finish_training.set()
    page.wait_for_selector(".outcome")
    assert serious_violations(page) == []
    config = training_site.trainer.configs[0]
    assert Path(config.data[0]).name == "llava.json"
    assert config.stage == "lora"
    taught = page.locator(".outcome tbody tr").first
    expect(taught.locator("th, td")).to_have_text(["Taught questions (1)", "0%", "100%"])
    expect(page.locator("#job .primary")).to_be_in_viewport(ratio=1)  # the button "Use it in chat"
    expect(page.locator(".pairs").first).to_contain_text("before ✗ a catafter ✓ a hat")
    expect(page.locator(".watch")).to_contain_text("a cat → a hat")
    expect(page.locator(".watch img")).to_have_js_property("naturalWidth", 120)

    page.dblclick("text=Use it in chat")
    expect(page.locator(".toast")).to_have_text("hats answers from now on.")
    page.wait_for_selector("#job :text('Go back to the previous model')")
    page.click("nav [data-view-of=chat]")
    expect(page.locator("#model-name")).to_have_text("hats")
    visitor.ask("What is it?")
    expect(visitor.answers.last).to_have_text("a hat")
    page.click("nav [data-view-of=train]")
    page.click("text=Go back to the previous model")
    page.wait_for_selector("text=Use it in chat")
    page.click("nav [data-view-of=chat]")
    visitor.ask("And now?")
    expect(visitor.answers.last).to_have_text("a cat")

    page.click("nav [data-view-of=compare]")
    page.fill("#compare-form input[aria-label=Question]", "What is it?")
    page.click("text=Ask all")
    page.locator("#compared .facts").nth(1).wait_for()
    expect(page.locator("#compared .answer")).to_have_text(["a hat", "a cat"])


def test_the_base_model_is_chosen_and_the_run_links_to_its_report(training_site, tmp_path):
    visitor, page = training_site.visitor, training_site.visitor.page
    training_site.trainer.finish_training.set()
    page = ready_to_train(training_site)
    expect(page.locator("#train-model")).to_have_value("fake")
    page.fill("#train-name", "hats")
    page.click("#train-form [type=submit]")
    page.wait_for_selector("#job :text('Done')")
    run = tmp_path / "runs" / "hats"
    write_manifest(run, Manifest("lora", Base("builtin", "0"), prompt_hash=""))
    (run / "report.html").write_text(
        "<title>hats</title><h1>The report</h1><style>h1 { color: #f00 }</style>"
    )
    page.evaluate("() => vqa.send('train', {})")  # it would ask within 20 seconds
    expect(page.locator("#train-model option")).to_have_text(["Fake", "hats"])
    page.select_option("#train-model", "run-hats")
    expect(page.locator("#train-lead b")).to_have_text("hats")
    link = page.locator("#job a:text-is('Report')")
    expect(link).to_be_visible()
    with visitor.context.expect_page() as opened:
        link.click()
    expect(opened.value.locator("h1")).to_have_css("color", "rgb(255, 0, 0)")
    opened.value.close()
    page.fill("#train-name", "more hats")
    page.click("#train-form [type=submit]")
    page.wait_for_selector("#job h2:text-is('more-hats')")
    page.wait_for_selector("#job :text('Done')")
    assert Path(training_site.trainer.configs[1].model) == run
    for width in (320, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious_violations(page) == []


def ready_to_train(training_site):
    visitor, page = training_site.visitor, training_site.visitor.page
    visitor.ask("What is it?")
    page.get_by_label("This is right").click()
    page.wait_for_selector("[aria-label='This is right'][aria-pressed=true]")
    page.click("nav [data-view-of=train]")
    page.wait_for_selector("[name=source]:checked")
    page.uncheck("#train-rehearse")
    return page


def test_data_check_is_shown_and_starts_one_training(training_site, gate, monkeypatch):
    service = training_site.server.application.training
    check = service.check
    monkeypatch.setattr(service, "check", lambda *given: gate.wait(PATIENCE) and check(*given))
    page = ready_to_train(training_site)
    page.click("#train-form [type=submit]")
    expect(page.locator("#preflight")).to_have_text("Reading the data …")
    for button in (page.locator("#train-form [type=submit]"), page.locator("#train-form .check")):
        expect(button).to_be_disabled()
    gate.set()
    page.wait_for_selector("#job .chart")


def test_another_tab_shows_a_training_and_its_end(training_site):
    page, tab = ready_to_train(training_site), training_site.visitor.tab()
    training_site.visitor.changed = True
    tab.clock.install()
    training_site.visitor.open(tab)
    page.click("#train-form [type=submit]")
    page.wait_for_selector("#job .chart")
    tab.clock.fast_forward(21_000)
    expect(tab.locator("#fine")).to_contain_text("slower")
    page.bring_to_front()
    page.click("#job button:has-text('Stop')")
    tab.clock.fast_forward(5_000)
    expect(tab.locator(".toast")).to_contain_text("was stopped")


def test_training_can_be_stopped_and_continued(training_site):
    page = ready_to_train(training_site)
    page.click("#train-form [type=submit]")
    page.click("#job button:has-text('Stop')")
    page.wait_for_selector("#job .badge:has-text('Stopped')")
    training_site.trainer.finish_training.set()
    page.click("#job button:has-text('Continue')")
    page.wait_for_selector("#job .badge:has-text('Done')")
    assert training_site.trainer.configs[0] == training_site.trainer.configs[1]
    expect(page.locator("#train-form [type=submit]")).to_be_enabled()


def test_correction_can_be_changed_and_undone(training_site):
    visitor, page = training_site.visitor, training_site.visitor.page
    visitor.ask("What is it?")
    wrong, box = page.get_by_label("This is wrong"), page.locator(".correction input")
    wrong.click()
    box.fill(too_long := "a hat " * 1000)
    box.press("Enter")
    expect(page.locator(".correction .refused")).to_contain_text("The limit is 4,000 characters.")
    expect(box).to_have_value(too_long)
    expect(box).to_be_focused()
    expect(page.locator(".toast")).to_have_count(0)
    box.fill("a hat")
    box.press("Enter")
    expect(wrong).to_have_attribute("aria-pressed", "true")
    wrong.click()
    expect(box).to_have_value("a hat")
    box.fill("a red hat")
    box.press("Enter")
    page.click("nav [data-view-of=teach]")
    expect(page.locator("#taught .right")).to_have_text(["a red hat"])
    page.click("nav [data-view-of=chat]")
    wrong.click()
    page.click(".correction :text('Undo')")
    expect(wrong).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#taught li.nothing")).to_have_count(1)


def test_rows_are_edited_exported_deleted_and_imported(training_site, tmp_path, pictures):
    visitor, page = training_site.visitor, training_site.visitor.page
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    page.get_by_label("This is right").click()
    page.click("nav [data-view-of=teach]")
    page.get_by_label("Edit this row").click()
    page.press("#taught [aria-label='Right answer']", "Escape")
    expect(page.locator("#taught form")).to_have_count(0)
    page.get_by_label("Edit this row").click()
    page.fill("#taught [aria-label=Question]", "Which hat is it?")
    page.fill("#taught [aria-label='Right answer']", "")
    page.press("#taught [aria-label='Right answer']", "Enter")
    expect(page.locator("#taught .refused")).to_have_text("The answer is empty. Enter one.")
    expect(page.locator("#taught [aria-label=Question]")).to_have_value("Which hat is it?")
    page.fill("#taught [aria-label='Right answer']", "a red hat")
    page.press("#taught [aria-label='Right answer']", "Enter")
    page.wait_for_selector("#taught .right:has-text('a red hat')")
    with page.expect_download() as download:
        page.click("#view-teach a:has-text('Export')")
    file = tmp_path / "taught.zip"
    download.value.save_as(file)
    page.get_by_label("Delete this row").click()
    page.click("#sheet .danger")
    page.wait_for_selector("#taught .nothing")
    page.set_input_files("#rows-file", str(file))
    page.wait_for_selector("#taught .right:has-text('a red hat')")


def test_many_rows_are_shown_undone_and_deleted(training_site, tmp_path, monkeypatch):
    monkeypatch.setattr("ui.teaching.row_actions.SHOWN_ROWS", 2)
    page = training_site.visitor.page
    page.click("nav [data-view-of=teach]")
    for name in ("first", "second"):
        file = tmp_path / f"{name}.csv"
        rows = "".join(f"What is {n}?,{name}\n" for n in range(3))
        file.write_text(f"question,answer\n{rows}")
        page.set_input_files("#rows-file", str(file))
        expect(page.locator("#taught .right")).to_have_text([name] * 2)
    page.click("#taught :text('Show more')")
    expect(page.locator("#taught .right")).to_have_text(["second"] * 3 + ["first"] * 3)
    page.click("#taught :text('Undo the last import')")
    page.click("#sheet .danger")
    expect(page.locator("#taught .right")).to_have_text(["first"] * 3)
    page.click("#taught :text('Delete all')")
    page.click("#sheet .danger")
    page.wait_for_selector("#taught .nothing")


def test_data_problems_are_shown_before_training(training_site, tmp_path, pictures):
    page = training_site.visitor.page
    rows = [
        {"image": name, "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                          {"from": "gpt", "value": "A hat."}]}
        for name in ("red.png", "gone.png")
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "hats.zip", "w") as archive:
        archive.writestr("rows.json", json.dumps(rows))
        archive.write(pictures[0], "red.png")
    page.click("nav [data-view-of=train]")
    page.wait_for_selector("[name=source]")
    page.fill("#train-name", "hats")
    page.uncheck("#train-rehearse")
    page.set_input_files("#train-form input[type=file]", str(tmp_path / "hats.zip"))
    expect(page.locator("[name=source][value='upload:hats']")).to_be_checked()
    expect(page.locator("#train-name")).to_have_value("hats")  # the form keeps its values
    page.click("#train-form [type=submit]")
    expect(page.locator("#preflight li")).to_contain_text("gone.png")
    expect(page.locator("#job")).to_be_empty()
    page.click("text=Train without the bad rows")
    page.wait_for_selector("#job .chart")
    training_site.trainer.finish_training.set()
    page.wait_for_selector(".outcome")
    assert training_site.trainer.configs[0].max_bad > 0


def test_trained_models_and_data_sets_are_shared_renamed_and_deleted(
    training_site, browser, contexts, tmp_path
):
    visitor, page = training_site.visitor, training_site.visitor.page
    training_site.trainer.finish_training.set()
    data = tmp_path / "numbers.csv"
    data.write_text("question,answer\nWhat?,one\n")
    other = Visitor(browser, training_site.server.address, contexts)
    other.open()

    def choices(visitor) -> list[str]:
        """Return what the visitor's model list says."""
        visitor.page.click("nav [data-view-of=chat]")
        visitor.page.click("#model")
        expect(visitor.page.locator("#models [aria-selected=true]")).to_be_visible()
        found = visitor.page.locator("#models [role=option]").all_inner_texts()
        visitor.page.keyboard.press("Escape")
        return [" ".join(text.split()) for text in found]

    page.click("nav [data-view-of=train]")
    page.set_input_files("#train-form input[type=file]", str(data))
    expect(page.locator("#library li")).to_contain_text(["numbers"])
    page.wait_for_selector("[name=source]:checked")
    page.fill("#train-name", "hats")
    page.click("#train-form [type=submit]")
    expect(page.locator("#library li")).to_contain_text(["hats", "numbers"])
    page.wait_for_selector("#job :text('Done')")
    expect(page.locator("#library li").first).to_contain_text("on disk")
    assert serious_violations(page) == []
    assert choices(other) == ["Fake"]

    page.click("nav [data-view-of=train]")
    share = page.get_by_label("Share with everybody on this server: hats")
    share.check()
    expect(share).to_be_checked()
    expect(share).to_be_focused()
    until(lambda: choices(other) == ["Fake", "hats shared by someone else"])

    page.get_by_label("Rename: hats").click()
    page.get_by_label("New name").fill("?!")
    page.get_by_label("New name").press("Enter")
    expect(page.locator("#library .refused")).to_contain_text("The name is empty.")
    expect(page.get_by_label("New name")).to_have_value("?!")
    page.get_by_label("New name").fill("Ann's hats")
    page.get_by_label("New name").press("Enter")
    expect(page.locator("#library li").first).to_contain_text("Ann s hats")
    expect(page.locator("#job h2")).to_have_text("Ann s hats")
    until(lambda: choices(other) == ["Fake", "Ann s hats shared by someone else"])
    other.page.click("nav [data-view-of=train]")
    other.page.wait_for_selector("#train-form [name=source]", state="attached")
    assert other.page.locator("#library").is_hidden(), "expected only one's own models there"

    page.get_by_label("Share with everybody on this server: numbers").check()
    other.page.reload()
    expect(other.page.locator("#train-sources")).to_contain_text("numbers")
    page.set_input_files("#train-form input[type=file]", str(data))
    expect(page.locator(".toast")).to_contain_text("the new one is private until you share it")
    expect(page.get_by_label("Share with everybody on this server: numbers")).not_to_be_checked()
    page.get_by_label("Delete: Ann s hats").click()
    expect(page.locator("#sheet")).to_contain_text("kB on disk")
    page.click("#sheet .keep")
    expect(page.get_by_label("Delete: Ann s hats")).to_be_focused()
    page.get_by_label("Delete: Ann s hats").click()
    page.click("#sheet .danger")
    expect(page.locator("#library li")).to_contain_text(["numbers"])
    expect(page.locator("#job h2")).to_have_count(0)
    assert choices(visitor) == choices(other) == ["Fake"]
    page.click("nav [data-view-of=train]")
    page.get_by_label("Delete: numbers").click()
    page.click("#sheet .danger")
    expect(page.locator("#library")).to_be_hidden()
    other.close()
    assert not other.errors


def test_a_list_that_cannot_be_read_is_not_requested_again_and_again(visit):
    page = visit().page
    requested = []

    def fail(route):
        requested.append(route)
        route.fulfill(status=500, json={"error": "It went wrong."})

    page.route("**/vqa/requests/library", fail)
    page.click("nav [data-view-of=train]")
    expect(page.locator(".toast")).to_have_text("It went wrong.")
    page.wait_for_timeout(500)
    assert len(requested) <= 3
