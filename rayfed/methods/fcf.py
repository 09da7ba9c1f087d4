"""FCF: each user's vector in closed form, and gradients of the items' vectors from everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from rayfed import MethodSettings, Part, Wire, total, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.item_table import ITEMS, ItemTable
from rayfed.visits import Phase, Visit, once

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config

TABLE = "items.weight"


class FCF(ItemTable):
    """Ammad-ud-din et al. 2019, Federated collaborative filtering for privacy-preserving personalized recommendation system (1901.09888).

    A client is a user u with r_ui = 1 for the items that it took, else 0, and the confidence c_ui = 1 + `alpha` r_ui; y_i is row i of the
    item table Y (I, d). The loss is sum_ui c_ui (r_ui - x_u y_i)^2 + `reg` (sum_u |x_u|^2 + sum_i |y_i|^2). A round: every
    asked user solves
    for its vector, x_u = (Y' C_u Y + reg I)^-1 Y' C_u r_u, and sends f_ui = c_ui (r_ui - x_u y_i) x_u of every item; the server steps,
    y_i <- y_i + 2 `server_lr` (sum_u f_ui - reg y_i).
    x_u follows from Y and the user's own items, so that it is kept nowhere and is worked out anew where a user is served, one that was
    never asked too. The score of an item is x_u y_i, without a bias. `local` is not read: a user takes no steps.
    Down: Y (I, d). Up: sum of f_ui over the asked users (I, d). Kept at clients: nothing. At the server: Y.
    """

    no_privacy = "solves for each user in closed form"
    no_rule = "gradients are summed over the users, not averaged"

    class Settings(MethodSettings):
        alpha: float = Field(4.0, ge=0, description="Confidence in an item that was taken: 1 + alpha, of others 1.")
        reg: float = Field(0.1, gt=0, description="Weight of the squared norms of users' and items' vectors.")
        server_lr: float = Field(
            0.01, gt=0, description="The server's rate eta, of the sum over the asked users (half the step)."
        )

    wire = Wire(
        down={"items": Part(ITEMS)},
        up={"gradient": Part(ITEMS, update=True, note="f_ui of every item")},
        server={"items": Part(ITEMS)},
    )

    def check(self, config: Config) -> list[str]:
        if found := super().check(config):
            return found
        if config.local.clip is not None:
            return [f"local.clip: {config.local.clip} found, fcf's users take no steps; allowed: null"]
        return []

    @visit
    def train(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            items, taken = carry["items"][TABLE], carry["taken"]
            user = self._solve(items, taken)
            errors = (1 + self.settings.alpha * taken) * (taken - items @ user)
            return {"gradient": {TABLE: errors[:, None] * user}}, client.own

        return self._over_items(task, end)

    def view(self, task: Task) -> Visit:
        return self._over_items(task, lambda client, carry: ({"model": self._model(carry)}, client.own))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared=state, fold=total("gradient"))
        if not len(got):
            return state
        step = tree.add(got.folded["gradient"], state["items"], -self.settings.reg)
        return {"items": tree.add(state["items"], step, 2 * self.settings.server_lr)}

    def _over_items(self, task: Task, end: Callable[[ClientContext, Tree], tuple[Tree, Tree]]) -> Visit:
        """Return a visit whose carry has the item table, and which items the user took, `taken` (I,) 1 or 0; it counts as no training."""

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            met = (batch["y"][:, None] == torch.arange(task.classes, device=batch["y"].device)).to(task.dtype)
            return {**carry, "taken": torch.maximum(carry["taken"], (met * batch["w"][:, None]).amax(0))}

        def begin(client: ClientContext) -> Tree:
            items = client.shared["items"]
            return {"items": items, "taken": torch.zeros_like(items[TABLE][:, 0])}

        return Visit(begin, [Phase(once(), step, counts=False)], end, local=self._model)

    def _model(self, carry: Tree) -> Tree:
        """Return the model that a user scores with."""
        user = self._solve(carry["items"][TABLE], carry["taken"])
        return {**carry["items"], "user.weight": user[None], "user.bias": torch.zeros_like(user[:1])}

    def _solve(self, items: Tensor, taken: Tensor) -> Tensor:
        """Return x_u (d,), the minimum of the user's loss for the items' vectors (I, d)."""
        weighted = items * (1 + self.settings.alpha * taken)[:, None]
        square = items.T @ weighted
        square = square + self.settings.reg * torch.eye(len(square), dtype=items.dtype, device=items.device)
        return torch.linalg.solve(square, weighted.T @ taken)
