"""IFCA: K models; each client picks the one with the least loss on its data and trains that one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Visit, Wire, keys, mean, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.clustered import by_least_loss, least, losses
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree


class IFCA(Method):
    """Ghosh et al. 2020, "An Efficient Framework for Clustered Federated Learning" (2006.04088), model averaging.

    Client i: j = argmin_k mean loss of c_k on its training data; trains from c_j; sends u_i and j.
    Server: c_k <- c_k + mean of u_i with j(i) = k; a model that nobody picked stays.
    Down: K models (K P floats). Up: u_i (P floats), j (one int). Kept at clients: nothing. At the server: the K models
    and each client's last choice. The K models start from different random draws (identical ones never separate).
    `weight`: the paper's code averages unweighted, "one"; "examples" makes K = 1 FedAvg to the bit.
    A client is served the model with the least loss on its own training data, never on test data.
    """

    class Settings(MethodSettings):
        clusters: int = Field(3, ge=1, description="Number of models, K.")
        weight: Literal["one", "examples"] = Field("one", description="Weights of a mean: equal, or by examples.")

    wire: ClassVar[Wire] = Wire(
        down={"experts": Part(stack("K", PARAMS), note="all K models")},
        up={"delta": Part(PARAMS, update=True), "cluster": Part(tensor(dtype="int64"), note="the chosen model")},
        server={
            "experts": Part(stack("K", PARAMS)),
            "assignment": Part(tensor("N", dtype="int64"), note="last choice of each client, -1 before"),
        },
    )
    universal: ClassVar[str | None] = None

    def init(self, task: Task, key: int) -> Tree:
        first = task.init_params(key)
        others = [task.fresh_params(keys.key(key, 0, -1, f"expert {k}")) for k in range(1, self.settings.clusters)]
        return {"experts": tree.stack([first, *others]), "assignment": torch.full((task.population,), -1)}

    @visit
    def train(self, task: Task) -> Visit:
        visit = sgd_visit(task.loss, self.local)
        training = visit.phases[0]

        def enter(client: ClientContext, carry: Tree) -> Tree:
            best = least(carry)
            picked = {"model": tree.pick(client.shared["experts"], best)}
            assert training.enter is not None
            return {"cluster": best, **training.enter(client, picked)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            start = tree.pick(client.shared["experts"], carry["cluster"])
            return {"delta": tree.sub(carry["model"], start), "cluster": carry["cluster"]}, client.own

        return Visit(lambda client: {}, [losses(task), training._replace(enter=enter)], end, True, visit.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        to = fed.sample()
        got = fed.ask(
            self.train, to, shared={"experts": state["experts"]},
            fold=mean("delta", weight=self.settings.weight, by="cluster"), keep="cluster",
        )  # fmt: skip
        experts = tree.unstack(state["experts"])
        for k, delta in got.folded["delta"].items():
            experts[k] = tree.add(experts[k], delta)
        assignment = state["assignment"]
        if got.ids:
            assignment = assignment.index_put((torch.tensor(got.ids),), got.stacked("cluster"))
        return {"experts": tree.stack(experts), "assignment": assignment}

    def serve(self, state: Tree) -> Tree:
        return {"experts": state["experts"]}

    def view(self, task: Task) -> Visit:
        return by_least_loss(task)

    def clusters(self, state: Tree) -> dict[int, int]:
        return {i: int(k) for i, k in enumerate(state["assignment"].tolist()) if k >= 0}

    def experts(self, state: Tree) -> dict[int, Tree]:
        return dict(enumerate(tree.unstack(state["experts"])))
