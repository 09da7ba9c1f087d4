"""FedAsync: each client's model is mixed into the server's as it comes in, the less the staler it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import MethodSettings, Need, sgd_visit, tree, visit
from rayfed.clock import Clock
from rayfed.methods._bases.asynchronous import Asynchronous

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FedAsync(Asynchronous):
    """Xie et al. 2019, "Asynchronous Federated Optimization" (OPT 2020, 1903.03934).

    Client i, sent version t': minimises F_i(y) + (rho / 2) |y - x_t'|^2 by SGD. Each reply is a step of the server (a round here):
    x <- (1 - a) x + a y, a = alpha s(t - t'), s constant 1; `poly` (1 + t - t')^-power; `hinge` 1 up to a staleness of `grace`, then
    1 / (power (t - t' - grace) + 1). As published it mixes models, so what others did since t' is partly undone; `fedbuff` adds
    differences.
    Down: the model (P floats). Up: P floats. Kept at clients: nothing. At the server: x, and each version in use.
    """

    class Settings(MethodSettings):
        needs: ClassVar = {"power": (Need("staleness", ("poly", "hinge")),), "grace": (Need("staleness", ("hinge",)),)}

        alpha: float = Field(0.6, gt=0, le=1, description="Weight of a fresh model.")
        rho: float = Field(0.005, ge=0, description="Pull towards the version that the client was sent.")
        staleness: Literal["constant", "poly", "hinge"] = Field("poly", description="How staleness lowers the weight.")
        power: float = Field(0.5, gt=0, description="Exponent of poly, slope of hinge.")
        grace: int = Field(4, ge=0, description="Staleness up to which hinge is 1.")

    @visit
    def train(self, task: Task) -> Visit:
        rho = self.settings.rho

        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "anchor": client.shared["model"]}

        def pull(gradient: Tree, carry: Tree) -> Tree:
            return tree.add(gradient, tree.sub(carry["model"], carry["anchor"]), rho)

        return sgd_visit(task.loss, self.local, start=start, hook=pull)

    def mixing(self, staleness: int) -> float:
        """Return a, the weight of a model that is so stale."""
        s = self.settings
        if s.staleness == "poly":
            return float(s.alpha * (1 + staleness) ** -s.power)
        if s.staleness == "hinge":
            return float(s.alpha / (s.power * max(0, staleness - s.grace) + 1))
        return float(s.alpha)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        at = Clock(state, fed, fed.durations())
        came = at.replies(1)
        summed, ids = self.collect(fed, at, came, lambda client, staleness: 1.0)
        if not ids:
            return at.after(None)
        ((old, staleness, _),) = at.versions(came)
        theirs = tree.add(old, summed["delta"])
        return at.after(tree.add(state["model"], tree.sub(theirs, state["model"]), self.mixing(staleness)))
