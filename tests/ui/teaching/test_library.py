"""Models and data sets belong to whoever made them, and can be shared, renamed and deleted."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fake_engine import FakeEngine
from tests.ui.harness import ChatHarness, in_english
from tests.waiting import PATIENCE, until
from ui.chat.attention_view import explain_answer
from ui.chat.comparison import compare_models
from ui.chat.conversation_actions import handle_action
from ui.chat.model_picker import model_list, pick_model
from ui.storage.database import Store
from ui.teaching import before_after
from ui.teaching.library import Library
from ui.teaching.taught_rows import TaughtRowStore
from ui.teaching.training import TrainingService, Upload
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest
from vqa_app.errors import DataError, ModelError, UsageError, VqaError
from vqa_app.serving.engine_pool import EnginePool
from vqa_app.serving.model_choices import BUILTIN, available_choices

ROWS = b"question,answer\nWhat?,one\n"


def finish_run(folder: Path, base: str = "builtin", kind: str = "lora") -> None:
    """Write what makes a run a finished model."""
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 1000)
    write_manifest(folder, Manifest(kind, Base(base, "fingerprint"), "hash"))


class Server:
    """The services behind the page, with a fake trainer and fake engines."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.harness = ChatHarness(folder, {"builtin": FakeEngine("built-in")})
        self.engines: dict[str, FakeEngine] = {}
        self.finish_training = threading.Event()
        self.finish_training.set()
        self.service, self.store = self.harness.service, self.harness.store
        self.service.runs = self.runs
        self.pool = self.service.pool = self.harness.pool = EnginePool(
            self._load, lambda: available_choices(BUILTIN, self.runs), "builtin"
        )
        rows = TaughtRowStore(folder / "taught", self.harness.picture_store)
        self.training = TrainingService(folder, self.service, rows, self._train)
        self.library = Library(self.training)

    def _load(self, choice, progress):
        engine = self.engines.setdefault(choice.source, FakeEngine(f"says {choice.label}"))
        return engine.reopen()

    def _train(self, config, on_progress, cancel):
        while not self.finish_training.wait(0.01):
            if cancel.is_set():
                return SimpleNamespace(finished=False)
        base = config.model if config.model == "builtin" else str(Path(config.model).absolute())
        finish_run(Path(config.out), base)
        return SimpleNamespace(finished=True)

    def train(self, owner="ann", name="hats", base=None) -> str:
        """Train a model of an owner; return its key."""
        self.start(owner, name, base)
        self.training.job.thread.join(PATIENCE)
        return self.training.status(owner)["training"]["job"]["key"]

    def start(self, owner="ann", name="hats", base=None) -> None:
        if not self.training.taught_rows.count(owner):
            self.training.taught_rows.add(owner, "What?", "this", [])
        self.training.start(owner, {"sources": ["mine"], "name": name, "model": base})

    def ask(self, owner="ann", **request):
        return self.library.handle(owner, request)["library"]

    def labels(self, owner) -> list[str]:
        """Return the models that an owner can choose."""
        return [
            in_english(choice["label"])
            for choice in model_list(self.service, owner)["models"]["choices"]
            if choice["key"] == "builtin" or choice["key"].startswith("run-")
        ]

    def close(self) -> None:
        self.finish_training.set()
        self.training.close()
        if self.training.job:
            self.training.job.thread.join(PATIENCE)
        self.harness.close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(before_after, "compare", lambda *_: None)
    server = Server(tmp_path)
    yield server
    server.close()


def test_a_trained_model_is_its_owners_alone_until_it_is_shared(server):
    server.train()
    assert server.labels("ann") == ["Built-in", "hats"]
    assert server.labels("bob") == ["Built-in"]
    server.ask(do="share", kind="run", name="hats", shared=True)
    assert server.labels("bob") == ["Built-in", "hats"]
    shared = {
        who: model_list(server.service, who)["models"]["choices"][1]["shared"]
        for who in ("ann", "bob")
    }
    assert shared == {"ann": "by me", "bob": "by others"}
    server.ask(do="share", kind="run", name="hats", shared=False)
    assert server.labels("bob") == ["Built-in"]


