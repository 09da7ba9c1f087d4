"""Configs as run folders hold them, read as plain mappings, without the schema: old or foreign ones must not fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a config, empty if it is missing or not a mapping."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def method_name(config: Mapping[str, Any]) -> str:
    """Return the method of a config, whether written as a name or as a section; "?" if there is none."""
    method = config.get("method")
    return str(method.get("name", "?")) if isinstance(method, Mapping) else str(method or "?")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `a.b` -> its value as text."""
    out: dict[str, str] = {}
    for k, v in config.items():
        if isinstance(v, Mapping) and v:
            out |= flatten(v, f"{prefix}{k}.")
        else:
            out[f"{prefix}{k}"] = v if isinstance(v, str) else json.dumps(v, default=str)
    return out
