"""Points of a sweep as text: short names of settings, and their values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def short_names(settings: Iterable[str]) -> dict[str, str]:
    """Return setting -> the shortest end of its name that no other setting has."""
    settings, out = list(settings), {}
    for setting in settings:
        parts = setting.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [o for o in settings if o != setting]
        out[setting] = next((e for e in ends if not any(o == e or o.endswith(f".{e}") for o in others)), setting)
    return out


def value_text(value: Any) -> str:
    """Return a value as text: 0.30000001 -> 0.3; {kind: dirichlet, alpha: 1} -> dirichlet(alpha=1)."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        head = next((k for k in ("kind", "name") if k in value), None)
        rest = " ".join(f"{k}={value_text(v)}" for k, v in value.items() if k != head)
        if head is None:
            return f"{{{rest}}}"
        return f"{value[head]}({rest})" if rest else str(value[head])
    return (",".join(map(value_text, value)) or "none") if isinstance(value, list | tuple) else str(value)


def point_text(point: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """Return a point as text: `clusters=3 alpha=0.1`. names: setting -> its name here, by default the short ones."""
    names = short_names(point) if names is None else names
    return " ".join(f"{names.get(k, k)}={value_text(v)}" for k, v in point.items())
