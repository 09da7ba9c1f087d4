"""Oracle clusters: FedAvg inside each planted group, the upper bound of clustering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfed import MethodSettings
from rayfed.methods._bases.clustered import Clustered

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree
    from rayfed.config.schema import Config


class Oracle(Clustered):
    """FedAvg (McMahan et al. 2017, 1602.05629) inside each planted group, whose members are given: no paper, a bound for the others.

    Client i: trains its group's model c_g; sends u_i. Server: c_g <- c_g + weighted mean of u_i over the group's replies.
    Down: one model (P floats). Up: the update (P), n_i. Kept at clients: nothing. At the server: one model per group.
    With one group it is FedAvg to the bit.
    """

    class Settings(MethodSettings):
        weight: Literal["examples", "one"] = Field("examples", description="Weights of a group's mean.")

    def check(self, config: Config) -> list[str]:
        if config.federation.groups.kind == "none":
            return ["method.name: oracle needs planted groups, but federation.groups is none"]
        return []

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        if "0" in state["experts"] and bool((state["assignment"] < 0).all()):
            groups = fed.planted(range(fed.population))
            first = state["experts"]["0"]
            state = {"experts": {str(g): first for g in sorted(set(groups.tolist()))}, "assignment": groups}
        _, experts = self.train_clusters(state, fed, fed.sample(), weight=self.settings.weight)
        return {**state, "experts": experts}
