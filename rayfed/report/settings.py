"""Settings of runs as flat text, and where arms differ in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

NOT_COMPARED = ("seed", "name", "storage", "resources", "track", "failures")  # do not make another experiment


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a config, empty if it is not there or not a mapping."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `a.b` -> its value as text."""
    out: dict[str, str] = {}
    for k, v in config.items():
        if isinstance(v, Mapping) and v:
            out |= flatten(v, f"{prefix}{k}.")
        else:
            out[f"{prefix}{k}"] = v if isinstance(v, str) else json.dumps(v, default=str)
    return out


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make an experiment: without seed, names, storage and resources."""
    return {k: v for k, v in config.items() if k not in NOT_COMPARED}


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Return setting -> its value in each config (None: not set), for settings that are not the same in all of them."""
    flat = [flatten(compared(config)) for config in configs]
    names = dict.fromkeys(name for values in flat for name in values)
    table = {name: [values.get(name) for values in flat] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}
