"""No package uses what Windows or macOS lack, except where it asks for the system first."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    file for package in ("vqa_app", "finetune", "ui") for file in (ROOT / package).rglob("*.py")
]

POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
POSIX_FUNCTIONS = {
    *("chown", "fork", "forkpty", "getgid", "getuid", "killpg", "mkfifo", "setsid", "uname"),
    *("sched_getaffinity", "statvfs", "wait3", "wait4", "posix_spawn"),
}
SIGNALS = {"SIGINT", "SIGTERM"}
"""Those that exist on Windows, too, and can be handled there."""
ASKS_FIRST = {"vqa_app/pictures/document_worker.py", "finetune/training/device.py"}
"""Import `resource` only where there is one."""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield every call with the last part of the function's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            yield node, name or (node.func.id if isinstance(node.func, ast.Name) else "")


def faults(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    place = file.relative_to(ROOT).as_posix()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if names & POSIX_MODULES and place not in ASKS_FIRST:
                yield f"{place}:{node.lineno}: a module of POSIX"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
            if owner == "os" and name in POSIX_FUNCTIONS:
                yield f"{place}:{node.lineno}: os.{name} is missing on Windows or macOS"
            if owner == "signal" and name.startswith("SIG") and name not in SIGNALS:
                yield f"{place}:{node.lineno}: signal.{name} is missing on Windows"
            if owner in ("multiprocessing", "mp") and name in ("Process", "Pool", "Queue"):
                yield f"{place}:{node.lineno}: name the start method: get_context('spawn')"
    for call, name in calls(tree):
        modes = [value.value for value in call.args if isinstance(value, ast.Constant)]
        text = name in ("read_text", "write_text") or (
            name == "open" and any(re.fullmatch(r"[rwax]t?\+?", str(mode)) for mode in modes)
        )
        positional = "utf-8" in modes or "utf-8-sig" in modes
        if text and not positional and not any(key.arg == "encoding" for key in call.keywords):
            yield f"{place}:{call.lineno}: text without an encoding is cp1252 on Windows"
        if name == "get_context" and modes != ["spawn"]:
            yield f"{place}:{call.lineno}: only spawn works everywhere"


def test_packages_use_nothing_that_windows_or_macos_lack() -> None:
    assert [fault for file in FILES for fault in faults(file)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl",
        "os.fork()",
        "signal.signal(signal.SIGHUP, stop)",
        "multiprocessing.Pool(2)",
        "get_context('fork')",
        "path.read_text()",
        "path.open('a')",
        "open(path, 'w')",
    ],
)
def test_the_guard_finds_what_it_looks_for(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_windows.ROOT", tmp_path)
    (tmp_path / "module.py").write_text(line, encoding="utf-8")
    assert len([*faults(tmp_path / "module.py")]) == 1
