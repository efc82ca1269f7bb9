"""The layer order, read from the sources; and no module needs anything optional to be imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("vqa_app", "finetune", "ui")
OPTIONAL = (
    "bitsandbytes",
    "deepspeed",
    "gguf",
    "llguidance",
    "pillow_heif",
    "sentencepiece",
    "tensorboard",
    "torchvision",
    "trackio",
    "triton",
    "trl",
    "wandb",
)
"""What a plain `pip install .` may lack: to be imported inside functions only."""


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    importer: str
    imported: str
    runs: Literal["at import", "in a function", "never"]
    """Never: it stands under `TYPE_CHECKING`."""

    @property
    def at_import(self) -> bool:
        return self.runs == "at import"

    @property
    def top(self) -> str:
        return self.imported.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


@cache
def modules() -> dict[str, Path]:
    """Dotted name to file, of every module of the three packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import statement of the three packages."""
    found: list[Import] = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text("utf-8"), str(path))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found += _imports_of(tree, name, package, "at import")
    return tuple(found)


def _imports_of(node: ast.AST, name: str, package: str, around: Any) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        runs = around
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            runs = "never"
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and runs == "at import":
            runs = "in a function"
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(name, alias.name, runs)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - child.level + 1], *filter(None, [base])])
            for alias in child.names:
                yield Import(name, f"{base}.{alias.name}", runs)
        else:
            yield from _imports_of(child, name, package, runs)


def named(module: str, *names: str) -> bool:
    """Whether a dotted name is one of these or lies inside one."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def listed(wrong: list[Import]) -> str:
    return "\n".join(map(str, wrong))


def test_there_is_something_to_check() -> None:
    found = list(imports())
    assert {"vqa_app.cli.main", "finetune.config", "ui.storage.database"} <= modules().keys()
    assert any(i.importer == "vqa_app.cli.main" and i.top == "typer" and i.at_import for i in found)
    lazy = [i for i in found if i.importer == "vqa_app.pictures.download" and i.top == "httpx"]
    assert lazy
    assert not any(i.at_import for i in lazy)


def test_vqa_app_imports_neither_of_the_others() -> None:
    """Its command line names their modules in a table and imports them when one is asked for."""
    wrong = [i for i in imports() if named(i.importer, "vqa_app") and i.top in ("finetune", "ui")]
    assert not wrong, listed(wrong)


def test_finetune_never_imports_ui() -> None:
    wrong = [i for i in imports() if named(i.importer, "finetune") and i.top == "ui"]
    assert not wrong, listed(wrong)


def test_gradio_is_imported_in_ui_alone() -> None:
    wrong = [i for i in imports() if i.top.startswith("gradio") and not named(i.importer, "ui")]
    assert not wrong, listed(wrong)


def test_web_servers_are_imported_in_serving_and_ui_alone() -> None:
    wrong = [
        i
        for i in imports()
        if i.top in ("fastapi", "starlette", "uvicorn")
        and not named(i.importer, "ui", "vqa_app.serving")
    ]
    assert not wrong, listed(wrong)


def test_optional_packages_are_imported_inside_functions() -> None:
    wrong = [i for i in imports() if i.top in OPTIONAL and i.at_import]
    assert not wrong, listed(wrong)


def test_changing_parts_of_transformers_are_imported_in_one_module() -> None:
    """Allowed elsewhere: the top level, and the modules that transformers documents."""
    documented = ("transformers.cache_utils", "transformers.modeling_outputs")
    wrong = [
        i
        for i in imports()
        if i.imported.count(".") > 1
        and i.top == "transformers"
        and not named(i.imported, *documented, "transformers.utils")
        and i.importer not in ("vqa_app.transformers_internals", "finetune.pretrain.towers")
    ]
    assert not wrong, listed(wrong)


def test_the_values_and_the_protocol_need_no_torch() -> None:
    light = (
        "cli.main",
        "engine.protocol",
        "engine.scheduler",
        "errors",
        "pictures.download",
        "pictures.file_type",
        "pictures.picture",
        "prompts.conversation",
    )
    assert {f"vqa_app.{name}" for name in light} <= modules().keys()
    heavy = ("torch", "transformers", "peft", "gradio", "datasets")
    wrong = [
        i
        for i in imports()
        if named(i.importer, *(f"vqa_app.{name}" for name in light))
        and i.top in heavy
        and i.at_import
    ]
    assert not wrong, listed(wrong)


