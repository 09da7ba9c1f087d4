"""Writes the files of versions: `make constraints` the tested set, `python benchmarks/constraints.py --oldest` pyproject's lower bounds."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LEAST = 10  # Python 3.10, see pyproject.toml
OURS = ("rayfed-engine", "pip")
TESTED = """\
# The whole tested set: every direct and indirect dependency of '.[test,lint]', on Python {python}.
# Written by `make constraints` from a fresh environment. A Python that a version does not support takes another one.
"""
OLDEST = """\
# The lower bounds of pyproject.toml, which `make oldest` installs and tests.
# Written by `python benchmarks/constraints.py --oldest > constraints-oldest.txt`.
"""


def tested() -> list[str]:
    """Pin what this environment holds but the project itself, without local labels such as +cpu."""
    found = {canonicalize_name(d.metadata["Name"]): d for d in metadata.distributions()}
    return [
        f"{name}=={d.version.partition('+')[0]}{_since(d.metadata['Requires-Python'])}"
        for name, d in sorted(found.items())
        if name not in OURS
    ]


def _since(requires: str | None) -> str:
    """Return a marker for a version that leaves out Pythons which the project supports."""
    least = next(m for m in range(LEAST, 100) if SpecifierSet(requires or "").contains(f"3.{m}.99"))
    return f' ; python_version >= "3.{least}"' if least > LEAST else ""


def oldest(project: dict[str, Any]) -> list[str]:
    """Pin the direct dependencies of the engine and of its tests at their lower bounds, from pyproject's table `project`."""
    pins = []
    for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        wanted = Requirement(line)
        (bound,) = [s.version for s in wanted.specifier if s.operator == ">="]
        pins.append(f"{canonicalize_name(wanted.name)}=={bound}")
    return sorted(pins)


def pins(text: str) -> list[str]:
    """Return the lines of a constraints file that are no comments."""
    return [line for line in text.splitlines() if not re.match(r"\s*(#|$)", line)]


def pyproject() -> dict[str, Any]:
    """pyproject.toml."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pytest brings it
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1:] == ["--oldest"]:
        print(OLDEST + "\n".join(oldest(pyproject()["project"])))
    else:
        print(TESTED.format(python=".".join(platform.python_version_tuple()[:2])) + "\n".join(tested()))
