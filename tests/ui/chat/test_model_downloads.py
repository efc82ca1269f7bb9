"""Downloads of models from the page: only after a confirmation; and deletions by the operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fake_hub, fake_xet
from tests.fake_engine import FakeEngine
from tests.fake_hub import FakeHub
from tests.ui.harness import ChatHarness, in_english
from tests.vqa_app.checkpoints.test_installed import install
from tests.waiting import PATIENCE, until
from ui.chat.comparison import compare_models
from ui.chat.model_downloads import handle_models
from ui.chat.model_picker import pick_model
from ui.chat.unknown_pictures import is_unknown_picture
from vqa_app.checkpoints.hub_models import RECOMMENDED
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest
from vqa_app.engine.protocol import Answer, Engine
from vqa_app.errors import ModelError, UsageError
from vqa_app.serving import downloads, model_choices
from vqa_app.serving.engine_pool import EnginePool, LoadProgress, ModelChoice

SMALL, LARGE = "HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen3.5-0.8B"
GB = 10**9


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub.serve(monkeypatch, tmp_path / "cache") as served:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"x" * 3000)
        served.repositories = {SMALL: folder, LARGE: folder}
        yield served


class DownloadHarness(ChatHarness):
    """The chat service with the built-in model, faked, and the two models of the fake hub."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.built_in, self.from_hub = FakeEngine("I do not know this kind of picture."), {}
        super().__init__(folder, {"builtin": self.built_in})
        self.pool = EnginePool(self._load, self._choices, "builtin")
        self.service.pool = self.pool
        self.service.may_delete_models = lambda owner: owner == "ann"

    def _choices(self) -> list[ModelChoice]:
        model_choices.forget_downloaded()
        return [model_choices.BUILTIN, *(c for c in model_choices._catalogue())]

    def _load(self, chosen: ModelChoice, progress: LoadProgress) -> Engine:
        """Download as `load_engine` does, and return a fake engine in place of the model."""
        if chosen.source == "builtin":
            return self.built_in
        if chosen.download:
            downloads.download_model(chosen.source, progress)
        else:
            model_choices.check_downloaded(chosen.source)
        return self.from_hub.setdefault(chosen.source, FakeEngine(f"{chosen.label} sees a cat."))

    def key(self, name: str) -> str:
        return next(choice.key for choice in self.pool.choices() if choice.source == name)

    def models(self, do: str, owner: str = "ann", **request: Any) -> Any:
        return handle_models(self.service, owner, {"do": do, **request})


