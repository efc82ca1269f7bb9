"""The checks for GPUs: what a CPU can run of them passes, and one that fails ends no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import __main__ as gpu
from tests.gpu import checks
from tests.gpu.checks import CHECKS, Check, Setup


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Setup:
    return Setup("cpu", tmp_path_factory.mktemp("gpu"), steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_what_a_cpu_can_run_passes(setup: Setup, name: str) -> None:
    if reason := CHECKS[name].impossible(setup):
        pytest.skip(reason)
    assert CHECKS[name].run(setup)


def fail(setup: Setup) -> str:
    raise ValueError("It is | wrong.\nDo this.")


def test_a_failure_is_one_line_and_ends_no_other_check(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = {
        "first": Check("first", fail),
        "second": Check("second", lambda _: "found it"),
        "third": Check("third", lambda _: "never", ("first",)),
        "fourth": Check("fourth", lambda _: "never", (), lambda _: "needs two GPUs"),
        "fifth": Check("fifth", lambda _: os._exit(3)),
    }
    monkeypatch.setattr(gpu, "CHECKS", replaced)

    def run_in_fork(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        name = command[command.index("--only") + 1]
        if name == "fifth":
            return subprocess.CompletedProcess(command, 3, "", "")
        code = gpu._check(name, setup)
        output = capsys.readouterr()
        printed.append(output.out[: output.out.rfind("\n", 0, -1) + 1])
        return subprocess.CompletedProcess(command, code, output.out, output.err)

    printed: list[str] = []
    monkeypatch.setattr(subprocess, "run", run_in_fork)
    assert gpu._run_all(setup, list(replaced)) == ["first", "fifth"]
    table = "".join(printed) + capsys.readouterr().out
    assert "| first | **failed** | 0 | ValueError: It is \\| wrong. Do this. |" in table
    assert "| second | passed | 0 | found it |" in table
    assert "| third | skipped | 0 | needs first |" in table
    assert "| fourth | skipped | 0 | needs two GPUs |" in table
    assert "| fifth | **failed** | 0 | the process ended with exit code 3 |" in table


def test_a_check_brings_those_that_it_needs(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(gpu, "_run", lambda _, name: (ran.append(name) is None, "found"))
    assert gpu._run_all(setup, ["merge"]) == []
    assert ran == ["lora", "merge"]


def test_errors_of_a_launcher_are_found_above_its_own_report() -> None:
    text = (
        "Traceback\n  ValueError: no\n====\ntorch.distributed.elastic.ChildFailedError: \n====\n"
        "finetune FAILED\n----\n"
    )
    assert checks._last_lines(text) == "ValueError: no"


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_ends_with_a_code_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == gpu.NO_DEVICE
    assert "'cuda' cannot be used" in done.stderr
    assert not done.stdout
