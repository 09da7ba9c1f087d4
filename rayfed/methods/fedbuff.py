"""FedBuff: the server steps whenever its buffer of updates is full, and waits for nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfed import MethodSettings, tree
from rayfed.clock import Clock
from rayfed.methods._bases.asynchronous import Asynchronous, base_weights

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class FedBuff(Asynchronous):
    """Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation" (AISTATS 2022, 2106.06639).

    `federation.per_round` clients are at work, each on the version that it was sent; one that has replied is replaced at once by
    another one with the present model (`restart: at_once`), or those in the buffer wait for the step and new ones start together
    (`together`, as in Fraboni et al. 2023, 2206.10189, code). With `buffer` replies: x <- x + server_lr sum_i s_i a_i u_i / sum_i a_i,
    u_i = y_i - (the version that i was sent), s_i = 1 / sqrt(1 + staleness) or 1, a_i = 1 or n_i.
    Where all visits take equally long and `buffer` is `per_round` it is FedAvg to the bit (with a_i = n_i; uniform FedAvg else).
    Down: the model (P floats). Up: the update (P). Kept at clients: nothing. At the server: x, and each version in use.
    """

    class Settings(MethodSettings):
        buffer: int | None = Field(None, ge=1, description="Replies for a step; null: half of the clients at work.")
        server_lr: float = Field(1.0, gt=0, description="Step of the server along the buffer's mean.")
        staleness: Literal["sqrt", "none"] = Field(
            "sqrt", description="Stale updates count 1 / sqrt(1 + staleness), or in full."
        )
        weight: Literal["one", "examples"] = Field("one", description="Updates count alike, or by examples.")
        restart: Literal["at_once", "together"] = Field("at_once", description="When a place is filled again.")

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, at, base = self.settings, Clock(state, fed, fed.durations()), base_weights(fed, self.settings.weight)
        came = at.replies(self.buffer_size(fed), refill=s.restart == "at_once")

        def weight(client: int, staleness: int) -> float:
            return float(base[client]) / ((1 + staleness) ** 0.5 if s.staleness == "sqrt" else 1.0)

        summed, ids = self.collect(fed, at, came, weight)
        if not ids:
            return at.after(None)
        step = tree.scale(summed["delta"], 1.0 / float(base[ids].sum()))
        return at.after(tree.add(state["model"], step, s.server_lr))
