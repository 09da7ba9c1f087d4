"""Settings in which the arms of a report differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayfed.storage.saved_config import flatten

NOT_COMPARED = ("seed", "name", "storage", "resources", "track", "failures")  # do not make another experiment


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make an experiment: without seed, names, storage and resources."""
    return {k: v for k, v in config.items() if k not in NOT_COMPARED}


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Return setting -> its value in each config (None: not set), for settings that are not the same in all of them."""
    flat = [flatten(compared(config)) for config in configs]
    names = dict.fromkeys(name for values in flat for name in values)
    table = {name: [values.get(name) for values in flat] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}
