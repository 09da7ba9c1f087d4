"""FedFix: the server steps at fixed times, with whatever updates are in by then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from rayfed import MethodSettings, tree
from rayfed.clock import ROUNDING, Clock
from rayfed.methods._bases.asynchronous import Asynchronous, base_weights

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree
    from rayfed.config.schema import Config


class FedFix(Asynchronous):
    """Fraboni et al. 2023, "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates"
    (JMLR 24, 2206.10189).

    All clients are always at work. At times D, 2 D, ... the server takes in the updates of those whose work is done, gives them its
    new model, and they begin again: x <- x + server_lr sum_i d_i u_i, u_i = y_i - (the version that i was sent). With
    `weights: ticks` d_i = ceil(tau_i / D) p_i, tau_i how long i's work takes: every client counts p_i on the long run. With `plain`
    d_i = p_i, and fast clients count for more. p_i = n_i / n, or 1 / N. A tick without replies leaves x as it is.
    Where D is at least the slowest client's time it is FedAvg with all clients to the bit.
    Down: the model (P floats). Up: the update (P). Kept at clients: nothing. At the server: x, and each version in use.
    """

    class Settings(MethodSettings):
        period: float = Field(1.0, gt=0, description="D, simulated seconds from step to step.")
        server_lr: float = Field(1.0, gt=0, description="Step of the server.")
        weights: Literal["ticks", "plain"] = Field("ticks", description="Whether rare updates count for more.")
        weight: Literal["examples", "one"] = Field("examples", description="p_i: by examples, or equal.")

    def check(self, config: Config) -> list[str]:
        found, n = super().check(config), config.training_clients()
        if config.per_round() < n:
            found.append(
                f"federation.per_round: {config.federation.per_round} found, fedfix has all {n} clients at work; allowed: null"
            )
        return found

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, took, base = self.settings, fed.durations(), base_weights(fed, self.settings.weight)
        at = Clock(state, fed, took)
        came = at.until(at.now + s.period)
        ticks = np.ceil(took / s.period * (1 - ROUNDING)) if s.weights == "ticks" else np.ones_like(took)
        summed, ids = self.collect(fed, at, came, lambda client, staleness: ticks[client] * base[client])
        if not ids:
            return at.after(None)
        step = tree.scale(summed["delta"], 1.0 / float(base.sum()))
        return at.after(tree.add(state["model"], step, s.server_lr))
