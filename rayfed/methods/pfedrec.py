"""PFedRec: recommendation with a personal score function and a personal view of the items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfed import (
    SCALAR,
    MethodSettings,
    Part,
    Wire,
    mean,
    model_of,
    params_of,
    tensor,
    total,
    tree,
    visit,
)
from rayfed.lazy import torch
from rayfed.methods._bases.item_table import ITEMS, ItemTable
from rayfed.training import clipped, grad, mean_loss, work
from rayfed.visits import Phase, Visit

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config

USER = params_of("user")


class PFedRec(ItemTable):
    """Zhang C. et al. 2023, Dual personalization on federated recommendation (2301.08143).

    A client is a user with a score function of its own, `task.model: factors`: sigmoid(w_u v_i + b_u), and no vector beside it. A round:
    V_u <- V; for each batch (1) a step on (w_u, b_u) of rate lr, (2) a second forward pass and a step on V_u of rate lr * I * `item_rate`,
    for a mean over a batch makes each item's gradient small. V_u comes back, V is the mean of these (`aggregate`), and the user keeps V_u
    after its own steps, with which it is served (`view: own`).
    The paper's code sends b_u too and never uses it; here it stays. `local.clip` is of either step's gradient by itself.
    Down: item table V (I, d). Up: its update, and which rows moved. Kept at clients: (w_u, b_u), V_u, and whether it was asked.
    At the server: V.
    """

    no_privacy = "trains users and items by formulas of its own"

    class Settings(MethodSettings):
        item_rate: float = Field(
            80.0, gt=0, description="Rate of the item table: lr * I times this (the code's lr_eta; I items)."
        )
        view: Literal["own", "shared"] = Field(
            "own", description="Served with the item table after the user's own steps, or (ablation) with the server's."
        )
        aggregate: Literal["mean", "touched"] = Field(
            "mean",
            description="An item's new vector: mean over all asked users (paper), or over those in whom it moved.",
        )

    wire = Wire(
        down={"items": Part(ITEMS)},
        up={"delta": Part(ITEMS, update=True), "touched": Part(tensor("I"), note="1 for each item whose vector moved")},
        keep={"user": Part(USER, private=True), "items": Part(ITEMS, private=True), "asked": Part(SCALAR)},
        server={"items": Part(ITEMS)},
    )

    def check(self, config: Config) -> list[str]:
        if found := super().check(config):
            return found
        o, within = config.local.optimizer, config.local.schedule.within
        if within != "constant":
            return [f"local.schedule.within: {within} found, pfedrec knows one rate in a visit; allowed: constant"]
        if (o.name, o.momentum, o.weight_decay) != ("sgd", 0.0, 0.0):
            return [
                f"local.optimizer: {o.name} found, pfedrec takes plain steps; allowed: sgd without momentum and decay"
            ]
        return []

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        first = task.initial
        return {
            "user": USER.select(first, task),
            "items": tree.zeros(ITEMS.select(first, task)),
            "asked": torch.zeros(()),
        }

    @visit
    def train(self, task: Task) -> Visit:
        rate = task.classes * self.settings.item_rate

        def loss(part: str, carry: Tree, batch: Any, key: Tensor) -> Tree:
            """Return the gradient of the batch's mean loss in the user's part or in the items."""

            def of(moved: Tree) -> Tensor:
                return mean_loss(task.loss, {**carry["items"], **carry["user"], **moved}, batch, key)

            slopes = grad(of)(carry[part])[0]
            return slopes if self.local.clip is None else clipped(slopes, self.local.clip)

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            user = tree.add(carry["user"], loss("user", carry, batch, key), -carry["lr"])
            carry = {**carry, "user": user}
            return {**carry, "items": tree.add(carry["items"], loss("items", carry, batch, key), -carry["lr"] * rate)}

        def begin(client: ClientContext) -> Tree:
            return {"user": client.own["user"], "items": client.shared["items"], "lr": client.info.lr}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            delta = tree.sub(carry["items"], client.shared["items"])
            moved = (tree.values(delta)[0] != 0).any(-1).to(task.dtype)
            own = {"user": carry["user"], "items": carry["items"], "asked": torch.ones_like(client.own["asked"])}
            return {"delta": delta, "touched": moved}, own

        return Visit(
            begin, [Phase(work(self.local), step)], end, local=lambda carry: {**carry["items"], **carry["user"]}
        )

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients = fed.sample()
        if self.settings.aggregate == "mean":
            got = fed.ask(self.train, clients, shared=state, fold=(mean("delta", weight="one"), total("touched")))
            return {"items": tree.add(state["items"], got.folded["delta"])}
        got = fed.ask(self.train, clients, shared=state, fold=(total("delta"), total("touched")))
        if not len(got):
            return state
        many = got.folded["touched"].clamp(min=1)[:, None]
        return {"items": {n: v + got.folded["delta"][n] / many for n, v in state["items"].items()}}

    def view(self, task: Task) -> Visit:
        def whole(client: ClientContext) -> Tree:
            shared = client.shared["items"]
            if self.settings.view == "own":
                shared = tree.where(client.own["asked"] > 0, client.own["items"], shared)
            return {**shared, **client.own["user"]}

        return model_of(whole)
