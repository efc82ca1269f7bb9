"""The config: help texts from docstrings, near types accepted, wrong values refused by name."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from finetune.config import FinetuneConfig, option_help
from vqa_app.errors import UsageError, VqaError


def test_every_option_has_a_help_text_and_a_panel() -> None:
    described = option_help()
    assert set(described) == set(FinetuneConfig.model_fields)
    assert all(panel and text for panel, text in described.values())


def test_an_unknown_key_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: my.json\nlearning_rat: 0.1\nprojector_lrr: 0.1\n")
    with pytest.raises(UsageError, match=r"run\.yaml has an unknown key 'learning_rat'"):
        FinetuneConfig.from_yaml(path)
    with pytest.raises(UsageError, match="Did you mean projector_lr"):
        FinetuneConfig.from_dict({"projector_lrr": 0.1})


def test_a_config_survives_yaml(tmp_path: Path) -> None:
    config = FinetuneConfig(
        data=("a.json", "b.csv@2"), epochs=2, stage="full", watch=("x.png: y?",)
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()), encoding="utf-8")
    assert FinetuneConfig.from_yaml(path) == config


def test_the_config_in_the_manifest_of_an_old_run_loads() -> None:
    """As written by version 0.1.0 before pydantic checked it."""
    recorded: dict[str, Any] = {
        "data": ["my.json"],
        "images": [],
        "eval_data": [],
        "eval_fraction": None,
        "turns": "auto",
        "max_length": None,
        "max_bad": 0,
        "model": "builtin",
        "revision": None,
        "stage": "lora",
        "recipe": None,
        "rank": 48,
        "alpha": 96,
        "dropout": 0.0,
        "epochs": 1.0,
        "max_steps": None,
        "batch_size": 8,
        "micro_batch_size": 8,
        "lr": 0.0009,
        "projector_lr": 9e-05,
        "warmup": 0.03,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optimizer": "auto",
        "precision": "auto",
        "gradient_checkpointing": False,
        "seed": 0,
        "eval_every": 0.2,
        "eval_questions": 500,
        "watch": [],
        "metric": "vqa_accuracy",
        "patience": None,
        "out": "runs/mine",
        "resume": "auto",
        "save_every": 0.1,
        "keep": 2,
        "feature_gb": 20.0,
        "feature_dir": None,
        "workers": None,
        "device": "auto",
        "report_to": [],
        "fsdp": None,
        "deepspeed": None,
    }
    loaded = FinetuneConfig.from_dict(recorded)
    assert loaded.to_dict() == recorded
    assert list(loaded.to_dict()) == list(recorded)


def test_yaml_numbers_may_be_written_in_any_usual_form(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lr: 1e-4\nepochs: 2\nrank: 8.0\n")  # to YAML the first is a string
    config = FinetuneConfig.from_yaml(path)
    assert (config.lr, config.rank) == (1e-4, 8)
    assert isinstance(config.rank, int)
    with pytest.raises(UsageError, match=r"rank is 8\.5"):
        FinetuneConfig(rank=8.5)
    path.write_bytes("data: übung.json".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        FinetuneConfig.from_yaml(path)


def test_lists_paths_and_none_are_accepted(tmp_path: Path) -> None:
    config = FinetuneConfig(
        data=["a.json", Path("b.csv")],
        images=Path("photos"),
        watch="x.png: y?",
        out=tmp_path / "run",
        model=Path("base"),
        feature_dir=Path("kept"),
        eval_data=None,
        warmup=None,
    )
    assert config.data == ("a.json", "b.csv")
    assert config.images == ("photos",)
    assert config.watch == ("x.png: y?",)
    assert config.out == str(tmp_path / "run")
    assert (config.model, config.feature_dir) == ("base", "kept")
    assert (config.eval_data, config.warmup) == ((), 0.03)
    path = tmp_path / "run.yaml"
    path.write_text("data: a.json\nimages:\neval_data:\nmetric:\nlr:\nseed:\n")
    assert FinetuneConfig.from_yaml(path) == FinetuneConfig(data=("a.json",))
    for wrong in ({"data": [1]}, {"out": ["a"]}, {"images": [None]}, {"seed": Path("1")}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
            FinetuneConfig(**wrong)


def test_a_copy_is_checked_and_the_config_cannot_change() -> None:
    config = FinetuneConfig(data="a.json", lr=0.1)
    assert config.replace(lr=None, out="run") == FinetuneConfig(data=("a.json",), out="run")
    with pytest.raises(UsageError, match="lr is -1"):
        config.replace(lr=-1)
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 0.2  # type: ignore[misc]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "run.yaml").write_text("out: ~/a/b\nfeature_dir: ~/c\nfsdp: ~/d.json\n")
    config = FinetuneConfig.from_yaml("~/run.yaml")
    assert config.out == str(tmp_path / "a" / "b")
    assert (config.feature_dir, config.fsdp) == (str(tmp_path / "c"), str(tmp_path / "d.json"))
    assert FinetuneConfig(deepspeed="zero2").deepspeed == "zero2"
    assert FinetuneConfig().out == ""


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: my.json\nepochs: 3\nlr: 0.1\n")
    config = FinetuneConfig.from_yaml(path, lr=0.2)
    assert (config.data, config.epochs, config.lr) == (("my.json",), 3.0, 0.2)


@pytest.mark.parametrize("command", ["check-data", "show-sample", "finetune"])
def test_every_command_that_reads_data_takes_a_config_file(command: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from finetune.cli.train import app

    path = tmp_path / "run.yaml"
    path.write_text(f"data: {tmp_path / 'gone.json'}\nout: {tmp_path / 'run'}\nlr: 0.1\n")
    error = CliRunner().invoke(app, [command, "--config", str(path)]).exception
    assert isinstance(error, VqaError)
    assert "gone.json" in str(error)


@pytest.mark.parametrize("four", [4, 4.0, "4", np.int64(4), np.float32(4), Fraction(4)])
def test_numbers_of_every_type_are_accepted(four: Any) -> None:
    config = FinetuneConfig(rank=four, epochs=four)
    assert (config.rank, type(config.rank)) == (4, int)
    assert (config.epochs, type(config.epochs)) == (4.0, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": -1}, r"epochs is -1\.\nIt should be greater than 0\."),
        ({"stage": "lorra"}, "stage is 'lorra'.\nIt should be 'projector', 'lora', 'qlora' or"),
        ({"batch_size": "many"}, r"batch_size is 'many'\.\nIt should be a whole number\."),
        ({"batch_size": True}, "batch_size is True"),
        ({"lr": True}, "lr is True"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing is 1.\nIt should be true or false"),
        ({"eval_fraction": 1.5}, "eval_fraction is 1.5.\nIt should be less than 1"),
        ({"lr": float("nan")}, r"lr is nan\.\nIt should be a finite number\."),
        ({"save_every": float("inf")}, "save_every is inf"),
        ({"eval_questions": 0}, "eval_questions is 0"),
        ({"max_bad": -1}, "max_bad is -1"),
        ({"seed": 2**70}, "seed is"),
        ({"seed": np.bool_(True)}, "seed is True"),
        ({"rank": 10**5000}, "rank is a number of thousands of digits"),
        ({"rank": "9" * 5000}, "It is too large"),
        ({"rank": 1e308}, "It is too large"),
        ({"rank": np.float32(4.5)}, r"rank is 4\.5\.\nIt should be a whole number"),
        ({"epochs": 1e308}, "epochs is 1e\\+308"),
        ({"batch_size": 10**12}, "batch_size is 1000000000000"),
        ({"feature_gb": 1e300}, "feature_gb is"),
        ({"workers": 10**6}, "workers is"),
        ({"lr": "1e300"}, "lr is '1e300'"),
        ({"keep": 10**400}, "keep is 10"),
        ({"recipe": "llava", "stage": "projector"}, "recipe"),
        ({"fsdp": "default", "deepspeed": "zero2"}, "fsdp and deepspeed"),
        ({"fsdp": "default", "stage": "qlora"}, "qlora cannot be sharded"),
        ({"deepspeed": "zero3", "optimizer": "adamw-8bit"}, "adamw-8bit cannot be sharded"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FinetuneConfig.from_dict(values)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data: [my.json\n", r": line 2, column 1: expected ',' or '\]'"),
        ("data: 2026-06-31\n", ": a number or date in it cannot be read"),
        (f"data: {'1' * 5000}\n", ": a number or date in it cannot be read"),
        ("[" * 10_000, ""),
    ],
)
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"run\.yaml is not YAML{problem}"):
        FinetuneConfig.from_yaml(path)


def test_a_wrong_value_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys\nfrom vqa_app.cli.main import main\n"
        "try: main(['finetune', '--epochs', '-1'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epochs is -1" in done.stderr
