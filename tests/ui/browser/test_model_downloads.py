"""From a refusal to an answer: the confirmation, the download and the models on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fake_hub
from tests.fake_engine import FakeEngine
from tests.ui.browser.conftest import Visitor, expect
from tests.ui.server import running
from vqa_app.engine.protocol import Engine
from vqa_app.serving import downloads, model_choices
from vqa_app.serving.engine_pool import LoadProgress, ModelChoice

REFUSAL = "I do not know this kind of picture."
SHOTS = os.environ.get("VQA_SHOTS")
"""A folder for screenshots to look at."""


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[fake_hub.FakeHub]:
    with fake_hub.serve(monkeypatch, tmp_path / "cache") as served:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"x" * 300_000)
        for name in ("Qwen/Qwen3.5-0.8B", "HuggingFaceTB/SmolVLM-256M-Instruct"):
            served.repositories[name] = folder
        yield served


@pytest.fixture
def visitor(browser, contexts, hub, tmp_path, monkeypatch) -> Iterator[Visitor]:
    """Open the page of a server with the built-in model, faked, and the fake hub's models."""
    monkeypatch.setattr("vqa_app.devices.free_memory", lambda device: 16 * 10**9)

    def load(chosen: ModelChoice, progress: LoadProgress) -> Engine:
        if chosen.source == "builtin":
            return FakeEngine(REFUSAL)
        if chosen.download:
            downloads.download_model(chosen.source, progress)
            model_choices.forget_downloaded()
        else:
            model_choices.check_downloaded(chosen.source)
        return FakeEngine("A cheetah looks to the left.")

    def choices() -> Iterator[ModelChoice]:
        return model_choices.available_choices(model_choices.BUILTIN, Path("/nowhere"))

    model_choices.forget_downloaded()
    with running({}, tmp_path / "data", load=load, choices=choices) as server:
        server.application.service.may_delete_models = lambda owner: True
        found = Visitor(browser, server.address, contexts)
        found.open()
        yield found
        found.close()
        assert not found.errors
        assert not found.outside
    model_choices.forget_downloaded()


def shot(visitor: Visitor, name: str) -> None:
    if SHOTS:
        visitor.page.screenshot(path=f"{SHOTS}/{name}.png")


def weights(hub: fake_hub.FakeHub) -> int:
    return hub.downloads.count("model.safetensors")


def test_a_refusal_leads_to_the_answer_of_another_model(visitor, hub, pictures):
    page, sheet = visitor.page, visitor.page.locator("#sheet")
    shot(visitor, "1-first-screen")
    visitor.attach(pictures[0])
    visitor.ask("What is it?")
    expect(visitor.answers).to_have_text(REFUSAL)
    shot(visitor, "2-refusal")
    page.get_by_role("button", name="Ask a model that knows photographs").click()
    expect(sheet).to_contain_text("Qwen/Qwen3.5-0.8B")
    for words in ("are free on the disk", "Apache 2.0", "MMBench 68.0", "its model card"):
        expect(sheet).to_contain_text(words)
    shot(visitor, "3-confirmation")
    sheet.get_by_role("button", name="Cancel").click()
    assert weights(hub) == 0
    expect(visitor.answers).to_have_text(REFUSAL)

    page.get_by_role("button", name="Ask a model that knows photographs").click()
    sheet.get_by_role("combobox").select_option(label="SmolVLM-256M-Instruct, 520 MB")
    expect(sheet).to_contain_text("HuggingFaceTB/SmolVLM-256M-Instruct")
    assert weights(hub) == 0
    sheet.get_by_role("button", name="Download").click()
    expect(visitor.answers).to_have_text("A cheetah looks to the left.")
    expect(visitor.questions).to_have_text("What is it?")
    expect(page.locator(".branches")).to_contain_text("2 / 2")
    expect(page.locator("#model-name")).to_have_text("SmolVLM-256M-Instruct")
    assert weights(hub) == 1
    shot(visitor, "4-answer")

    page.get_by_label("Answer with another model").click()
    shot(visitor, "5-another-model")
    sheet.get_by_role("button", name="Built-in").click()
    expect(page.locator(".branches")).to_contain_text("3 / 3")
    expect(visitor.answers).to_have_text(REFUSAL)
    page.get_by_role("button", name="Ask a model that knows photographs").click()
    expect(page.locator(".branches")).to_contain_text("4 / 4")
    assert weights(hub) == 1, "it is on this machine, so nothing is asked or fetched"


def test_a_click_on_the_list_shows_the_size_first_and_models_are_deleted(visitor, hub):
    page, sheet = visitor.page, visitor.page.locator("#sheet")
    page.click("#model")
    page.get_by_role("option", name="SmolVLM-256M-Instruct").click()
    expect(sheet).to_contain_text("HuggingFaceTB/SmolVLM-256M-Instruct")
    assert weights(hub) == 0
    sheet.get_by_role("button", name="Download").click()
    expect(page.locator("#model-name")).to_have_text("SmolVLM-256M-Instruct")
    page.click("#model")
    page.get_by_role("option", name="Built-in").click()
    expect(page.locator("#model-name")).to_have_text("Built-in")
    page.click("#model")
    page.get_by_role("button", name="Models on this machine").click()
    expect(sheet).to_contain_text("last used on")
    shot(visitor, "6-installed")
    sheet.get_by_label("Delete HuggingFaceTB/SmolVLM-256M-Instruct").click()
    shot(visitor, "7-delete")
    sheet.get_by_role("button", name="Delete").click()
    expect(sheet).to_contain_text("No downloaded model")


def test_a_late_reply_about_another_model_is_not_shown(visitor, hub):
    """Else its size and licence would stand above the button that downloads this model."""
    page, sheet = visitor.page, visitor.page.locator("#sheet")
    page.click("#model")
    page.get_by_role("option", name="SmolVLM-256M-Instruct").click()
    expect(sheet.get_by_role("button", name="Download")).to_be_visible()
    late = {"here": False, "name": "a/other", "problems": [], "possible": True}
    for about in ({"key": "other"}, {"key": "other", "named": "a/other"}):
        page.evaluate("(model) => vqa.emit('model_described', model)", {**late, **about})
        expect(sheet).to_contain_text("HuggingFaceTB/SmolVLM-256M-Instruct")
        expect(sheet).not_to_contain_text("a/other")


def test_the_first_screen_offers_a_model_for_photographs(visitor, hub):
    page, sheet = visitor.page, visitor.page.locator("#sheet")
    page.locator("#photographs").click()
    sheet.get_by_role("button", name="Download").click()
    expect(page.locator("#model-name")).to_have_text("Qwen3.5-0.8B")
    expect(page.locator("#photographs")).to_be_hidden()


def test_without_the_hub_the_page_says_what_to_do(visitor, monkeypatch):
    fake_hub.use(monkeypatch, "http://127.0.0.1:9", Path("/nowhere"))
    page, sheet = visitor.page, visitor.page.locator("#sheet")
    page.locator("#photographs").click()
    expect(sheet.get_by_role("alert")).to_contain_text("The hub cannot be reached")
    expect(sheet.get_by_role("button", name="Download")).to_have_count(0)
    shot(visitor, "8-offline")
