"""GPFedRec: every user has an item table of its own, drawn towards those of users like it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rayfed import SCALAR, MethodSettings, Part, Wire, model_of, params_but, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.item_table import ITEMS, ItemTable, at_own_rate
from rayfed.training import clipped_apart
from rayfed.visits import Visit

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree
    from rayfed.config.schema import Config

USER = params_but("items")


class GPFedRec(ItemTable):
    """Zhang C. et al. 2024, GPFedRec: graph-guided personalization for federated recommendation (2305.07866), after the authors' code.

    A user keeps all but the item table: its vector and its score network (`task.model: ncf`), or its score function (`factors`). A round:
    V_u <- the common table V; local steps on BCE + `reg` * mean (V_u - A_u)^2, over all items, A_u being the user's table of last time from
    the graph; V_u goes up. The server joins users whose tables are alike: cosine s_uw of the flattened tables, u's neighbours those of more
    than `threshold` times the mean of its row, or the `neighbours` nearest; S is 1 there, its rows divided by their sums [inferred]. Then
    V'_u = (S^L V)_u with L = `layers`, V <- mean_u V'_u, and A_u <- V'_u, which the server sends u alone and u keeps.
    The item table's rate is lr * I * `item_rate`, the rest's lr. The code joins users of small cosine where it means alike ones (a distance
    is not turned round): `graph: unlike`. A_u of a user never asked is the first table. The paper's Laplace noise on what is sent is
    `transforms` here.
    Down: V (I, d) to all, V'_u (I, d) to each after it was joined. Up: V_u, as its update. Kept at clients: the user's part, V_u, A_u, and
    whether it was asked. At the server: V.
    """

    no_rule = "every user gets another mixture of the tables"

    class Settings(MethodSettings):
        reg: float = Field(1.0, ge=0, description="Weight of the mean squared distance to the table from the graph.")
        threshold: float = Field(1.0, ge=0, description="Neighbours: above this times the mean similarity of a user.")
        neighbours: int | None = Field(None, ge=1, description="Neighbours: as many nearest ones, in place of that.")
        layers: int = Field(1, ge=1, description="How often tables are averaged over neighbours, L.")
        item_rate: float = Field(
            80.0, gt=0, description="Rate of the item table: lr * I times this (the code's lr_eta; I items)."
        )
        graph: Literal["alike", "unlike"] = Field(
            "alike", description="Neighbours: users of alike tables (paper), or of unlike ones (as the code has it)."
        )
        view: Literal["own", "graph", "shared"] = Field(
            "own", description="Served with the table after the user's own steps, the graph's, or the common one."
        )

    wire = Wire(
        down={"items": Part(ITEMS), "anchor": Part(ITEMS, note="V'_u")},
        up={"delta": Part(ITEMS, update=True)},
        keep={
            "user": Part(USER, private=True),
            "items": Part(ITEMS, private=True, note="V_u"),
            "anchor": Part(ITEMS, note="A_u"),
            "asked": Part(SCALAR),
        },
        server={"items": Part(ITEMS)},
    )
    linear = False

    def check(self, config: Config) -> list[str]:
        return at_own_rate(config, "table has a rate of its own")

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        first = ITEMS.select(task.initial, task)
        user = USER.select(task.initial, task)
        return {"user": user, "items": first, "anchor": first, "asked": torch.zeros(())}

    @visit
    def train(self, task: Task) -> Visit:
        table = next(iter(ITEMS.select(task.params_like, task)))
        rate = task.classes * self.settings.item_rate
        local, bound = clipped_apart(self.local, lambda name: name != table)

        def start(client: ClientContext) -> Tree:
            return {"model": {**client.own["user"], **client.shared["items"]}, "anchor": client.own["anchor"][table]}

        def objective(params: Tree, carry: Tree, batch: Any, key: Tensor) -> Tensor:
            return task.loss(params, batch, key) + self.settings.reg * ((params[table] - carry["anchor"]) ** 2).mean()

        def hook(grads: Tree, carry: Tree) -> Tree:
            grads = bound(grads, carry) if bound else grads
            return {**grads, table: grads[table] * rate}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            items = ITEMS.select(carry["model"], task)
            user = {n: carry["model"][n] for n in client.own["user"]}
            own = {**client.own, "user": user, "items": items, "asked": torch.ones_like(client.own["asked"])}
            return {"delta": tree.sub(items, client.shared["items"])}, own

        return sgd_visit(task.loss, local, start=start, objective=objective, hook=hook, end=end)

    @visit
    def receive(self, task: Task) -> Visit:
        """Keep the table from the graph."""
        return Visit(lambda client: {}, (), lambda client, carry: ({}, {**client.own, "anchor": client.mine["anchor"]}))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state)
        if not len(got):
            return state
        s = torch.linalg.matrix_power(self.joined(self.similarity(state["items"], got)), self.settings.layers)
        *moved, common = got.linear("delta", torch.cat([s, s.mean(0, keepdim=True)]))
        tables = {c: {"anchor": tree.add(state["items"], d)} for c, d in zip(got.ids, moved, strict=True)}
        fed.ask(self.receive, got.ids, mine=tables)
        return {"items": tree.add(state["items"], common)}

    def similarity(self, items: Tree, got: Replies) -> Tensor:
        """Return the cosine of each two users' flattened tables V + delta, (n, n), worked out where the updates are."""
        across = got.dot("delta", [items])
        inner = got.gram("delta").to(across.dtype) + across + across.T + tree.dot(items, items)
        size = inner.diagonal().clamp(min=1e-12).sqrt()
        return inner / (size[:, None] * size)

    def joined(self, similarity: Tensor) -> Tensor:
        """Return S (n, n), whose rows sum to 1; a user without neighbours is its own."""
        s = similarity if self.settings.graph == "alike" else 1 - similarity
        if self.settings.neighbours is None:
            near = (s > s.mean(1, keepdim=True) * self.settings.threshold).to(s.dtype)
        else:
            first = s.topk(min(self.settings.neighbours, len(s)), 1).indices
            near = torch.zeros_like(s).scatter(1, first, 1.0)
        alone = (near.sum(1, keepdim=True) == 0).to(s.dtype)
        near = near + alone * torch.eye(len(s), dtype=s.dtype)
        return near / near.sum(1, keepdim=True)

    def view(self, task: Task) -> Visit:
        def whole(client: ClientContext) -> Tree:
            shared = client.shared["items"]
            if self.settings.view != "shared":
                own = client.own["items" if self.settings.view == "own" else "anchor"]
                shared = tree.where(client.own["asked"] > 0, own, shared)
            return {**shared, **client.own["user"]}

        return model_of(whole)