@pytest.mark.parametrize(
    "use",
    [
        lambda server, key: list(pick_model(server.service, "bob", {"model": key})),
        lambda server, key: list(
            compare_models(server.service, "bob", {"models": ["builtin", key], "question": "?"})
        ),
        lambda server, key: server.start("bob", "mine", key),
        lambda server, key: handle_action(
            server.service, "bob", {"do": "cancel-load", "model": key}
        ),
    ],
)
def test_another_owners_model_cannot_be_used_by_naming_it(server, use):
    key = server.train()
    with pytest.raises(ModelError, match="not available here") as foreign:
        use(server, key)
    with pytest.raises(ModelError) as missing:
        use(server, "run-000000000000")
    assert str(foreign.value) == str(missing.value), "expected nothing that tells it exists"


def test_a_model_that_is_no_longer_shared_answers_others_no_more(server):
    key = server.train()
    server.ask(do="share", kind="run", name="hats", shared=True)
    list(pick_model(server.service, "bob", {"model": key}))
    _, view = server.harness.ask("What?", owner="bob")
    assert view["turns"][0]["answer"] == "says hats"
    server.ask(do="share", kind="run", name="hats", shared=False)
    _, view = server.harness.ask("What?", owner="bob")
    assert view["turns"][0]["state"] == "failed"
    assert "not available" in view["turns"][0]["facts"]["error"]
    turn = {"conversation": view["conversation"], "turn": view["turns"][0]["id"]}
    with pytest.raises(VqaError):
        explain_answer(server.service, "bob", turn)
    assert server.training.status("bob")["training"]["base"] == "builtin"
    assert model_list(server.service, "bob")["models"]["picked"] == "builtin"
    _, view = server.harness.ask("What?", owner="bob")
    assert view["turns"][0]["answer"] == "says Built-in"


def test_a_model_is_renamed_everywhere(server):
    key = server.train()
    listed = server.ask(do="rename", kind="run", name="hats", title="  Ann's/hats & caps ")
    assert [run["label"] for run in listed["run"]] == ["Ann s hats caps"]
    assert server.labels("ann") == ["Built-in", "Ann s hats caps"]
    assert server.training.status("ann")["training"]["job"]["name"] == "Ann s hats caps"
    assert server.train(name="other", base=key), "expected the renamed model to be trainable"
    for title in ("", " / ", "x" * 61, None):
        with pytest.raises(UsageError, match="name is"):
            server.ask(do="rename", kind="run", name="hats", title=title)


def test_names_that_windows_keeps_for_devices_are_changed(server):
    server.training.upload("ann", ROWS, "aux.csv")
    (data,) = server.ask(do="list")["data"]
    assert data["label"] == "aux_"
    (data,) = server.ask(do="rename", kind="data", name=data["name"], title="Con")["data"]
    assert data["label"] == "Con_"
    server.train(name="nul")
    assert (server.runs / "nul_").is_dir()


def test_paths_leave_room_for_the_data_folder_on_windows(server):
    """A path has at most 259 characters there, with the data folder's own some 50."""
    server.training.upload("ann", ROWS, "x" * 99 + ".csv")
    server.train(name="y" * 99)
    paths = [path.relative_to(server.folder) for path in server.folder.rglob("*")]
    assert 80 < max(len(str(path)) for path in paths) <= 180


@pytest.mark.parametrize("kind", ["run", "data"])
@pytest.mark.parametrize("action", ["rename", "share", "delete"])
def test_only_the_owner_changes_a_model_or_data_set(server, kind, action):
    server.train()
    server.training.upload("ann", ROWS, "mine.csv")
    name = server.ask(do="list")[kind][0]["name"]
    server.ask(do="share", kind=kind, name=name, shared=True)
    before = server.ask(do="list")
    assert server.ask("bob", do="list") == {"run": [], "data": []}
    for wrong in (name, "nothing", "", None, f"../uploads/{name}"):
        with pytest.raises(UsageError, match="You have no such model or data set"):
            server.ask("bob", do=action, kind=kind, name=wrong, title="x", shared=False)
    assert server.ask(do="list") == before


