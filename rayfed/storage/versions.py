"""Versions of what decides a run's numbers."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {"rayfed": "rayfed-engine", **{name: name for name in ("torch", "ray", "numpy", "transformers", "peft")}}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages, without importing any of them."""
    found = {"python": platform.python_version()}
    for label, package in PACKAGES.items():
        try:
            found[label] = version(package)
        except PackageNotFoundError:
            found[label] = "not installed"
    return found
