"""FedBABU: the body is trained and averaged under a head that never moves; the whole is fine-tuned before it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, mean, params_but, params_of, sgd_visit, tree, visit
from rayfed.methods._bases.finetuned import finetuned
from rayfed.methods._bases.private_layers import head_problems
from rayfed.training import work

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.partition import Federation


class FedBABU(Method):
    """Oh et al. 2022, "FedBABU: Toward Enhanced Representation for Federated Image Classification" (ICLR 2022, 2106.06042).

    Client i: local SGD on the body theta under the head h as it was drawn, which all clients share and nobody trains; sends the
    update of theta. Server: theta <- sum_i (n_i / n) theta_i. Before the model is used, each client fine-tunes (theta, h) on its
    own training data, `finetune_epochs` epochs at the rate `finetune_lr`: all of it (the paper's choice), the head or the body.
    `global` scores (theta, h) as it is, under its random head.
    Down: theta (P - H floats); h is drawn from the run's seed. Up: the update of theta (P - H), n_i. Kept at clients: nothing.
    At the server: theta, h.
    """

    class Settings(MethodSettings):
        finetune_epochs: int = Field(5, ge=0, description="Epochs of local training before the served model is used.")
        finetune_lr: float | None = Field(
            None, gt=0, description="Learning rate of this training; default: that of the round's local training."
        )
        finetune: Literal["all", "head", "body"] = Field("all", description="What this training moves.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(params_but("head"), note="theta")},
        up={"delta": Part(params_but("head"), update=True)},
        server={"model": Part(PARAMS)},
    )

    def fits(self, federation: Federation) -> list[str]:
        return head_problems(federation, ("head",))

    @visit
    def train(self, task: Task) -> Visit:
        head = params_of("head").select(task.initial, task)

        def start(client: ClientContext) -> Tree:
            return {"model": {n: {**client.shared["model"], **head}[n] for n in task.params_like}}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": {n: carry["model"][n] - p for n, p in client.shared["model"].items()}}, client.own

        body = [(work(self.local), lambda n: n not in head)]
        return sgd_visit(task.loss, self.local, start=start, end=end, phases=body)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        body = params_but("head").select(state["model"], task)
        got = fed.ask(self.train, fed.sample(), shared={"model": body}, fold=mean("delta"))
        return {"model": {**state["model"], **tree.add(body, got.folded["delta"])}}

    def view(self, task: Task) -> Visit:
        head = params_of("head").select(task.initial, task)
        moves: dict[str, Callable[[str], bool]] = {
            "all": lambda n: True,
            "head": lambda n: n in head,
            "body": lambda n: n not in head,
        }
        return finetuned(task, self.local, self.settings, moves=moves[self.settings.finetune])
