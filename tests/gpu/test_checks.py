"""The checks for GPUs: what a CPU can run of them passes, and one that fails ends no other."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.gpu import __main__ as gpu
from tests.gpu import checks
from tests.gpu.checks import CHECKS, Check, Setup
from tests.waiting import until


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

    def run_here(command: list[str], _: float) -> subprocess.CompletedProcess[str]:
        name = command[command.index("--only") + 1]
        if name == "fifth":
            return subprocess.CompletedProcess(command, 3, "", "")
        code = gpu._check(name, setup)
        output = capsys.readouterr()
        printed.append(output.out[: output.out.rfind("\n", 0, -1) + 1])
        return subprocess.CompletedProcess(command, code, output.out, output.err)

    printed: list[str] = []
    monkeypatch.setattr(gpu, "_complete", run_here)
    assert gpu._run_all(setup, list(replaced), math.inf) == (["first", "fifth"], [])
    table = "".join(printed) + capsys.readouterr().out
    assert "| first | **failed** | 0 | ValueError: It is \\| wrong. Do this. |" in table
    assert "| second | passed | 0 | found it |" in table
    assert "| third | skipped | 0 | needs first |" in table
    assert "| fourth | skipped | 0 | needs two GPUs |" in table
    assert "| fifth | **failed** | 0 | the process ended with exit code 3 |" in table


def test_a_check_brings_those_that_it_needs(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(gpu, "_run", lambda _, name, __: (ran.append(name) is None, "found"))
    assert gpu._run_all(setup, ["merge"], math.inf) == ([], [])
    assert ran == ["lora", "merge"]


def test_when_the_time_is_over_the_rest_is_not_run(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    limits: dict[str, float] = {}

    def run(_: Setup, name: str, seconds: float) -> tuple[bool | None, str]:
        nonlocal now
        limits[name] = seconds
        now += min(200, seconds)
        return (None, "not finished") if seconds < 200 else (True, "found it")

    nothing = Check("nothing", lambda _: "never")
    needing = Check("needing", lambda _: "never", ("cut",))
    replaced = {"first": nothing, "second": nothing, "cut": nothing, "needing": needing}
    monkeypatch.setattr(gpu, "CHECKS", {**replaced, "last": nothing})
    monkeypatch.setattr(gpu, "_run", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    names = [*replaced, "last"]
    assert gpu._run_all(setup, names, end=600.0) == ([], ["cut", "last"])
    assert limits == {"first": gpu.LIMIT, "second": gpu.LIMIT, "cut": 100.0}
    table = capsys.readouterr().out
    assert "| nothing | not run (time) | 100 | not finished |" in table
    assert "| needing | skipped | 0 | needs cut |" in table
    assert "| nothing | not run (time) | 0 |  |" in table


def test_a_check_that_takes_too_long_has_failed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_complete", lambda *_: None)
    assert gpu._run_all(setup, ["load"], math.inf) == (["load"], [])


STARTS_ANOTHER = """
import subprocess, sys, time
wait = "import time; time.sleep(600)"
started = subprocess.Popen([sys.executable, "-c", wait], start_new_session=True)
with open(sys.argv[1], "w") as file:
    file.write(f"{started.pid}\\n")
time.sleep(600)
"""


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_is_left_of_a_check_that_takes_too_long_or_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Launchers start processes in sessions of their own, which hold the GPU's memory."""
    noted = tmp_path / "pid"
    command = [sys.executable, "-c", STARTS_ANOTHER, str(noted)]
    communicate = subprocess.Popen.communicate

    def wait(process: Any, timeout: float | None = None) -> Any:
        until(lambda: noted.exists() and noted.read_text("utf-8").endswith("\n"))
        if interrupted and timeout is not None:
            raise KeyboardInterrupt
        return communicate(process, timeout=timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", wait)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            gpu._complete(command, 600)
    else:
        assert gpu._complete(command, 0.01) is None
    until(lambda: not is_running(int(noted.read_text("utf-8"))))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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
