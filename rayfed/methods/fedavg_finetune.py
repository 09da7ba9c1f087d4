"""FedAvg + local fine-tuning: one global model, each client served its own few epochs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit
from rayfed.visits import epochs

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FedAvgFinetune(Method):
    """FedAvg (1602.05629); before it is used, each client fine-tunes the global model on its own training data.

    The usual personalisation baseline (e.g. Collins et al. 2022, "FedAvg with Fine Tuning", 2205.13692). Training and
    wire are FedAvg's to the bit; only the served model differs: x^r after `finetune_epochs` epochs of local SGD.
    """

    class Settings(MethodSettings):
        server_lr: float = Field(1.0, gt=0, description="Step of the server along the mean update.")
        finetune_epochs: int = Field(1, ge=0, description="Epochs of local training before the served model is used.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)}, up={"delta": Part(PARAMS, update=True)}, server={"model": Part(PARAMS)}
    )

    @visit
    def train(self, task: Task) -> Visit:
        return sgd_visit(task.loss, self.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="examples"))
        return {"model": tree.add(state["model"], got.folded["delta"], self.settings.server_lr)}

    def view(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"model": carry["model"]}, client.own

        return sgd_visit(
            task.loss, self.local, phases=[(epochs(self.settings.finetune_epochs), lambda name: True)], end=end
        )
