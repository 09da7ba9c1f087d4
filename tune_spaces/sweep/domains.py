"""Tune's domains: what they can take, how they are written down, and how points travel through Tune's searchers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Point = dict[str, Any]  # setting -> value
Domain = Any  # a Tune domain, or {"grid_search": values}
PLAIN = (int, float, str, bool, type(None))
PACKED = "json:"


def is_domain(value: Any) -> bool:
    """Return whether a setting's value is swept, not fixed."""
    from ray.tune.search import sample

    return isinstance(value, sample.Domain) or (isinstance(value, Mapping) and set(value) == {"grid_search"})


def listed_values(domain: Domain) -> list[Any] | None:
    """Return what a domain can take, or None where that is not a finite list."""
    if isinstance(domain, Mapping):
        return list(domain["grid_search"])
    return list(domain.categories) if hasattr(domain, "categories") else None


def describe_domain(domain: Domain) -> Any:
    """Describe a domain for sweep.yaml: its values, or Tune's words for it."""
    found = listed_values(domain)
    if found is not None:
        return found
    bounds = [plain_number(b) for b in (domain.lower, domain.upper)] if hasattr(domain, "lower") else []
    return f"{type(domain).__name__.lower()} {type(domain.get_sampler()).__name__.strip('_').lower()} {bounds}".strip()


def plain_number(value: Any) -> Any:
    """Return a drawn number as a plain Python number; other values as they are."""
    return value.item() if hasattr(value, "item") else value


def pack_domain(domain: Domain) -> Domain:
    """Return a domain for a searcher that knows only plain categories: others travel as text, see `unpack_point`."""
    from ray import tune

    found = listed_values(domain)
    if found is None:
        return domain
    return tune.choice([v if isinstance(v, PLAIN) else f"{PACKED}{json.dumps(v)}" for v in found])


def unpack_point(point: Mapping[str, Any]) -> Point:
    """Return a point from Tune with the values that `pack_domain` wrote as text, and with plain numbers."""

    def unpack(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(PACKED):
            return json.loads(value.removeprefix(PACKED))
        return plain_number(value)

    return {k: unpack(v) for k, v in point.items()}


def clip_point(point: Mapping[str, Any], domains: Mapping[str, Domain]) -> Point:
    """Return a point with its numbers inside their domains again; PBT multiplies them."""
    out = dict(point)
    for k, d in domains.items():
        low, high = getattr(d, "lower", None), getattr(d, "upper", None)
        if low is not None and high is not None and k in out:
            top = high - 1 if isinstance(low, int) else high  # Tune's whole numbers leave out the upper end
            out[k] = min(max(out[k], low), top)
    return out
