"""What the packages import is declared."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tests.test_layers import OPTIONAL, PACKAGES, ROOT, imports


def test_the_sdist_holds_what_the_tests_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    included = {*project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]}
    included |= {"pyproject.toml", project["project"]["readme"]}  # always there
    for test in (ROOT / "tests").glob("*.py"):
        for name in re.findall(r'\bROOT / "([^"]+)"', test.read_text("utf-8")):
            assert {name, name.partition("/")[0]} & included, f"{test.name} reads {name}"


def _plain(name: str) -> str:
    return re.split(r"[^\w.-]", name)[0].lower().replace("_", "-")


def test_every_package_that_is_imported_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {_plain(requirement) for requirement in project["dependencies"]}
    distributions = packages_distributions()
    own = {*sys.stdlib_module_names, *PACKAGES, *OPTIONAL}
    missing = {
        f"{found.importer} imports {found.top}"
        for found in imports()
        if found.top not in own and found.runs != "never"
        if not declared & {_plain(name) for name in distributions.get(found.top, ())}
    }
    assert not missing, sorted(missing)
