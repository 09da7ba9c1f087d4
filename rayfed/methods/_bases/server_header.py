"""A last layer that the server trains on what clients send of their features, under extractors that stay with their clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import ANY, SCALAR, Method, Part, Visit, Wire, model_of, sgd_visit
from rayfed.lazy import torch
from rayfed.methods._bases import prototypes
from rayfed.task import needs_classes

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree
    from rayfed.partition import Federation


class ServerHeader(Method):
    """Base of FedGH and FedRE: client i has its own extractor f_i, the server the last layer h of all.

    Client i trains (f_i, h) from its f_i and h as received, keeps f_i, throws its h away and sends what `train` makes of its class
    means. Server: SGD on h over `pairs` of features and soft labels, from the h before.

    mean: whether a batch's loss at the server is the mean over its pairs, or their sum.
    """

    mean: ClassVar[bool]
    universal: ClassVar[str | None] = None
    wire: ClassVar[Wire] = Wire(
        down={"header": Part(ANY, note="h: the last linear layer's entries")},
        keep={"own": Part(ANY, private=True, note="f_i"), "visits": Part(SCALAR, private=True)},
        server={"header": Part(ANY, note="h")},
    )

    def pairs(self, got: Replies) -> tuple[Tensor, Tensor]:
        """Return features (m, d) and labels as shares of classes (m, C), in the order in which h sees them."""
        raise TypeError(f"{type(self).__name__} does not say what its header learns from")

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, f"{self.config.method.name} sends mean features of classes")

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        return {"header": task.classifier(task.init_params(key))}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        names = task.classifier_names
        return {"own": {n: p for n, p in task.initial.items() if n not in names}, "visits": torch.zeros(())}

    def extended(self, task: Task, more: tuple[Any, ...] = ()) -> Visit:
        """Return the visit that trains, takes class means, and runs `more` phases; its `end` sends nothing yet."""

        def start(client: ClientContext) -> Tree:
            return {"model": joined(task, client)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            own = {n: carry["inner"]["model"][n] for n in client.own["own"]}
            return {}, {"own": own, "visits": client.own["visits"] + 1}

        made = sgd_visit(task.loss, self.local, start=start)
        after = prototypes.class_means(task, lambda carry: carry["model"])
        return Visit(made.begin, [*made.phases, after, *more], end, local=lambda carry: carry["inner"]["model"])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state)  # type: ignore[attr-defined]
        if not got.ids:
            return state
        s = self.settings
        z, q = self.pairs(got)
        header = fitted(state["header"], z, q, s.server_lr, s.server_batch, s.server_epochs, self.mean)
        return {"header": header}

    def serve(self, state: Tree) -> Tree:
        return state

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: joined(task, client))

    def cost(self, part: str, sent: Tree) -> int:
        return prototypes.cost(part, sent)


def joined(task: Task, client: ClientContext) -> Tree:
    """Return (f_i, h) as one model."""
    own, header = client.own["own"], client.shared["header"]
    return {n: own[n] if n in own else header[n.rpartition(".")[2]] for n in task.params_like}


def fitted(
    header: Tree, z: Tensor, q: Tensor, lr: float, batch: int, epochs: int = 1, mean: bool = True
) -> dict[str, Tensor]:
    """Return a linear layer after SGD on the cross-entropy -sum_c q_c log softmax(h(z))_c of pairs z (m, d), q (m, C), batch after
    batch in their order; mean: of a batch's pairs the mean, or the sum."""
    out = dict(header)
    for _ in range(epochs):
        for x, y in zip(z.split(batch), q.split(batch), strict=True):
            logits = x @ out["weight"].T + out.get("bias", 0.0)
            off = torch.softmax(logits, -1) * y.sum(-1, keepdim=True) - y
            step = lr / len(x) if mean else lr
            out["weight"] = out["weight"] - step * off.T @ x
            if "bias" in out:
                out["bias"] = out["bias"] - step * off.sum(0)
    return out