def test_the_list_says_what_a_deletion_frees_and_who_needs_the_files(server):
    key = server.train()
    server.train(name="caps", base=key)
    caps, hats = server.ask(do="list")["run"]
    assert hats["key"] == key
    assert hats["bytes"] > 1000
    assert (caps["needed_by"], hats["needed_by"]) == ([], ["caps"])
    finish_run(server.runs / "unlisted", str(server.runs / "hats"))
    assert server.ask(do="list")["run"][1]["needed_by"] == ["caps", None]
    shutil.rmtree(server.runs / "unlisted")
    with pytest.raises(UsageError, match="need it: caps"):
        server.ask(do="delete", kind="run", name="hats")
    server.ask(do="delete", kind="run", name="caps")
    assert server.ask(do="delete", kind="run", name="hats")["run"] == []


def test_a_file_that_a_training_deletes_meanwhile_does_not_count(server, monkeypatch):
    server.train()
    folder, walk = server.runs / "hats", os.walk

    def walk_late(top):
        for found in list(walk(top)):
            (folder / "adapter_model.safetensors").unlink(missing_ok=True)
            yield found

    monkeypatch.setattr(os, "walk", walk_late)
    (hats,) = server.ask(do="list")["run"]
    assert 0 < hats["bytes"] < 1000


def test_a_deleted_model_leaves_nothing_and_its_engine_is_released(server):
    key = server.train()
    list(pick_model(server.service, "ann", {"model": key}))
    engine = server.engines[str(server.runs / "hats")]
    server.ask(do="delete", kind="run", name="hats")
    assert engine.closed
    assert server.pool.get_loaded(key) is None
    assert not list(server.runs.iterdir())
    assert not list((server.folder / "trainings").iterdir())
    assert server.labels("ann") == ["Built-in"]
    assert model_list(server.service, "ann")["models"]["picked"] == "builtin"
    assert server.training.status("ann")["training"]["job"] is None
    server.finish_training.set()
    assert server.train("bob") is not None, "expected the name to be free again"
    assert server.labels("ann") == ["Built-in"], "expected the new model to be bob's"


def test_a_model_in_use_is_not_deleted(server):
    key = server.train()
    server.ask(do="share", kind="run", name="hats", shared=True)
    engine = server.engines[str(server.runs / "hats")] = FakeEngine("one two", hold_after=1)
    list(pick_model(server.service, "bob", {"model": key}))
    asked = threading.Thread(target=server.harness.ask, args=("What?", "bob"))
    asked.start()
    assert engine.begun.wait(PATIENCE)
    with pytest.raises(UsageError, match="Someone is using this model"):
        server.ask(do="delete", kind="run", name="hats")
    assert not engine.closed
    assert server.labels("ann") == ["Built-in", "hats"]
    engine.release()
    asked.join(PATIENCE)
    until(lambda: not server.pool._slots[key].leases)
    assert server.ask(do="delete", kind="run", name="hats")["run"] == []


def test_what_the_current_training_uses_is_not_deleted(server):
    key = server.train()
    server.training.upload("ann", ROWS, "mine.csv")
    (data,) = server.ask(do="list")["data"]
    server.ask(do="share", kind="run", name="hats", shared=True)
    server.ask(do="share", kind="data", name=data["name"], shared=True)
    server.finish_training.clear()
    (source,) = [one["key"] for one in server.training.sources("bob") if one.get("label") == "mine"]
    server.training.start("bob", {"sources": [source], "name": "caps", "model": key})
    with pytest.raises(UsageError, match="current training uses"):
        server.ask(do="delete", kind="run", name="hats")
    with pytest.raises(UsageError, match="current training uses"):
        server.ask("bob", do="delete", kind="run", name="caps")
    for action in ({"do": "delete"}, {"do": "rename", "title": "other"}):
        with pytest.raises(UsageError, match="current training reads"):
            server.ask(kind="data", name=data["name"], **action)
    with pytest.raises(UsageError, match="current training reads"):
        server.training.upload("ann", ROWS, "mine.csv")


def test_the_model_that_the_server_was_started_with_is_kept(server):
    key = server.train()
    server.pool.default = key
    with pytest.raises(UsageError, match="started with this model"):
        server.ask(do="delete", kind="run", name="hats")
    assert "hats" in server.labels("bob"), "expected the operator's choice to be everybody's"


