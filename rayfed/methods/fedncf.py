"""FedNCF: recommendation in which everything but the user's own part of the model is averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed import Method, Part, Wire, mean, model_of, params_but, params_of, sgd_visit, tree, visit

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit

ITEMS, USER = params_but("user"), params_of("user")


class FedNCF(Method):
    """Perifanis and Efraimidis 2022, Federated neural collaborative filtering (2106.04405); with `task.model: factors` federated matrix
    factorisation by gradient steps.

    A client is a user. It trains the item table, the scoring network and its own vector on its items and on sampled ones that it never
    took; table and network come back as an update and are averaged by examples, its vector stays. Every user starts from the same vector.
    Down: all but the user's part (table and network). Up: their update, n_i. Kept at clients: the user's part.
    At the server: table and network.
    """

    wire = Wire(
        down={"model": Part(ITEMS)},
        up={"delta": Part(ITEMS, update=True)},
        keep={"user": Part(USER, private=True)},
        server={"model": Part(ITEMS)},
    )
    needs: ClassVar[frozenset[str]] = frozenset({"items"})
    universal = None

    def init(self, task: Task, key: int) -> Tree:
        return {"model": ITEMS.select(task.init_params(key), task)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"user": USER.select(task.initial, task)}

    @visit
    def train(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = tree.sub(ITEMS.select(carry["model"], task), client.shared["model"])
            return {"delta": sent}, {"user": USER.select(carry["model"], task)}

        return sgd_visit(task.loss, self.local, start=lambda client: {"model": _whole(client)}, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("delta", weight="examples"))
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        return model_of(_whole)


def _whole(client: ClientContext) -> Tree:
    """Return a user's whole model: what all share, and its own part."""
    return {**client.shared["model"], **client.own["user"]}
