"""How much the clients differ.

heterogeneity: label skew, Dirichlet's alpha; heterogeneity:groups: number of planted groups; heterogeneity:kinds: their
kind; heterogeneity:quantity: skew of the clients' sizes; heterogeneity:continuous: any alpha from 0.05 to 10.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from rayfed.config.schema import Config


def _label_skew(config: Config, alpha: Any) -> dict[str, Any]:
    """Set alpha for the config's own kind of partition where that has one, else for Dirichlet over clients."""
    kind = getattr(config.federation.partition, "kind", "iid")
    has_alpha = "alpha" in type(config.federation.partition).model_fields and kind != "quantity"
    return {"federation.partition.kind": kind if has_alpha else "dirichlet", "federation.partition.alpha": alpha}


def space(config: Config) -> dict[str, Any]:
    """Sweep three degrees of label skew."""
    return _label_skew(config, tune.grid_search([0.1, 0.5, 5.0]))


def continuous(config: Config) -> dict[str, Any]:
    """Sweep any degree of label skew."""
    return _label_skew(config, tune.loguniform(0.05, 10.0))


def groups(config: Config) -> dict[str, Any]:
    """Sweep the number of planted groups, of the config's kind where it has one."""
    kind = config.federation.groups.kind
    kept = kind if kind in ("rotation", "label_permutation", "classes") else "label_permutation"
    return {"federation.groups": tune.grid_search([{"kind": kept, "count": n} for n in (1, 2, 4)])}


def kinds(config: Config) -> dict[str, Any]:
    """Sweep the kind of planted groups, and none."""
    count = max(2, config.federation.groups.count)
    planted = [{"kind": kind, "count": count} for kind in ("rotation", "label_permutation", "classes")]
    return {"federation.groups": tune.grid_search([{"kind": "none"}, *planted])}


quantity = {
    "federation.partition.kind": "quantity",
    "federation.partition.alpha": tune.grid_search([0.2, 1.0, 10.0]),
}
