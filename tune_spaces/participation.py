"""Who takes part in a round.

participation: the share of the clients that is asked; participation:kind: how they are drawn;
participation:continuous: any share from 5 % to all.
"""

from __future__ import annotations

from ray import tune

space = {"federation.per_round": tune.grid_search([0.1, 0.3, 1.0])}
kind = {"federation.participation.kind": tune.grid_search(["uniform", "poisson", "cyclic"])}
continuous = {"federation.per_round": tune.uniform(0.05, 1.0)}
