"""FedEx-LoRA: the mean of the factors, and what that misses of the mean product added to the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfed import MethodSettings, tree
from rayfed.adapters import lora
from rayfed.methods._bases.over_lora import GAP, MovesBase

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class FedExLoRA(MovesBase):
    """Singhal et al. 2025, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models"
    (2410.09432).

    Client i: (A_i, B_i) <- local training from (A, B) on the current W; sends their change, and the head's.
    Server: A <- sum_i p_i A_i, B <- sum_i p_i B_i, head alike, and layer by layer
        W <- W + (alpha / r) (sum_i p_i B_i A_i - B A),
    so that W + (alpha / r) B A is the mean of the clients' weights.
    W is sent whole here, since a client that missed rounds needs all of their residuals; one that was in the last round would
    do with that round's (at most (K + 1) r (m + n) numbers).
    Down: A (r, n), B (m, r), head, W (m, n) of each adapted layer once it has moved. Up: the change of A, B and head, n_i with
    `weight: examples`. Kept at clients: nothing. At the server: A, B, head, W of each adapted layer.
    A run ends in a whole model, the adapter merged.
    """

    logs = GAP
    no_rule = "what is averaged are the clients' products B A, each from its own factors"
    one_rank = "the base takes what the mean factors miss, and a client of a smaller rank does not hold those factors"

    class Settings(MethodSettings):
        weight: Literal["examples", "one"] = Field("one", description="Weights p_i: equal (published), or by examples.")

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        model, base, got = self.ask(state, fed, task)
        if not got.ids:
            return state
        new = tree.add(model, got.folded["delta"])
        exact = lora.products(model, got, self.settings.weight)
        fed.log("lora/gap", lora.gap(exact, new))
        missed = {n: b @ a - new[n.b].to(b.dtype) @ new[n.a].to(a.dtype) for n, (b, a) in exact.items()}
        return {"model": {**new, **lora.move_weights(task, base, missed)}}