def test_a_data_set_is_shared_renamed_and_deleted(server):
    server.training.upload("ann", ROWS, "mine.csv")
    (data,) = server.ask(do="list")["data"]
    assert (data["label"], data["shared"], data["bytes"]) == ("mine", False, len(ROWS))
    assert [one["label"] for one in server.training.sources("bob")[1:]] == []
    server.ask(do="share", kind="data", name=data["name"], shared=True)
    (data,) = server.ask(do="rename", kind="data", name=data["name"], title="numbers")["data"]
    assert (data["label"], data["shared"]) == ("numbers", True)
    (theirs,) = server.training.sources("bob")[1:]
    assert theirs["label"] == "numbers"
    checked = server.training.check("bob", {"sources": [theirs["key"]]})["preflight"]
    assert checked["rows"] == 1
    server.training.upload("ann", ROWS, "mine.csv")
    with pytest.raises(UsageError, match="already have a data set named 'numbers'"):
        server.ask(do="rename", kind="data", name=server.ask(do="list")["data"][0]["name"],
                   title="numbers")  # fmt: skip
    server.ask(do="delete", kind="data", name=data["name"])
    assert [one["label"] for one in server.ask(do="list")["data"]] == ["mine"]
    assert server.training.sources("bob")[1:] == []
    for key in (theirs["key"], f"others:{data['name']}", "others:../taught", "others:."):
        with pytest.raises(UsageError, match="no such data set"):
            server.training.check("bob", {"sources": [key]})


def test_a_data_set_that_replaces_a_shared_one_is_private(server):
    assert server.training.upload("ann", ROWS, "mine.csv") == Upload(False, unshared=False)
    assert server.training.upload("ann", ROWS, "mine.csv") == Upload(True, unshared=False)
    (data,) = server.ask(do="list")["data"]
    server.ask(do="share", kind="data", name=data["name"], shared=True)
    with pytest.raises(DataError):
        server.training.upload("ann", b"image,question,answer\n", "mine.csv")
    assert len(server.training.sources("bob")) == 2, "a refused file changes nothing"
    assert server.training.upload("ann", ROWS, "mine.csv") == Upload(True, unshared=True)
    assert server.training.sources("bob")[1:] == []
    (data,) = server.ask(do="list")["data"]
    assert (data["label"], data["shared"]) == ("mine", False)
    server.ask(do="share", kind="data", name=data["name"], shared=True)
    assert len(server.training.sources("bob")) == 2, "expected the new one to be shared on demand"


def test_runs_of_earlier_versions_stay_in_everybodys_list(tmp_path, monkeypatch):
    """Those whose owner is known can be renamed, deleted and made private by that owner."""
    database = tmp_path / "chats.sqlite"
    Store(database).close()
    with sqlite3.connect(database) as db:
        db.execute("DROP TABLE possessions")
    finish_run(tmp_path / "runs" / "by-hand")
    finish_run(tmp_path / "runs" / "hats")
    job = {"owner": "ann", "name": "hats", "stage": "lora", "state": "done",
           "base": {"key": "builtin", "label": "Built-in", "detail": "", "group": "",
                    "source": "builtin"}}  # fmt: skip
    (tmp_path / "trainings").mkdir()
    (tmp_path / "trainings" / "hats.json").write_text(json.dumps(job))
    server = Server(tmp_path)
    for who in ("ann", "bob"):
        assert sorted(server.labels(who)) == ["Built-in", "by-hand", "hats"]
    server.ask(do="share", kind="run", name="hats", shared=False)
    with pytest.raises(UsageError, match="no such model"):
        server.ask(do="delete", kind="run", name="by-hand")
    server.harness.close()
    server = Server(tmp_path)  # a restart changes nothing
    assert sorted(server.labels("bob")) == ["Built-in", "by-hand"]
    server.harness.close()


def test_private_models_stay_private_when_the_database_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(before_after, "compare", lambda *_: None)
    server = Server(tmp_path)
    server.train()
    server.close()
    for file in tmp_path.glob("chats.sqlite*"):
        file.unlink()
    server = Server(tmp_path)
    assert server.labels("ann") == ["Built-in", "hats"]
    assert server.labels("bob") == ["Built-in"]
    server.harness.close()


def test_an_unknown_action_is_refused(server):
    server.train()
    with pytest.raises(UsageError, match="Unknown request 'burn'"):
        server.ask(do="burn", kind="run", name="hats")
