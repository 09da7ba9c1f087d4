"""FedRAP: an item is the sum of what all see in it and of what one user does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from rayfed import MethodSettings, Part, Wire, mean, model_of, params_of, sgd_visit, tree, visit
from rayfed.methods._bases.item_table import ITEMS, ItemTable, at_own_rate
from rayfed.training import clipped_apart

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config

USER = params_of("user")
COMMON, OWN = "items.weight", "own.items.weight"


class FedRAP(ItemTable):
    """Li Z. et al. 2024, Federated recommendation with additive personalization (2301.09109), after the authors' code.

    An item of user u is C_i + D_u,i, the common table C (I, d) and one of the user's own; its score sigmoid(w_u (C_i + D_u,i) + b_u). The
    local loss is that of the task - `lam` * mean (D_u,i - C_i)^2 + `mu` * mean |C_i| over the items and coordinates of a batch, taken and
    sampled ones: tables are pushed apart, and the common one is kept sparse. w_u, b_u move at the local rate, both tables at `item_rate`
    times it, in one step. C is the mean of the asked users' (`weight: one`); D_u, w_u and b_u stay.
    Of the code are not here: the tanh schedules of lam and mu, which its loss does not read; ten epochs at most with a stop where the loss
    stays (`local.epochs` says how many here); the best round by test scores. The paper's decay of rates is `local.schedule`. D_u starts
    at zero [ours], so that a user that was never asked is served C.
    Down: C (I, d). Up: its update. Kept at clients: (w_u, b_u), D_u. At the server: C.
    """

    class Settings(MethodSettings):
        lam: float = Field(0.1, ge=0, description="Weight of the squared distance of the two tables, which grows.")
        mu: float = Field(0.1, ge=0, description="Weight of the common table's mean absolute value.")
        item_rate: float = Field(
            400.0, gt=0, description="Rate of both tables: local.optimizer.lr times this (the code's 200 / 0.5)."
        )
        personal: bool = Field(
            True, description="Whether users have a table of their own; false (ablation): D_u stays zero."
        )

    wire = Wire(
        down={"items": Part(ITEMS)},
        up={"delta": Part(ITEMS, update=True)},
        keep={"user": Part(USER, private=True), "own": Part(ITEMS, private=True, note="D_u")},
        server={"items": Part(ITEMS)},
    )

    def check(self, config: Config) -> list[str]:
        return super().check(config) or at_own_rate(config, "tables have a rate of their own")

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        first = task.initial
        return {"user": USER.select(first, task), "own": tree.zeros(ITEMS.select(first, task))}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        local, bound = clipped_apart(self.local, lambda name: name != COMMON)
        rates = {COMMON: s.item_rate, OWN: s.item_rate if s.personal else 0.0}

        def start(client: ClientContext) -> Tree:
            return {"model": {**client.own["user"], OWN: client.own["own"][COMMON], **client.shared["items"]}}

        def objective(params: Tree, carry: Tree, batch: Any, key: Tensor) -> Tensor:
            loss = task.loss(_summed(params), batch, key)
            common, own = (params[n][task.items(batch, key)] for n in (COMMON, OWN))  # type: ignore[attr-defined]
            apart, size = ((own - common) ** 2).mean((1, 2)), common.abs().mean((1, 2))
            return loss - s.lam * apart + s.mu * size

        def hook(grads: Tree, carry: Tree) -> Tree:
            grads = bound(grads, carry) if bound else grads
            return {n: g * rates[n] if n in rates else g for n, g in grads.items()}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            model = carry["model"]
            kept = {"user": {n: model[n] for n in client.own["user"]}, "own": {COMMON: model[OWN]}}
            return {"delta": {COMMON: model[COMMON] - client.shared["items"][COMMON]}}, kept

        made = sgd_visit(task.loss, local, start=start, objective=objective, hook=hook, end=end)
        return made._replace(local=lambda carry: _summed(carry["model"]))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("delta", weight="one"))
        return {"items": tree.add(state["items"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: {**tree.add(client.shared["items"], client.own["own"]), **client.own["user"]})


def _summed(params: Tree) -> Tree:
    """Return the model that a user scores with: its item table is the sum of the common one and its own."""
    return {**{n: p for n, p in params.items() if n != OWN}, COMMON: params[COMMON] + params[OWN]}
