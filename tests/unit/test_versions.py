"""The files of versions say what pyproject.toml says, and the tested set is whole."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made() -> Any:
    spec = importlib.util.spec_from_file_location("constraints", ROOT / "benchmarks" / "constraints.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pinned(made: Any) -> dict[str, str]:
    """Name -> version of constraints.txt."""
    found = [Requirement(line) for line in made.pins((ROOT / "constraints.txt").read_text())]
    return {r.name: str(r.specifier).removeprefix("==") for r in found}


def wanted(made: Any, *extras: str) -> list[Requirement]:
    project = made.pyproject()["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    return [Requirement(line) for group in groups for line in group]


def test_the_oldest_set_is_pyprojects_lower_bounds(made: Any) -> None:
    said = made.pins((ROOT / "constraints-oldest.txt").read_text())
    assert said == made.oldest(made.pyproject()["project"])
    assert {f"{r.name}=={str(r.specifier)[2:]}" for r in wanted(made, "optuna")} & set(
        said
    )  # the extra's is the tests'


def test_a_dependency_without_a_lower_bound_is_refused(made: Any) -> None:
    project = {"dependencies": ["a>=1.2", "B[x]>=3,<4"], "optional-dependencies": {"test": []}}
    assert made.oldest(project) == ["a==1.2", "b==3"]
    with pytest.raises(ValueError):
        made.oldest({**project, "dependencies": ["a"]})


def test_a_version_is_pinned_for_the_pythons_that_it_supports(made: Any) -> None:
    assert made._since(None) == made._since(">=3.8") == made._since(">=3.10.0") == ""
    assert made._since("!=3.14.1,>=3.11") == ' ; python_version >= "3.11"'


def test_the_tested_set_is_whole_and_within_the_bounds(made: Any) -> None:
    pins = pinned(made)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", v) for v in pins.values()), "no label of one machine's builds"
    for r in wanted(made, "test", "lint"):
        assert r.specifier.contains(pins[canonicalize_name(r.name)]), r
    (python,) = re.findall(r"on Python (\S+)\.\n", (ROOT / "constraints.txt").read_text())
    where = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    extras = {canonicalize_name(r.name): r.extras for r in wanted(made, "test", "lint")}
    missing = set()
    for name, version in pins.items():
        try:
            there = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # without the extra `lint`
            continue
        if there.version != version:  # another environment; torch, whose builds need other things
            continue
        for r in map(Requirement, there.requires or []):
            active = [
                e for e in ("", *extras.get(name, ())) if not r.marker or r.marker.evaluate({**where, "extra": e})
            ]
            if active and canonicalize_name(r.name) not in pins:
                missing.add(f"{r.name} of {name}")
    assert not missing
