"""FedIT: the mean of the factors A and of the factors B, each apart, weighted by examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import MethodSettings, mean, tree
from rayfed.adapters import lora
from rayfed.methods._bases.over_lora import GAP, OverLoRA

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class FedIT(OverLoRA):
    """Zhang et al. 2024, "Towards Building the Federated GPT: Federated Instruction Tuning" (2305.05644): FedAvg of LoRA.

    Client i: (A_i, B_i) <- local training from (A, B); sends the change of both, and of the head.
    Server: A <- sum_i p_i A_i, B <- sum_i p_i B_i, head alike, p_i = n_i / n. The mean of the factors is not the factor of
    the mean: D* - B A = sum_i p_i (B_i - B)(A_i - A), D* = sum_i p_i B_i A_i. With `gap` the round's row has
    `lora/gap`, for which the server needs all factors.
    Unequal ranks: zero padding. A client holds the first r_i rows of A and columns of B, and its update is zero in the others.
    Down: A (r, n), B (m, r) of each layer, head. Up: their updates, n_i. Kept at clients: nothing. At the server: A, B, head.
    """

    logs = GAP
    sums_only = True

    class Settings(MethodSettings):
        gap: bool = Field(False, description="Log how far the mean factors' product is from the mean product.")

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        keep = "delta" if self.settings.gap else ()
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"), keep=keep)
        model = tree.add(state["model"], got.folded["delta"])
        if self.settings.gap and got.ids:
            fed.log("lora/gap", lora.gap(lora.products(state["model"], got, "examples"), model))
        return {"model": model}
