"""How much a client does per visit.

local_work: epochs (or steps, where the config counts in steps); local_work:rate: the learning rate; local_work:both: their
product; local_work:continuous: rates from 0.001 to 1, which PBT may change in mid-run.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from rayfed.config.schema import Config


def space(config: Config) -> dict[str, Any]:
    """Sweep the steps where the config counts in steps, else the epochs."""
    if config.local.steps is not None:
        return {"local.steps": tune.grid_search([1, 5, 20])}
    return {"local.epochs": tune.grid_search([1, 2, 5])}


rate = {"local.optimizer.lr": tune.grid_search([0.01, 0.03, 0.1, 0.3])}
continuous = {"local.optimizer.lr": tune.loguniform(1e-3, 1.0)}


def both(config: Config) -> dict[str, Any]:
    """Sweep the amount of work and the learning rate."""
    return {**space(config), **rate}