ROOMS = {
    "vqa_app": (
        "cli",
        "serving",
        "retrieval",
        "engine",
        "checkpoints",
        "prompts",
        "models",
        "pictures",
    ),
    "finetune": (
        "cli",
        "ablation",
        "pretrain",
        "training",
        "evaluation",
        "runs",
        "data",
        "kernels",
    ),
    "finetune.pretrain.world": ("rooms", "objects", "wording", "drawing"),
    "ui": ("web", "teaching", "chat", "storage"),
}
"""The folders of each package. A room may import itself and the rooms that stand below it."""

TOP = {
    "vqa_app": ("__main__",),
    "finetune": ("__main__",),
    "finetune.pretrain.world": ("dialogues", "mixture", "variation", "pairs"),
    "ui": ("app", "cli"),
}
"""Modules outside of rooms that may import all of them; the others may import none."""


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_a_room_imports_only_the_rooms_below_it(package: str) -> None:
    rooms = ROOMS[package]
    lowest = len(rooms)

    def floor(module: str) -> int:
        """0 for the top, then the rooms, then what every room may use."""
        name = module.removeprefix(package).lstrip(".").partition(".")[0]
        if name in rooms:
            return rooms.index(name)
        return -1 if name in ("", *TOP[package]) else lowest

    def is_inside(module: str) -> bool:
        return named(module, package) and module != package

    wrong = [
        i
        for i in imports()
        if i.runs != "never" and is_inside(i.imported) and named(i.importer, package)
        if floor(i.imported) < floor(i.importer)
    ]
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_every_folder_with_modules_is_a_room_of_the_design(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    found = {path.parent.name for path in folder.glob("*/*.py")}
    assert found - {"builtin"} <= set(ROOMS[package]), "give the folder its place in ROOMS"


@pytest.mark.parametrize(
    "room", [f"{package}.{room}" for package, rooms in ROOMS.items() for room in rooms]
)
def test_each_room_says_what_it_may_use(room: str) -> None:
    """The last line of its docstring names rooms below it, among them all that it imports."""
    package, _, name = room.rpartition(".")
    if room not in modules():
        pytest.skip("not built yet")
    text = ast.get_docstring(ast.parse(modules()[room].read_text("utf-8"))) or ""
    last = re.sub(r"\s+", " ", text.split("\n\n")[-1])
    rooms = ROOMS[package]
    below = {other for other in rooms[rooms.index(name) + 1 :] if f"{package}.{other}" in modules()}
    used = {
        i.imported.removeprefix(f"{package}.").partition(".")[0]
        for i in imports()
        if i.runs != "never" and named(i.importer, room) and named(i.imported, package)
    }
    if last.startswith("Uses no other "):
        said = set()
    elif last.startswith("May use every other room"):
        said = below
    else:
        assert last.startswith("May use "), last
        said = set(re.findall(r"\w+", last)) & set(rooms)
    assert said <= below
    assert used & set(rooms) - {name} <= said


def test_the_generated_world_needs_nothing_else_of_finetune() -> None:
    world = "finetune.pretrain.world"
    wrong = [
        i
        for i in imports()
        if named(i.importer, world) and i.top == "finetune"
        if not named(i.imported, world)
    ]
    assert not wrong, listed(wrong)


def test_no_module_needs_itself() -> None:
    """Imports inside functions count, those that only a type checker reads do not."""
    ours = modules()
    needs: dict[str, set[str]] = {name: set() for name in ours}
    for i in imports():
        target = i.imported if i.imported in ours else i.imported.rpartition(".")[0]
        if i.runs != "never" and target in ours:
            needs[i.importer].add(target)
    reached = {name: all_needed(needs, name) for name in ours}
    cycles = [{x for x in found if name in reached[x]} for name, found in reached.items()]
    wrong = [sorted(cycle) for cycle in cycles if cycle]
    assert not wrong, wrong


def all_needed(needs: dict[str, set[str]], start: str) -> set[str]:
    """Return what `start` imports, directly or through others."""
    found: set[str] = set()
    left = [start]
    while left:
        new = needs[left.pop()] - found
        found |= new
        left += new
    return found


def test_no_star_imports() -> None:
    assert not [str(i) for i in imports() if i.imported.endswith(".*")]


@pytest.mark.slow
def test_every_module_imports_without_optional_packages() -> None:
    """In a process of its own, where importing any of `OPTIONAL` fails."""
    names = [name for name in modules() if not name.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        f"for name in {OPTIONAL}: sys.modules[name] = None\n"
        f"for name in {names}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["vqa_app", "finetune", "ui"])
def test_importing_a_package_is_light(name: str) -> None:
    code = f"import {name}, sys; print({{'torch', 'transformers', 'gradio'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr[-2000:]


def test_every_public_name_of_vqa_app_exists() -> None:
    import vqa_app

    for name in vqa_app.__all__:
        assert getattr(vqa_app, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        vqa_app.no_such_name  # noqa: B018
