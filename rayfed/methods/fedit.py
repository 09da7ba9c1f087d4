"""FedIT: the mean of the factors A and of the factors B, each apart, weighted by examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit
from rayfed.adapters import lora

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree, Visit


class FedIT(lora.OverLoRA):
    """Zhang et al. 2024, "Towards Building the Federated GPT: Federated Instruction Tuning" (2305.05644): FedAvg of LoRA.

    Client i: (A_i, B_i) <- local training from (A, B); sends the change of both, and of the head.
    Server: A <- sum_i p_i A_i, B <- sum_i p_i B_i, head alike, p_i = n_i / n. The mean of the factors is not the factor of
    the mean: D* - B A = sum_i p_i (B_i - B)(A_i - A), D* = sum_i p_i B_i A_i. With `gap` the round's row has
    `lora/gap` = ||D* - B A||_F / ||D*||_F over all layers, for which the server looks at all factors.
    Unequal ranks: zero padding. A client holds the first r_i rows of A and columns of B, and its update is zero in the others.
    Down: A (r, n), B (m, r) of each layer, head. Up: their updates, n_i. Kept at clients: nothing. At the server: A, B, head.
    """

    class Settings(MethodSettings):
        gap: bool = Field(False, description="Log how far the mean factors' product is from the mean product.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)}, up={"delta": Part(PARAMS, update=True)}, server={"model": Part(PARAMS)}
    )

    @visit
    def train(self, task: Task) -> Visit:
        return sgd_visit(task.loss, self.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(
            self.train,
            fed.sample(),
            shared={"model": state["model"]},
            fold=mean("delta", weight="examples"),
            keep="delta" if self.settings.gap else (),
        )
        model = tree.add(state["model"], got.folded["delta"])
        if self.settings.gap and got.ids:
            fed.log("lora/gap", lora.gap(lora.products(state["model"], got, "examples"), model))
        return {"model": model}
