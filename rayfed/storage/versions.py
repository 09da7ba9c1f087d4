"""Versions of what decides a run's numbers."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {"rayfed": "rayfed-engine", **{name: name for name in ("torch", "ray", "numpy", "transformers", "peft")}}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages, without importing any of them."""
    return {"python": platform.python_version(), **{label: _version(package) for label, package in PACKAGES.items()}}


@cache
def _version(package: str) -> str:
    """Return a package's version: looking it up reads its files, which each run would do again."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
