"""The list of servers elsewhere, and how they are offered beside the models of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.openai_stand_in import stand_in
from vqa_app.engine.remote import RemoteServer
from vqa_app.errors import ModelError, UsageError
from vqa_app.serving import model_choices
from vqa_app.serving.engine_pool import EnginePool
from vqa_app.serving.remotes import read_remotes

LIST = """
[[server]]
name = "Lab"
address = "http://lab:8000/v1"
model = "org/large"
key_env = "LAB_KEY"
concurrency = 3

[[server]]
name = "Box"
address = "http://localhost:11434/v1"
timeout = 2.5
max_side = 512
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "remotes.toml"


def test_servers_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(LIST, encoding="utf-8")
    lab, box = read_remotes(path)
    assert lab.server == RemoteServer("http://lab:8000/v1", "org/large", concurrency=3)
    assert box.with_key() == RemoteServer("http://localhost:11434/v1", timeout=2.5, max_side=512)
    with pytest.raises(ModelError) as raised:
        lab.with_key()
    assert "LAB_KEY" in raised.value.hint
    monkeypatch.setenv("LAB_KEY", "sk-secret")
    assert lab.with_key().key == "sk-secret"
    assert "sk-secret" not in repr(lab.with_key())


def test_there_need_not_be_a_list_unless_it_is_named(path: Path) -> None:
    assert read_remotes(path) == []
    with pytest.raises(UsageError, match="There is no file"):
        read_remotes(path, required=True)


MISTAKES = {
    "not TOML": ("[[server]]\nname = Lab\n", "line 2"),
    "unknown field": (f"{LIST}\nadress = 'x'\n", "line 15: unknown 'adress'"),
    "wrong type": (LIST.replace("= 3", "= 'three'"), "line 7: concurrency must be a number"),
    "out of range": (LIST.replace("= 3", "= 0"), "line 7: .*concurrency"),
    "no name": (LIST.replace('name = "Box"\n', ""), "line 9: the server has no name"),
    "no address": ("[[server]]\nname = 'x'\n", "line 1: the server has no address"),
    "bad address": (LIST.replace("http://localhost", "localhost"), "line 11: .*address"),
    "twice": (LIST.replace("Box", "Lab"), "line 10: there is another server"),
    "another table": (f"{LIST}\n[servers]\n", r"line 15: unknown 'servers'"),
    "no list": ("[server]\nname = 'x'\n", r"line 1: servers need \[\[server\]\]"),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_by_line(path: Path, text: str, words: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_remotes(path)


def test_servers_stand_beside_the_other_models(path: Path, tmp_path: Path) -> None:
    path.write_text(LIST, encoding="utf-8")
    start = model_choices.choice_from_server(RemoteServer.parse("http://h/v1#org/x", "sk-secret"))
    offered = list(model_choices.available_choices(start, tmp_path, read_remotes(path)))
    assert [(c.label, c.group) for c in offered[:4]] == [
        ("x", "Started with"), ("Built-in", "Included"), ("Lab", "Servers"), ("Box", "Servers"),
    ]  # fmt: skip
    shown = json.dumps([(c.key, c.label, c.detail, c.group) for c in offered])
    assert "sk-secret" not in shown + repr(offered)


def test_choosing_a_server_connects_to_it(path: Path, tmp_path: Path) -> None:
    with stand_in() as server:
        path.write_text(
            f'[[server]]\nname = "Box"\naddress = "{server.address}"\n', encoding="utf-8"
        )
        start = model_choices.BUILTIN
        remotes = read_remotes(path)
        pool = EnginePool(
            model_choices.load_engine,
            lambda: model_choices.available_choices(start, tmp_path, remotes),
            start.key,
        )
        try:
            (box,) = [choice for choice in pool.choices() if choice.label == "Box"]
            with pool.lease(box.key) as engine:
                assert engine.info.label == f"{server.address}#tiny"
        finally:
            pool.close()
