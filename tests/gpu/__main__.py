"""Check this project on a GPU in about ten minutes, and print a table for a report.

Usage: python -m tests.gpu [--device cuda|mps|cpu] [--only NAME ...] [--minutes N]

Every check runs in a process of its own, so that one that fails, even with a broken CUDA context,
does not end the others. When the time is over, the rest is not run. Nothing is downloaded. Exit
codes: 0 all passed, 1 some failed or were not run for lack of time, 77 there is no such device.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path

import psutil

from tests.gpu.checks import CHECKS, Setup

NO_DEVICE = 77
"""Exit code without a GPU, by which automake's and other test runners mean "skipped"."""
LIMIT = 300.0
"""Seconds for one check."""
_FOUND, _FAILED = "found: ", "failed: "


def main(arguments: list[str] | None = None) -> int:
    """Run the checks and print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda", help="cuda, mps, or cpu to try the script")
    parser.add_argument(
        "--only", nargs="+", choices=CHECKS, metavar="NAME", help=f"some of: {', '.join(CHECKS)}"
    )
    parser.add_argument("--minutes", type=float, default=10, help="for all checks together")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # in a check's own process
    given = parser.parse_args(arguments)
    if given.folder:
        return _check(given.only[0], Setup(given.device, given.folder))
    if problem := _unavailable(given.device):
        print(problem, file=sys.stderr)
        return NO_DEVICE
    end = time.monotonic() + 60 * given.minutes
    print(_describe(given.device), flush=True)
    with tempfile.TemporaryDirectory(prefix="vqa-gpu-", ignore_cleanup_errors=True) as folder:
        setup = Setup(given.device, Path(folder))
        failed, not_run = _run_all(setup, given.only or list(CHECKS), end)
    print(f"\nFailed: {', '.join(failed)}." if failed else "\nNone failed.")
    if not_run:
        print(f"Not run, because the time was over: --only {' '.join(not_run)} runs the rest.")
    return 1 if failed or not_run else 0


def _check(name: str, setup: Setup) -> int:
    """Run one check in this process; the last line printed is for the table."""
    try:
        found = CHECKS[name].run(setup)
    except Exception as error:
        traceback.print_exc()
        print(f"{_FAILED}{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return 1
    print(_FOUND + found, flush=True)
    return 0


def _run_all(setup: Setup, names: list[str], end: float) -> tuple[list[str], list[str]]:
    """Run checks and those that they need, and print a row for each.

    Args:
        setup: Where they run.
        names: Which to run.
        end: When the time is over, on `time.monotonic`'s clock.

    Returns:
        Which failed, and which were not run, or not to their end, because the time was over.
    """
    wanted = [name for name in CHECKS if any(name in (n, *CHECKS[n].needs) for n in names)]
    print("| check | result | seconds | found |\n| --- | --- | --- | --- |", flush=True)
    failed: list[str] = []
    skipped: list[str] = []
    not_run: list[str] = []
    for name in wanted:
        check = CHECKS[name]
        start = time.monotonic()
        missing = [n for n in check.needs if n in (*failed, *skipped, *not_run)]
        reason = check.impossible(setup) or (f"needs {missing[0]}" if missing else "")
        if reason:
            skipped.append(name)
            result, found = "skipped", reason
        elif start >= end:
            not_run.append(name)
            result, found = "not run (time)", ""
        else:
            passed, found = _run(setup, name, min(LIMIT, end - start))
            over = passed is None and time.monotonic() >= end
            result = "not run (time)" if over else "passed" if passed else "**failed**"
            if not passed:
                (not_run if over else failed).append(name)
        seconds = f"{time.monotonic() - start:.0f}"
        cell = found.replace("|", "\\|")
        print(f"| {check.title} | {result} | {seconds} | {cell} |", flush=True)
    return failed, not_run


def _run(setup: Setup, name: str, seconds: float) -> tuple[bool | None, str]:
    """Run a check in a process.

    Returns:
        Whether it passed, None if it took longer than `seconds`; and what it found or why it
        failed.
    """
    words = ["--device", setup.device, "--only", name, "--folder", str(setup.folder)]
    done = _complete([sys.executable, "-m", "tests.gpu", *words], seconds)
    if done is None:
        return None, f"not finished after {seconds:.0f} seconds"
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode == 0 and last.startswith(_FOUND):
        return True, last.removeprefix(_FOUND)
    print(done.stderr, file=sys.stderr)  # the traceback, for the report
    if last.startswith(_FAILED):
        return False, last.removeprefix(_FAILED)
    return False, f"the process ended with exit code {done.returncode}"


def _complete(command: list[str], seconds: float) -> subprocess.CompletedProcess[str] | None:
    """Return a finished process; None if it took too long, after which nothing of it is left."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException as error:
        _kill_all(process.pid)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise  # Ctrl-C
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _kill_all(pid: int) -> None:
    """Kill a process and all that it has started, directly or not.

    Killing its process group would not do: torchrun gives each process a session of its own.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def _unavailable(device: str) -> str:
    """Return what to say where the device cannot be used, or an empty string."""
    from vqa_app.devices import choose_device
    from vqa_app.errors import VqaError

    try:
        choose_device(device)
    except VqaError as error:
        return f"{error.problem} Nothing was checked; `--device cpu` tries the script itself."
    return ""


def _describe(device: str) -> str:
    """Return lines about the machine."""
    import torch

    packages = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    lines = [f"{platform.platform()}, Python {platform.python_version()}", ", ".join(versions)]
    if device.startswith("cuda"):
        cards = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        lines.append(f"{', '.join(cards)}; CUDA {torch.version.cuda}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
