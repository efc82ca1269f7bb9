"""The models to choose from: their keys, downloads and loading."""

from __future__ import annotations

import json

import pytest

from tests import fake_hub
from tests.fake_engine import FakeEngine
from tests.ui.harness import ChatHarness
from ui.chat.model_picker import pick_model
from vqa_app.checkpoints import catalogue
from vqa_app.checkpoints.hub_models import CATALOGUE
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest
from vqa_app.errors import ModelError, UsageError
from vqa_app.serving import model_choices
from vqa_app.serving.downloads import download_model
from vqa_app.serving.engine_pool import LoadingCancelled, ModelChoice
from vqa_app.serving.redact import redact_paths


def test_keys_do_not_reveal_paths(tmp_path):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    (tmp_path / "runs" / "unfinished").mkdir()
    start = model_choices.choice_from_options("/secret/model", "/secret/adapter", "4bit")
    offered = list(model_choices.available_choices(start, tmp_path / "runs"))
    assert [choice.label for choice in offered[:3]] == ["model + adapter", "Built-in", "mine"]
    shown = json.dumps([(c.key, c.label, c.detail, c.group) for c in offered])
    assert "secret" not in shown
    assert str(tmp_path) not in shown
    assert len({choice.key for choice in offered}) == len(offered) > 5


def test_downloaded_models_are_listed_first(tmp_path, monkeypatch):
    names = [entry.name for entry in CATALOGUE]
    monkeypatch.setattr(catalogue, "is_cached", lambda name: name == names[-1])
    model_choices.forget_downloaded()
    found = [
        c
        for c in model_choices.available_choices(model_choices.BUILTIN, tmp_path)
        if c.source in names
    ]
    model_choices.forget_downloaded()
    assert [(choice.group, choice.here) for choice in found] == [
        ("Downloaded", True), *[("To download", False)] * (len(names) - 1)
    ]  # fmt: skip
    assert found[0].source == names[-1]


def test_hub_models_can_be_added_only_if_allowed(tmp_path):
    harness = ChatHarness(tmp_path, {"first": FakeEngine()})
    with pytest.raises(ModelError, match="cannot be added by id"):
        list(pick_model(harness.service, "ann", {"named": "owner/name"}))
    harness.service.allow_any_model = True
    for bad in ("/etc/passwd", "../../x", "owner/../x", "name", "a/b/c"):
        with pytest.raises(UsageError, match="hub id"):
            list(pick_model(harness.service, "ann", {"named": bad}))
    harness.close()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with fake_hub.serve(monkeypatch, tmp_path / "cache") as served:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"x" * 300_000)
        served.repositories["owner/name"] = folder
        yield served


def test_a_download_reports_its_progress(hub):
    reports = []
    download_model("owner/name", lambda message, share=None: reports.append((message, share)))
    assert any(share == 1.0 for _, share in reports), reports
    assert any("MB" in message for message, _ in reports)


def test_a_download_can_be_cancelled(hub):
    def stop(message, share=None):
        if share is not None:
            raise LoadingCancelled

    with pytest.raises(LoadingCancelled):
        download_model("owner/name", stop)


def listed(name, **changes):
    return ModelChoice("hub-1", "Name", "", model_choices.TO_DOWNLOAD, name, here=False, **changes)


def test_a_hub_model_is_never_downloaded_without_a_confirmation(hub):
    with pytest.raises(ModelError, match=r"owner/name is not downloaded\.\nChoose it in the list"):
        model_choices.load_engine(listed("owner/name"), lambda *_: None)
    assert not hub.requests


def test_a_confirmed_hub_model_is_downloaded_then_loaded_from_the_cache(hub, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "vqa_app.checkpoints.loader.load_model",
        lambda name, *_, offline, check: loaded.append((name, offline)),
    )
    monkeypatch.setattr("vqa_app.engine.local.LocalEngine", lambda loaded: None)
    model_choices.load_engine(listed("owner/name", download=True), lambda *_: None)
    assert loaded == [("owner/name", True)]
    assert "model.safetensors" in hub.downloads
    requests = len(hub.requests)
    model_choices.load_engine(listed("owner/name"), lambda *_: None)
    assert loaded == [("owner/name", True)] * 2
    assert len(hub.requests) == requests, "the second time, the cache has it"


def test_the_base_of_a_run_is_not_downloaded_without_a_confirmation(hub, tmp_path):
    for name, base in (("first", "owner/name"), ("second", str(tmp_path / "first"))):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, Manifest("lora", Base(base, "f"), "p"))
    run = ModelChoice("run-1", "Run", "", "Trained here", str(tmp_path / "second"))
    assert model_choices.hub_name(run) == "owner/name"
    with pytest.raises(ModelError, match="owner/name is not downloaded"):
        model_choices.load_engine(run, lambda *_: None)
    assert not hub.requests


def test_a_run_trained_in_4_bits_is_loaded_in_4_bits(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "vqa_app.checkpoints.loader.load_model", lambda *values, **_: given.append(values)
    )
    monkeypatch.setattr("vqa_app.engine.local.LocalEngine", lambda loaded: None)
    for kind in ("lora", "qlora"):
        write_manifest(tmp_path, Manifest(kind, Base("a/b", "f"), "p"))
        run = ModelChoice("run", "Run", "", "Trained here", str(tmp_path))
        model_choices.load_engine(run, lambda *_: None)
    assert [quantize for *_, quantize, _ in given] == [None, "4bit"]


def test_messages_about_the_command_line_model_name_no_folder():
    model_choices.choice_from_options("/srv/my models/cats", None, None)
    assert redact_paths("/srv/my models/cats holds no model.") == "cats holds no model."
