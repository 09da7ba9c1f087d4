"""How much the clients differ.

heterogeneity: label skew, Dirichlet's alpha; heterogeneity:groups: number of planted groups; heterogeneity:kinds: their
kind; heterogeneity:quantity: skew of the clients' sizes; heterogeneity:continuous: any alpha from 0.05 to 10.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from rayfed.config.schema import Config


def _skew(config: Config, alpha: Any) -> dict[str, Any]:
    """The config's own kind of partition where it has an alpha, else Dirichlet over clients."""
    kind = getattr(config.federation.partition, "kind", "iid")
    has = "alpha" in type(config.federation.partition).model_fields and kind != "quantity"
    return {"federation.partition.kind": kind if has else "dirichlet", "federation.partition.alpha": alpha}


def space(config: Config) -> dict[str, Any]:
    return _skew(config, tune.grid_search([0.1, 0.5, 5.0]))


def continuous(config: Config) -> dict[str, Any]:
    return _skew(config, tune.loguniform(0.05, 10.0))


def groups(config: Config) -> dict[str, Any]:
    kind = config.federation.groups.kind
    kept = kind if kind in ("rotation", "label_permutation", "classes") else "label_permutation"
    return {"federation.groups": tune.grid_search([{"kind": kept, "count": n} for n in (1, 2, 4)])}


def kinds(config: Config) -> dict[str, Any]:
    count = max(2, config.federation.groups.count)
    planted = [{"kind": kind, "count": count} for kind in ("rotation", "label_permutation", "classes")]
    return {"federation.groups": tune.grid_search([{"kind": "none"}, *planted])}


quantity = {
    "federation.partition.kind": "quantity",
    "federation.partition.alpha": tune.grid_search([0.2, 1.0, 10.0]),
}
