"""FedLD: local training that keeps predictions unsure, and with `aggregate: principal` a server that follows principal directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import MethodSettings, mean, sgd_visit, tree, visit
from rayfed.config.schema import Need
from rayfed.lazy import torch
from rayfed.methods._bases.one_model import OneModel

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.partition import Federation


class FedLD(OneModel):
    """Zeng et al. 2024, "Tackling Data Heterogeneity in Federated Learning via Loss Decomposition" (2408.12300).

    Client i minimises, over batches, mean cross-entropy + lambda log(1 + ||P||_F^2), P (B, C) the batch's softmax outputs;
    sends u_i = y - x^r.
    Server: x^{r+1} = x^r + mean of u_i, equal weights as in the published code; with `aggregate: {kind: principal}` in the
    config, of u_i projected on the principal directions of all of them, tensor by tensor, which is the paper's server.
    ||P||_F^2 lies between B / C and B, so lambda goes with the batch size; `per: example` (ours) divides it by B.
    Down: the model (P floats). Up: the update (P). Kept at clients: nothing. At the server: the model.
    With `margin: 0` and the mean it is FedAvg, with `weight: examples` to the bit.
    """

    class Settings(MethodSettings):
        needs: ClassVar = {"per": (Need("margin", (0.0,), but=True),)}

        margin: float = Field(0.05, ge=0, description="Weight lambda of the margin's term; published: 0.03 and 0.1.")
        per: Literal["batch", "example"] = Field(
            "batch", description="||P||_F^2 of a batch (paper), or its mean per example."
        )
        weight: Literal["one", "examples"] = Field(
            "one", description="Weights of the mean: equal (code), or by examples."
        )

    needs = frozenset({"classes"})

    def check(self, config: Config) -> list[str]:
        if config.local.privacy is None or not self.settings.margin:
            return []
        name = config.method.name
        return [
            f"local.privacy: found, but {name} has a margin of a whole batch in its loss; allowed: null, or method.margin: 0"
        ]

    def fits(self, federation: Federation) -> list[str]:
        if federation.kind == "instruct":
            return [
                f"method.name: fedld found, allowed on {federation.kind} data: methods whose loss is the task's own"
            ]
        return []

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        if not s.margin:
            return sgd_visit(task.loss, self.local)

        def objective(params: Tree, carry: Tree, batch: Any, key: Any) -> Tensor:
            with task.training(batch, key):
                logits = task.apply(params, batch["x"])
            size = (logits.softmax(-1).square().sum(-1) * batch["w"]).sum()
            if s.per == "example":
                size = size / batch["w"].sum().clamp(min=1)
            # the same number in every row: their mean has it once
            return task.cross_entropy(logits, batch["y"], key) + s.margin * torch.log1p(size)

        return sgd_visit(task.loss, self.local, objective=objective)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        fold = mean("delta", weight=self.settings.weight)
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=fold)
        return {"model": tree.add(state["model"], got.folded["delta"])}
