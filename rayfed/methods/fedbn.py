"""FedBN: normalisation layers stay at the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed import PARAMS, SCALAR, Method, Part, Wire, mean, params_but, params_of, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.visits import model_of

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FedBN(Method):
    """Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization" (2102.07623).

    The entries of layers with running statistics (weight, bias, mean, variance, counter) are the client's own, FedAvg on the rest:
    client i trains x^r with its own b_i, keeps the trained b_i and sends the update u_i of the rest; server: x^{r+1} = x^r +
    sum_i (n_i / n) u_i. Without such layers: FedAvg.
    Down: the model without b (P - B floats). Up: u_i (P - B), n_i. Kept at client i: b_i (B), how often it trained.
    At the server: x, and b of the initial model, which a client has that was never asked and by which `global` is scored.
    """

    wire = Wire(
        down={"model": Part(params_but("norm"))},
        up={"delta": Part(params_but("norm"), update=True)},
        keep={"norm": Part(params_of("norm"), private=True), "visits": Part(SCALAR, private=True)},
        server={"model": Part(PARAMS)},
    )

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"norm": {n: task.initial[n] for n in task.norms}, "visits": torch.zeros(())}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": {n: {**client.shared["model"], **client.own["norm"]}[n] for n in task.params_like}}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            model = carry["model"]
            delta = {n: model[n] - p for n, p in client.shared["model"].items()}
            return {"delta": delta}, {"norm": {n: model[n] for n in task.norms}, "visits": client.own["visits"] + 1}

        return sgd_visit(task.loss, self.local, start=start, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        rest = {n: p for n, p in state["model"].items() if n not in task.norms}
        got = fed.ask(self.train, fed.sample(), shared={"model": rest}, fold=mean("delta", weight="examples"))
        return {"model": {**state["model"], **tree.add(rest, got.folded["delta"])}}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: {**client.shared["model"], **client.own["norm"]})
