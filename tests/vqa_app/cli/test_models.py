"""`vqa-app models` and `vqa-app compose`: their output and their errors."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.vqa_app.checkpoints.test_installed import install
from vqa_app.checkpoints import compose as module
from vqa_app.checkpoints.hub_models import CATALOGUE
from vqa_app.cli.main import app
from vqa_app.cli.models import table_of


def test_models_prints_a_line_for_each_model() -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for entry in CATALOGUE:
        (line,) = [line for line in lines if line.startswith(f"{entry.name} ")]
        assert entry.size in line
        assert entry.licence in line


@pytest.mark.parametrize("width", [40, 80, 109, 110, 150])
def test_hub_ids_are_not_broken_on_narrow_terminals(width: int) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    lines = table_of(list(CATALOGUE), console).splitlines()
    for entry in CATALOGUE:
        (line,) = [line for line in lines if line.startswith(f"{entry.name} ")]
        assert entry.size in line
        assert len(line) <= max(width, 80)
    assert ("Apache 2.0" in "\n".join(lines)) == (width >= 110)


def test_models_as_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["models", "--json", "--runs", str(tmp_path)])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) >= {entry.name for entry in CATALOGUE}
    assert all(isinstance(row["cached"], bool) and row["memory"] > 0 for row in rows.values())


def test_servers_elsewhere_are_listed_with_what_they_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "servers.toml"
    file.write_text(
        '[[server]]\nname = "Lab [one]"\naddress = "http://lab:8000"\nmodel = "a/b"\n'
        'key_env = "LAB_KEY"\n[[server]]\nname = "Here"\naddress = "http://127.0.0.1:1/v1"\n'
    )
    monkeypatch.delenv("LAB_KEY", raising=False)
    command = ["models", "--remotes", str(file)]
    *_, lab, here = CliRunner().invoke(app, command).stdout.splitlines()
    assert lab.split("  ")[0] == "Lab [one]"
    assert "http://lab:8000/v1#a/b" in lab
    assert lab.endswith("LAB_KEY, not set")
    assert here.endswith("none")
    rows = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert rows[-1]["name"] == "http://127.0.0.1:1/v1"
    missing = CliRunner().invoke(app, ["models", "--remotes", str(tmp_path / "no.toml")])
    assert missing.exit_code == 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_published_figures_stand_beside_their_source() -> None:
    lines = CliRunner().invoke(app, ["models"]).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("LiquidAI/LFM2.5-VL-450M ")]
    assert "RealWorldQA 58.4" in line
    assert "says its model card" in line
    assert "Needs torchvision" in line
    assert "LFM 1.0" in line


def test_installed_models_are_listed(cache: Path) -> None:
    assert "No model" in CliRunner().invoke(app, ["models", "--installed"]).stdout
    install(cache, "a/whole", 2_000_000)
    install(cache, "a/part", 0, partial=5_000)
    whole, part = CliRunner().invoke(app, ["models", "--installed"]).stdout.splitlines()[1:]
    assert whole.split()[:3] == ["a/whole", "2", "MB"]
    assert part.endswith("incomplete")
    rows = json.loads(CliRunner().invoke(app, ["models", "--installed", "--json"]).stdout)
    assert [(row["name"], row["complete"]) for row in rows] == [
        ("a/whole", True),
        ("a/part", False),
    ]


def test_an_installed_model_is_deleted_after_a_question(cache: Path) -> None:
    folder = install(cache, "a/one", 2_000_000)
    kept = CliRunner().invoke(app, ["models", "--delete", "a/one"], input="n\n")
    assert (kept.exit_code, folder.exists()) == (0, True)
    assert "Nothing was deleted." in kept.stdout
    asked = CliRunner().invoke(app, ["models", "--delete", "a/one"], input="y\n")
    assert asked.exit_code == 0
    assert "Deleted a/one; 2 MB freed." in asked.stdout
    assert "(2 MB)?" in asked.stderr
    assert not folder.exists()


def test_deleting_without_a_question_and_deleting_nothing(cache: Path) -> None:
    install(cache, "a/one", 10)
    assert CliRunner().invoke(app, ["models", "--delete", "a/one", "--yes"]).exit_code == 0
    gone = CliRunner().invoke(app, ["models", "--delete", "a/one", "--yes"])
    assert gone.exit_code == 4
    assert "not on this machine" in gone.stderr


def test_compose_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def compose(encoder: str, llm: str, out: Path, **options: object) -> Path:
        calls.append((encoder, llm, out, options))
        return out

    monkeypatch.setattr(module, "compose", compose)
    words = ["compose", "--encoder", "a/b", "--llm", "c/d", "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(app, [*words, "--dtype", "float32", "--seed", "3", "--offline"])
    assert result.exit_code == 0, result.output
    options = {"dtype": "float32", "seed": 3, "offline": True}
    assert calls == [("a/b", "c/d", tmp_path / "new", options)]
    assert f"finetune --model {tmp_path / 'new'} --stage projector" in result.stdout


def test_missing_parts_are_reported(tmp_path: Path) -> None:
    words = ["compose", "--encoder", "no/such-encoder", "--llm", "no/such-llm"]
    result = CliRunner().invoke(app, [*words, "--offline", "--out", str(tmp_path / "new")])
    assert result.exit_code == 4
    assert "no/such-encoder" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2
    assert not (tmp_path / "new").exists()
