"""FedAvg + local fine-tuning: one global model, each client served its own few epochs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import MethodSettings, mean, tree
from rayfed.methods._bases.finetuned import finetuned
from rayfed.methods._bases.one_model import OneModel

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree, Visit


class FedAvgFinetune(OneModel):
    """The usual personalisation baseline, as in Collins et al. 2022, "FedAvg with Fine Tuning" (2205.13692): FedAvg (McMahan et
    al. 2017, 1602.05629); before it is used, each client fine-tunes the global model on its own training data.

    Training and wire are FedAvg's to the bit; only the served model differs: x^r after `finetune_epochs` epochs of local SGD
    at the rate `finetune_lr`, which is searched apart from the training rate: the best of one is mostly not that of the other.
    Down: the model (P floats). Up: the update (P floats), n_i. Kept at clients: nothing. At the server: the model.
    """

    class Settings(MethodSettings):
        server_lr: float = Field(1.0, gt=0, description="Step of the server along the mean update.")
        finetune_epochs: int = Field(1, ge=0, description="Epochs of local training before the served model is used.")
        finetune_lr: float | None = Field(
            None, gt=0, description="Learning rate of this training; default: that of the round's local training."
        )

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="examples"))
        model = tree.add(state["model"], got.folded["delta"], self.settings.server_lr)
        return {"model": task.keep_averages(model, state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        return finetuned(task, self.local, self.settings)
