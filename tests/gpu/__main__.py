"""Check this project on a GPU in about ten minutes, and print a table for a report.

Usage: python -m tests.gpu [--device cuda|mps|cpu] [--only NAME ...]

Every check runs in a process of its own, so that one that fails, even with a broken CUDA context,
does not end the others. Nothing is downloaded. Exit codes: 0 all passed, 1 some failed, 77 there is
no such device.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path

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
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # in a check's own process
    given = parser.parse_args(arguments)
    if given.folder:
        return _check(given.only[0], Setup(given.device, given.folder))
    if problem := _unavailable(given.device):
        print(problem, file=sys.stderr)
        return NO_DEVICE
    print(_describe(given.device), flush=True)
    with tempfile.TemporaryDirectory(prefix="vqa-gpu-", ignore_cleanup_errors=True) as folder:
        failed = _run_all(Setup(given.device, Path(folder)), given.only or list(CHECKS))
    print(f"\nFailed: {', '.join(failed)}." if failed else "\nNone failed.")
    return 1 if failed else 0


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


def _run_all(setup: Setup, names: list[str]) -> list[str]:
    """Run checks and those that they need; print a row for each, and return which failed."""
    wanted = [name for name in CHECKS if any(name in (n, *CHECKS[n].needs) for n in names)]
    print("| check | result | seconds | found |\n| --- | --- | --- | --- |", flush=True)
    failed: list[str] = []
    skipped: list[str] = []
    for name in wanted:
        check = CHECKS[name]
        start = time.monotonic()
        missing = [n for n in check.needs if n in (*failed, *skipped)]
        reason = check.impossible(setup) or (f"needs {missing[0]}" if missing else "")
        if reason:
            skipped.append(name)
            result, found = "skipped", reason
        else:
            passed, found = _run(setup, name)
            result = "passed" if passed else "**failed**"
            failed += [] if passed else [name]
        seconds = f"{time.monotonic() - start:.0f}"
        cell = found.replace("|", "\\|")
        print(f"| {check.title} | {result} | {seconds} | {cell} |", flush=True)
    return failed


def _run(setup: Setup, name: str) -> tuple[bool, str]:
    """Run a check in a process; return whether it passed, and what it found or why it failed."""
    words = ["--device", setup.device, "--only", name, "--folder", str(setup.folder)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.gpu", *words],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return False, f"not finished after {LIMIT:.0f} seconds"
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode == 0 and last.startswith(_FOUND):
        return True, last.removeprefix(_FOUND)
    print(done.stderr, file=sys.stderr)  # the traceback, for the report
    if last.startswith(_FAILED):
        return False, last.removeprefix(_FAILED)
    return False, f"the process ended with exit code {done.returncode}"


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