@pytest.fixture
def harness(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("vqa_app.devices.free_memory", lambda device: 64 * GB)
    found = DownloadHarness(tmp_path / "data")
    yield found
    found.close()


def weights(hub: FakeHub) -> int:
    return hub.downloads.count("model.safetensors")


# -- before a download -----------------------------------------------------------------------------


def test_a_model_is_described_with_the_size_that_the_hub_gives(harness, hub):
    hub.sizes["model.safetensors"] = 600_000_000
    shown = harness.models("describe", model=harness.key(SMALL))["model_described"]
    assert (shown["name"], shown["here"], shown["possible"]) == (SMALL, False, True)
    assert shown["size"] == 600_000_000
    assert shown["disk"] > 0
    assert shown["memory_free"] == 64 * GB
    assert 0.5 * GB < shown["memory"] < 1.3 * GB
    assert in_english(shown["licence"]) == "Apache 2.0"
    assert "smallest download" in in_english(shown["note"])
    assert shown["problems"] == []
    assert weights(hub) == 0


def test_published_figures_and_a_missing_package_are_told(harness, hub, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    name = "LiquidAI/LFM2.5-VL-450M"
    hub.repositories[name] = hub.repositories[SMALL]
    shown = harness.models("describe", model=harness.key(name))["model_described"]
    assert in_english(shown["figures"]).startswith("RealWorldQA 58.4")
    assert in_english(shown["figures_source"]) == "its model card"
    assert "10 million dollars" in in_english(shown["licence"])
    assert "torchvision" in in_english(shown["problems"])
    assert not shown["possible"]


def test_too_little_disk_prevents_a_download_and_too_little_memory_warns(harness, hub, monkeypatch):
    monkeypatch.setattr("vqa_app.checkpoints.source.free_cache_space", lambda: 10)
    shown = harness.models("describe", model=harness.key(SMALL))["model_described"]
    assert "not enough space" in in_english(shown["problems"])
    assert not shown["possible"]
    monkeypatch.undo()


def test_too_little_memory_is_a_warning(harness, hub, monkeypatch):
    monkeypatch.setattr("vqa_app.devices.free_memory", lambda device: 1000)
    shown = harness.models("describe", model=harness.key(SMALL))["model_described"]
    assert "too little free memory" in in_english(shown["problems"])
    assert shown["possible"]


def test_without_the_hub_the_page_says_what_to_do(harness, monkeypatch):
    fake_hub.use(monkeypatch, "http://127.0.0.1:9", Path("/nowhere"))
    shown = harness.models("describe", model=harness.key(SMALL))["model_described"]
    assert "The hub cannot be reached" in in_english(shown["problems"])
    assert "hub cache" in in_english(shown["problems"])
    assert not shown["possible"]
    assert shown["size"] == 520_000_000, "as the catalogue says"


def test_a_gated_model_says_where_to_accept_its_licence(harness, hub):
    hub.repositories[SMALL] = (403, "GatedRepo")
    shown = harness.models("describe", model=harness.key(SMALL))["model_described"]
    assert "its licence must be accepted first" in in_english(shown["problems"])
    assert not shown["possible"]


def test_models_by_hub_id_are_described_only_where_they_may_be_added(harness, hub):
    with pytest.raises(ModelError, match="cannot be added by id"):
        harness.models("describe", named=SMALL)
    harness.service.allow_any_model = True
    assert harness.models("describe", named=SMALL)["model_described"]["size"] == 3000
    with pytest.raises(UsageError, match="not a hub id"):
        harness.models("describe", named="../../etc")


def test_unknown_actions_and_models_are_refused(harness):
    with pytest.raises(UsageError, match="Unknown request"):
        harness.models("format")
    with pytest.raises(ModelError, match="not available here"):
        harness.models("describe", model="hub-forged")


# -- nothing is fetched without a confirmation -----------------------------------------------------


@pytest.mark.parametrize("forged", [{}, {"download": False}, {"download": "yes"}, {"download": 1}])
def test_forged_requests_download_nothing(harness, hub, forged):
    key = harness.key(SMALL)
    digest = harness.picture()
    with pytest.raises(ModelError, match="is not downloaded"):
        list(pick_model(harness.service, "ann", {"model": key, **forged}))
    asked = {"models": ["builtin", key], "question": "What?", **forged}
    first, second = list(compare_models(harness.service, "ann", asked))[-1]["compared"]
    assert (first["state"], second["state"]) == ("answered", "failed")
    assert "is not downloaded" in in_english(second["message"])
    _, view = harness.ask("What is it?", pictures=[digest], model=key, **forged)
    assert "is not downloaded" in view["turns"][-1]["facts"]["error"]
    harness.service.allow_any_model = True
    with pytest.raises(ModelError, match="is not downloaded"):
        list(pick_model(harness.service, "ann", {"named": LARGE, **forged}))
    assert weights(hub) == 0
    assert harness.service.settings("ann").model is None


def test_a_chosen_model_whose_files_were_deleted_is_not_fetched_again(harness, hub):
    harness.service.save_settings("ann", {"model": harness.key(SMALL)})
    assert harness.service.engine_for("ann") is None
    _, view = harness.ask("What is it?")
    assert "its size is shown before" in view["turns"][-1]["facts"]["error"]
    assert weights(hub) == 0


def test_a_confirmed_choice_is_downloaded_and_answers(harness, hub):
    updates = list(
        pick_model(harness.service, "ann", {"model": harness.key(SMALL), "download": True})
    )
    assert updates[-1]["models"]["picked"] == harness.key(SMALL)
    assert weights(hub) == 1
    listed = {one["key"]: one for one in updates[-1]["models"]["choices"]}
    assert listed[harness.key(SMALL)]["downloaded"]


# -- a question about a photograph -----------------------------------------------------------------


def test_a_refusal_is_marked_and_a_good_answer_is_not(harness):
    digest = harness.picture()
    _, view = harness.ask("What is it?", pictures=[digest])
    assert view["turns"][0]["facts"]["unknown_picture"]
    harness.built_in.answer = "It is a red circle."
    _, view = harness.ask("And now?", conversation=view["conversation"])
    assert "unknown_picture" not in view["turns"][1]["facts"]
    harness.built_in.answer = "Unknown"
    _, view = harness.ask("Hello?")
    assert "unknown_picture" not in view["turns"][0]["facts"], "there is no picture"


@pytest.mark.parametrize(
    ("text", "confidence", "calibrated", "finish", "unknown"),
    [
        ("I do not know this kind of picture.", 0.99, True, "stop", True),
        ("unknown", 0.99, True, "stop", True),
        ("Red.", 0.1, True, "stop", True),
        ("Red.", 0.1, False, "stop", False),
        ("Red.", 0.9, True, "stop", False),
        ("I do not know this kind", 0.1, True, "cancelled", False),
    ],
)
def test_what_counts_as_not_knowing_the_picture(text, confidence, calibrated, finish, unknown):
    answer = Answer(text, finish, 9, 4, 0, 3, 0.1, 20.0, confidence, calibrated=calibrated)
    assert is_unknown_picture(model_choices.BUILTIN, answer) == unknown
    other = ModelChoice("hub-1", "Other", "", "Downloaded", SMALL)
    assert not is_unknown_picture(other, answer)


def test_another_model_that_says_the_same_is_not_marked(harness, hub):
    key = harness.key(SMALL)
    harness.from_hub[SMALL] = FakeEngine("Unknown.")
    digest = harness.picture()
    _, view = harness.ask("What is it?", pictures=[digest], model=key, download=True)
    assert view["turns"][0]["facts"]["model"] == "SmolVLM-256M-Instruct"
    assert "unknown_picture" not in view["turns"][0]["facts"]


def test_the_same_question_is_answered_in_the_same_chat_after_the_download(harness, hub):
    digest = harness.picture()
    _, view = harness.ask("What is it?", pictures=[digest])
    chat, turn = view["conversation"], view["turns"][0]
    suggested = harness.models("suggest")["model_described"]
    assert suggested["name"] == LARGE, "the first recommended one"
    asked = {"again": turn["id"], "conversation": chat, "model": suggested["key"]}
    updates, view = harness.ask("", **asked, keep=True, download=True)
    assert "models" in updates[1], "the picker shows the progress, too"
    assert view["conversation"] == chat
    (again,) = view["turns"]
    assert (again["question"], again["branches"]["of"]) == ("What is it?", 2)
    assert again["answer"] == "Qwen3.5-0.8B sees a cat."
    _, view = harness.ask("And what else?", conversation=chat)
    assert view["turns"][1]["facts"]["model"] == "Qwen3.5-0.8B", "it answers from now on"


def test_a_refused_choice_of_a_model_leaves_no_question_without_an_answer(harness, hub):
    _, view = harness.ask("What is it?")
    harness.store.save_settings("ann", {"model": "deleted"})
    asked = {"again": view["turns"][0]["id"], "conversation": view["conversation"]}
    with pytest.raises(ModelError, match="not available"):
        harness.ask("", **asked, keep=True)
    (turn,) = harness.service.view("ann", view["conversation"])["turns"]
    assert (turn["state"], turn["branches"]["of"]) == ("answered", 1)


def test_another_model_for_one_answer_does_not_stay(harness, hub):
    _, view = harness.ask("What is it?")
    asked = {"again": view["turns"][0]["id"], "conversation": view["conversation"]}
    _, view = harness.ask("", **asked, model=harness.key(SMALL), download=True)
    assert view["turns"][0]["facts"]["model"] == "SmolVLM-256M-Instruct"
    _, view = harness.ask("More?", conversation=view["conversation"])
    assert in_english(view["turns"][1]["facts"]["model"]) == "Built-in"


def test_stopping_the_answer_stops_its_download(harness, monkeypatch):
    asked = iter(harness.service.ask(
        "ann", {"question": "What?", "model": harness.key(SMALL), "download": True}
    ))  # fmt: skip

    with fake_xet.use(monkeypatch) as xet:
        chat = next(asked)["view"]["conversation"]
        until(lambda: xet.attempts)
        harness.service.stop("ann", chat)
        *_, last = asked
        assert last["view"]["turns"][0]["state"] == "stopped"
        with pytest.raises(ModelError, match="was cancelled"):
            harness.pool.wait(harness.key(SMALL), PATIENCE)
        assert xet.aborts


def test_a_model_on_this_machine_is_suggested_and_needs_no_download(harness, hub, tmp_path):
    list(pick_model(harness.service, "ann", {"model": harness.key(SMALL), "download": True}))
    suggested = harness.models("suggest")["model_described"]
    assert (suggested["key"], suggested["here"]) == (harness.key(SMALL), True)
    assert {one["key"] for one in suggested["others"]} >= {harness.key(SMALL), harness.key(LARGE)}


def test_the_smallest_is_suggested_where_no_other_fits(harness, monkeypatch):
    monkeypatch.setattr("vqa_app.devices.free_memory", lambda device: 1000)
    assert harness.models("suggest")["model_described"]["name"] == RECOMMENDED[-1]


# -- models on this machine ------------------------------------------------------------------------


def test_installed_models_are_listed_with_size_and_use(harness, tmp_path):
    install(tmp_path / "cache", SMALL, 5000)
    install(tmp_path / "cache", "openai/whisper", 9000)
    found = harness.models("installed", owner="bob")["installed"]
    (model,) = found["models"]
    assert (model["name"], model["size"], model["complete"]) == (SMALL, 5000, True)
    assert model["used"] > 1e9
    assert not found["may_delete"]
    assert harness.models("installed")["installed"]["may_delete"]


def test_only_the_operator_deletes_models(harness, tmp_path):
    folder = install(tmp_path / "cache", SMALL, 5000)
    with pytest.raises(UsageError, match="Only the operator"):
        harness.models("delete", owner="bob", model=harness.key(SMALL))
    assert folder.exists()
    assert harness.models("delete", model=harness.key(SMALL))["installed"]["models"] == []
    assert not folder.exists()


def test_an_idle_model_is_released_and_deleted(harness, hub, tmp_path):
    list(pick_model(harness.service, "ann", {"model": harness.key(SMALL), "download": True}))
    harness.models("delete", model=harness.key(SMALL))
    assert harness.from_hub[SMALL].closed
    assert harness.models("installed")["installed"]["models"] == []


def test_a_model_in_use_is_not_deleted(harness, hub, tmp_path):
    key = harness.key(SMALL)
    list(pick_model(harness.service, "ann", {"model": key, "download": True}))
    with harness.pool.lease(key), pytest.raises(UsageError, match="using this model"):
        harness.models("delete", model=key)
    harness.service.trained_model = lambda: harness.pool.find(key)
    with pytest.raises(UsageError, match="current training uses this model"):
        harness.models("delete", model=key)
    assert len(harness.models("installed")["installed"]["models"]) == 1


@pytest.mark.parametrize("start", [SMALL, "run"])
def test_the_reason_to_keep_the_servers_own_model_is_named(harness, tmp_path, start):
    folder = install(tmp_path / "cache", SMALL, 5000)
    run = tmp_path / "hats"
    run.mkdir()
    write_manifest(run, Manifest("lora", Base(SMALL, "0"), "0"))
    source = str(run) if start == "run" else SMALL
    key, others = harness.key(SMALL), harness.pool.choices()
    started = ModelChoice("start", "hats", "", "Started with", source)
    harness.pool._choices = lambda: [started, *others]
    harness.pool.default = "start"
    with pytest.raises(UsageError) as refusal:
        harness.models("delete", model=key)
    expected = "started with, hats, needs" if start == "run" else "was started with this model"
    assert expected in refusal.value.problem
    assert "while the server runs" in refusal.value.hint
    assert folder.exists()


def test_only_downloaded_models_can_be_deleted(harness):
    with pytest.raises(ModelError, match="Only downloaded models"):
        harness.models("delete", model="builtin")
    with pytest.raises(ModelError, match="not on this machine"):
        harness.models("delete", model=harness.key(SMALL))
