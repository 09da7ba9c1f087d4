"""FedGELA: the last layer is a fixed simplex, at each client scaled by how often it sees each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import ANY, PARAMS, Method, MethodSettings, Part, Visit, Wire, keys, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.simplex import simplex
from rayfed.task import needs_classes

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class FedGELA(Method):
    """Fan et al. 2023, "Federated Learning with Bilateral Curation for Partially Class-Disjoint Data" (NeurIPS 2023, 2405.18972).

    M (d, C): a simplex (columns of norm 1, inner products -1 / (C - 1)), drawn once from the seed, the same for all and never trained.
    Client i, n_i,c its rows of class c: phi_c = C n_i,c / n_i, M_i = M diag(phi), so that absent classes have column 0. Local SGD on
    cross-entropy of f(x)^T M_i / temperature moves all but the last layer; sends the update. Server: FedAvg of it.
    `global` scores f(x)^T M / temperature, without phi; a client is served f(x)^T M_i / temperature, whose logit of an absent class is
    0 and may be the largest, as in the code. `scaled: false` is phi = 1 everywhere, the fixed simplex alone.
    f(x) is what the model gives before its last layer, whose bias is 0: the code's networks end in BatchNorm there, which
    `task.model` may have; without a normalisation features grow to meet the temperature. Weights n_i are of examples, where the
    code counts batches; the code clips gradients at norm 20, here nothing is clipped.
    Down: the model without its last layer (P - C d - C floats); M is its seed. Up: its update (likewise), n_i. Kept at clients: nothing.
    At the server: the model with M / temperature as its last layer.
    """

    class Settings(MethodSettings):
        temperature: float = Field(0.2, gt=0, description="What logits are divided by.")
        scaled: bool = Field(True, description="Scale the simplex by the client's class frequencies.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(ANY, note="all entries but the last layer's"),
            "head": Part(ANY, note="M / temperature; known from its seed, so it costs nothing"),
        },
        up={"delta": Part(ANY, update=True, note="likewise")},
        server={"model": Part(PARAMS)},
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedgela fixes the last layer's weights of classes")

    def splits_model(self) -> bool:
        return True

    def fixed(self, task: Task) -> Tree:
        """Return the last layer's entries by name, M / temperature and no bias."""
        m = simplex(task, keys.key(self.config.seed, 0, -1, "simplex")) / self.settings.temperature
        like = {n: task.params_like[n] for n in task.classifier_names}
        return {n: m.to(p.device, p.dtype) if n.endswith("weight") else torch.zeros_like(p) for n, p in like.items()}

    def init(self, task: Task, key: int) -> Tree:
        return {"model": {**task.init_params(key), **self.fixed(task)}}

    def adapted(self, task: Task, fixed: Tree, client: ClientContext) -> Tree:
        """Return the client's own last layer, rows of classes times phi."""
        if not self.settings.scaled:
            return fixed
        counts = client.info.counts.to(task.dtype)
        phi = counts * task.classes / counts.sum().clamp(min=1)
        return {n: p * phi[:, None] if n.endswith("weight") else p for n, p in fixed.items()}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "head": self.adapted(task, client.shared["head"], client)}

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            return task.loss({**params, **carry["head"]}, batch, key)

        made = sgd_visit(task.loss, self.local, start=start, objective=objective)
        return made._replace(local=lambda carry: {**carry["model"], **carry["head"]})

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        last = task.classifier_names
        body = {n: p for n, p in state["model"].items() if n not in last}
        shared = {"model": body, "head": {n: state["model"][n] for n in last}}
        got = fed.ask(self.train, fed.sample(), shared=shared, fold=mean("delta"))
        return {"model": {**state["model"], **tree.add(body, got.folded["delta"])}} if got.ids else state

    def view(self, task: Task) -> Visit:
        def served(client: ClientContext) -> Tree:
            model = client.shared["model"]
            return {**model, **self.adapted(task, {n: model[n] for n in task.classifier_names}, client)}

        return model_of(served)

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "head" else super().cost(part, sent)
