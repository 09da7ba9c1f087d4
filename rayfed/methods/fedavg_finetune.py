"""FedAvg + local fine-tuning: one global model, each client served its own few epochs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed.methods.fedavg import FedAvg
from rayfed.visit import Visit, epochs, sgd_visit

if TYPE_CHECKING:
    from rayfed.task import Task
    from rayfed.tree import Tree
    from rayfed.visit import Info


class FedAvgFinetune(FedAvg):
    """FedAvg (1602.05629); before it is used, each client fine-tunes the global model on its own training data.

    The usual personalisation baseline (e.g. Collins et al. 2022, "FedAvg with Fine Tuning", 2205.13692). Training and
    wire are FedAvg's to the bit; only the served model differs: x^r after `finetune_epochs` epochs of local SGD.
    """

    class Settings(FedAvg.Settings):
        finetune_epochs: int = Field(1, ge=0, description="Epochs of local training before the served model is used.")

    def view(self, task: Task) -> Visit:
        def end(info: Info, carry: Tree, shared: Tree, mine: Tree, own: Tree) -> tuple[Tree, Tree]:
            return {"model": carry["model"]}, own

        return sgd_visit(
            task.loss, self.local, phases=[(epochs(self.settings.finetune_epochs), lambda name: True)], end=end
        )
