"""What the packages import is declared."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from itertools import chain

from packaging.requirements import Requirement
from packaging.version import Version

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


def _tried_versions() -> dict[str, set[Version]]:
    """Return the versions of libraries whose private parts the packages use, as they say it."""
    tried: dict[str, set[Version]] = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for note in re.findall(r"ried with (.*?)\.\s", file.read_text("utf-8"), re.DOTALL):
                for name, *found in re.findall(
                    r"([a-z]\w+) (\d[\d.]*\d)(?:\s+and\s+(\d[\d.]*\d))?", note
                ):
                    tried.setdefault(name, set()).update(Version(one) for one in found if one)
    return tried


def test_the_upper_bound_is_the_next_minor_release_after_those_that_were_tried() -> None:
    """With any minor release transformers may rename an argument, as 5.24 did, or drop it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    requirements = {Requirement(text).name: Requirement(text).specifier for text in listed}
    tried = _tried_versions()
    assert {"transformers", "torch", "huggingface_hub", "accelerate", "llguidance"} <= tried.keys()
    for name, versions in tried.items():
        newest = max(versions)
        bounds = {str(bound) for bound in requirements[name]}
        assert f"<{newest.major}.{newest.minor + 1}" in bounds, name
        assert all(one in requirements[name] for one in versions), name
        assert Version(version(name)) in requirements[name], name
