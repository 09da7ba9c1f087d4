"""FlexLoRA: the mean of the clients' products B A, cut back to the rank by a singular value decomposition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfed import MethodSettings, mean
from rayfed.adapters import lora
from rayfed.methods._bases.over_lora import GAP, OverLoRA

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class FlexLoRA(OverLoRA):
    """Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources"
    (2402.11505).

    Client i: (A_i, B_i) <- local training from (A, B); sends their change, and the head's.
    Server, layer by layer: D* = sum_i p_i B_i A_i = U S V^T;  B <- U_r S_r, A <- V_r^T: no pair of rank r is closer to D*.
    Directions that D* lacks keep their row of A, with B = 0. D* has rank at most K r over K clients, so it is decomposed
    through its factors and never formed. A client of rank r_i is sent the first r_i columns of B and rows of A, which are the
    best pair of that rank.
    The head is averaged.
    Down: A (r, n), B (m, r) of each layer, head. Up: their updates, n_i. Kept at clients: nothing.
    At the server: A, B, head; within a round the factors of all its clients.
    """

    logs = GAP
    no_rule = "what is averaged are the clients' products B A, each from its own factors"

    class Settings(MethodSettings):
        weight: Literal["examples", "one"] = Field("examples", description="Weights p_i: by examples, or equal.")

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        old, weight = state["model"], self.settings.weight
        got = fed.ask(self.train, fed.sample(), shared={"model": old}, fold=mean("delta", weight=weight), keep="delta")
        if not got.ids:
            return state
        new = {n: old[n] + got.folded["delta"][n] for n in old}
        exact = lora.products(old, got, weight)
        for n, (b, a) in exact.items():
            new[n.b], new[n.a] = lora.best_pair(b, a, old[n.a])
        fed.log("lora/gap", lora.gap(exact, new))
        return {"model": new}
