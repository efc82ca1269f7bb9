"""What the README promises and `.ci/run` relies on."""

from __future__ import annotations

import ast
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from tests.test_layers import ROOMS
from vqa_app import errors
from vqa_app.cli.main import _COMMANDS, EXIT_CODES, app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CI = (ROOT / ".ci" / "run").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_readme_opens_with_the_chat_and_the_tests() -> None:
    chat, tests = blocks("bash")[:2]
    for command in (chat, tests):
        assert len(command.splitlines()) == 1
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert chat.endswith("vqa-app chat\n")
    assert tests.endswith("pytest\n")


@pytest.mark.parametrize("number", [1, 2])
def test_ci_runs_the_very_commands_of_the_readme(number: int) -> None:
    """`.ci/run` cuts them out of the README; here its own function does so."""
    function = re.search(r"^readme_command\(\) \{.*?^\}$", CI, re.DOTALL | re.MULTILINE)
    assert function
    assert f"$(readme_command {number})" in CI
    script = f"{function[0]}\nreadme_command {number}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == blocks("bash")[number - 1]


def test_every_exit_code_is_documented() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.VqaError)}
    for code in {0, errors.INTERRUPTED_EXIT_CODE} | codes:
        assert f"| {code} | " in README
        assert re.search(rf"\b{code} ", EXIT_CODES)


def console_lines() -> list[str]:
    return [
        line[2:] for block in blocks("console") for line in block.splitlines() if line[:2] == "$ "
    ]


def test_every_command_and_option_in_the_readme_exists() -> None:
    """Commands in console blocks, and options in them, against the commands' own help."""
    runner = CliRunner()
    for line in console_lines():
        for call in re.findall(r"vqa-app [^|&;]*", line):
            command = call.split()[1]
            if command.startswith("-"):
                continue
            assert command in _COMMANDS, line
            shown = runner.invoke(app, [command, "--help"], terminal_width=200).output
            for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", call):
                assert re.search(rf"{option}\b", shown), f"{option} in: {line}"


TABLES = {
    "Ask in the shell": "ask",
    "Chat in the browser": "chat",
    "From programs": "serve",
    "Fine-tune on your own data": "finetune",
}


@pytest.mark.parametrize("section", TABLES)
def test_every_option_of_the_tables_exists(section: str) -> None:
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    command = typer.main.get_command(import_module(_COMMANDS[TABLES[section]].module).app)
    if isinstance(command, typer.core.TyperGroup):
        command = command.commands[TABLES[section]]
    known = {option for parameter in command.params for option in parameter.opts}
    cells = re.findall(r"^\| (`--[^|]*) \|", text, re.MULTILINE)
    named = {option for cell in cells for option in re.findall(r"--[a-z][a-z-]*", cell)}
    assert len(named) > 5
    assert not named - known


def test_python_that_is_not_run_here_compiles_and_imports_what_exists() -> None:
    for block in blocks("py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, with the model in the box."""
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert len(said.split()) > 3
    assert re.search(r"\[0\.\d+, 0\.\d+\]$", said.strip())


def test_pictures_and_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r'src="([^":]+)"', README):
        assert (ROOT / target).exists(), target


PROJECT_FOLDERS = ("vqa_app", "finetune", "ui", "tests", ".ci", ".github")
GUIDES = ("README.md", ".github/ARCHITECTURE.md", ".github/CONTRIBUTING.md")


@pytest.mark.parametrize("guide", GUIDES)
def test_every_path_in_backticks_exists(guide: str) -> None:
    """A path may begin inside a package: `cli/main.py`. One with `NAME` in it is a pattern.

    Other folders without a file's suffix, such as `train/`, may be parts of a data set. The README
    also names files of runs, so only its paths from the top of the project are checked.
    """
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in PROJECT_FOLDERS
        for path in (ROOT / folder).rglob("*")
    ]
    missing = []
    for path in re.findall(r"`([\w.][\w./-]*)`", (ROOT / guide).read_text("utf-8")):
        from_top = path.partition("/")[0] in PROJECT_FOLDERS
        is_path = from_top or re.search(r"\.(py|html|css|js|md|toml)$", path)
        if not is_path or "NAME" in path or (guide == "README.md" and not from_top):
            continue
        name = path.rstrip("/")
        inside = any(file.endswith(f"/{name}") for file in files)
        if not (ROOT / name).exists() and not inside:
            missing.append(path)
    assert not missing


def test_the_tree_of_the_architecture_is_the_real_one() -> None:
    """Every folder and module in the tree exists, and every room is in it."""
    text = (ROOT / ".github/ARCHITECTURE.md").read_text("utf-8")
    (tree,) = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    parents: list[Path] = []
    folders = set()
    for line in filter(str.strip, tree.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        if depth > 4:  # a description continued from the line above
            continue
        name, *others = line.split("  ")[depth].split()
        parent = parents[depth - 1] if depth else ROOT
        if name.endswith("/"):
            assert (parent / name).is_dir(), line
            parents[depth:] = [parent / name]
            folders.add((parent / name).relative_to(ROOT).as_posix())
        else:
            for module in (name, *others):
                assert (parent / f"{module}.py").is_file(), line
    rooms = {
        f"{package.replace('.', '/')}/{room}" for package, all_ in ROOMS.items() for room in all_
    }
    existing = {room for room in rooms if (ROOT / room).is_dir()}
    assert existing <= folders
