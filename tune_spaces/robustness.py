"""Which rule of aggregation withstands which attack.

robustness: rules times attacks by 10 and 30 % of the clients, nobody's attack among them; robustness:rules, robustness:attacks: one of
the two; robustness:methods: methods beneath them. `rayfed sweep robustness,robustness:methods mine.yaml` is the whole matrix.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from rayfed.config.schema import Config

SHARES = (0.1, 0.3)
ATTACKS: tuple[dict[str, Any], ...] = (
    {"kind": "label_flip"},
    {"kind": "sign", "strength": 10},
    {"kind": "noise", "draw": "uniform"},
    {"kind": "little_is_enough"},
    {"kind": "inner_product"},
)


def rules(config: Config) -> dict[str, Any]:
    """Sweep rules of aggregation, for as many attackers as the largest share makes and Krum takes."""
    n = config.per_round()
    f = max(0, min(round(max(SHARES) * n), (n - 3) // 2))
    kinds: list[dict[str, Any]] = [{"kind": "mean"}, {"kind": "median"}, {"kind": "geometric_median"}, {"kind": "flag"}]
    return {
        "aggregate": tune.grid_search(kinds + [{"kind": k, "f": f} for k in ("krum", "multi_krum", "trimmed_mean")])
    }


def attacks(config: Config) -> dict[str, Any]:
    """Sweep attacks and their clients, none among them."""
    return {"attacks": tune.grid_search([[], *([{**a, "clients": s}] for a in ATTACKS for s in SHARES)])}


def space(config: Config) -> dict[str, Any]:
    """Sweep every rule under every attack."""
    return {**rules(config), **attacks(config)}


methods = {
    "method": tune.grid_search([{"name": "fedavg"}, {"name": "disue", "clusters": 3}, {"name": "ifca", "clusters": 3}])
}
