"""What clustered methods share: one model per cluster at the server, one of them for each client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import ANY, PARAMS, Method, Part, Phase, Visit, Wire, mean, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.visits import accumulate, average, once
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree


def losses(task: Task) -> Phase:
    """Return a phase that sums the train split's losses of each model of shared["experts"] (K x params), for `least`."""

    def enter(client: ClientContext, carry: Tree) -> Tree:
        zero = torch.zeros(len(tree.values(client.shared["experts"])[0]), dtype=task.dtype, device=task.device)
        return {"experts": client.shared["experts"], "sum": {"loss": zero}, "n": zero.sum()}

    def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
        k = len(carry["sum"]["loss"])
        rows = torch.stack([task.loss(tree.pick(carry["experts"], i), batch) for i in range(k)], -1)
        return {"experts": carry["experts"], **accumulate(carry, {"loss": rows}, batch["w"])}

    return Phase(once("train"), step, enter, counts=False)


def least(carry: Tree) -> Tensor:
    """Return the place of the model with the least mean loss after `losses`; 0-d."""
    return average(carry)["loss"].argmin()


def by_least_loss(task: Task) -> Visit:
    """Return the view of a client that is served that model of shared["experts"] which has the least loss on its training data."""

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"model": tree.pick(client.shared["experts"], least(carry))}, client.own

    return Visit(lambda client: {}, [losses(task)], end)


class Clustered(Method):
    """Base: server state {"experts": {cluster id: params}, "assignment": (N,) id or -1, ...}, FedAvg inside clusters.

    A client without a cluster (held out, or never asked) is served the expert with the least loss on its own training
    data.
    """

    wire: ClassVar[Wire] = Wire(
        down={
            "experts": Part(stack("K", PARAMS), note="the model of the client's own cluster", routed=True),
            "place": Part(tensor(dtype="int64"), note="which row of the stack is meant; nothing in a deployment"),
        },
        up={"delta": Part(PARAMS, update=True)},
        server={
            "experts": Part(ANY, note="cluster id -> model"),
            "assignment": Part(tensor("N", dtype="int64"), note="cluster id of each client, -1 before it has one"),
        },
    )
    universal: ClassVar[str | None] = None

    def init(self, task: Task, key: int) -> Tree:
        return {"experts": {"0": task.init_params(key)}, "assignment": torch.full((task.population,), -1)}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": tree.pick(client.shared["experts"], client.mine["place"])}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {
                "delta": tree.sub(carry["model"], tree.pick(client.shared["experts"], client.mine["place"]))
            }, client.own

        return sgd_visit(task.loss, self.local, start=start, end=end)

    def train_clusters(
        self, state: Tree, fed: Fed, clients: Sequence[int], *, weight: str = "examples", keep: str = ""
    ) -> tuple[Replies, dict[str, Tree]]:
        """Train every client's cluster model; return (replies, next experts). A cluster nobody of which replied stays."""
        ids = sorted(state["experts"], key=int)
        places = {c: {"place": torch.tensor(ids.index(str(int(state["assignment"][c]))))} for c in clients}
        got = fed.ask(
            self.train, clients, shared={"experts": tree.stack([state["experts"][k] for k in ids])}, mine=places,
            fold=mean("delta", weight=weight, by="place"), keep=keep or (),
        )  # fmt: skip
        folded = got.folded["delta"]
        return got, {
            k: tree.add(e, folded[i]) if i in folded else e for i, k in enumerate(ids) for e in [state["experts"][k]]
        }

    def serve(self, state: Tree) -> Tree:
        return {"experts": tree.stack([state["experts"][k] for k in sorted(state["experts"], key=int)])}

    def mine(self, state: Tree, client: int) -> Tree:
        k = int(state["assignment"][client]) if client < len(state["assignment"]) else -1
        return {"place": torch.tensor(sorted(state["experts"], key=int).index(str(k)) if k >= 0 else -1)}

    def view(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            place = torch.where(client.mine["place"] >= 0, client.mine["place"], least(carry))
            return {"model": tree.pick(client.shared["experts"], place)}, client.own

        return Visit(lambda client: {}, [losses(task)], end)

    def clusters(self, state: Tree) -> dict[int, int]:
        return {i: k for i, k in enumerate(state["assignment"].tolist()) if k >= 0}

    def experts(self, state: Tree) -> dict[int, Tree]:
        return {int(k): e for k, e in state["experts"].items()}
