"""pFedMe: personal models near a client's copy of the global one, which follows them (Moreau envelopes)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Part, Wire, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.training import gradient

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class PFedMe(Method):
    """Dinh et al. 2020, "Personalized Federated Learning with Moreau Envelopes" (NeurIPS 2020, 2006.08848).

    Client i, from w = theta = x^r, in each local step on one minibatch D: `inner_steps` times
    theta <- theta - inner_lr (grad F_i(theta; D) + lam (theta - w)); then w <- w - lr lam (w - theta), lr that of `local.optimizer`.
    theta goes on from step to step, as in the published code. Sends w - x^r; keeps theta, which it is served.
    Server, uniform: x^{r+1} = x^r + beta mean_S (w_i - x^r).
    Down: the model (P floats). Up: the update (P). Kept at client i: theta_i (P), and whether it has one. At the server: the model.
    """

    no_buffers = "it trains two models on one batch, whose running statistics differ"
    no_privacy = "solves a problem of its own on each batch"

    class Settings(MethodSettings):
        lam: float = Field(15.0, ge=0, description="How near theta stays to w; lr times lam is w's step.")
        inner_steps: int = Field(5, ge=1, description="Steps on theta for each step on w.")
        inner_lr: float = Field(0.09, gt=0, description="Rate of the steps on theta.")
        beta: float = Field(
            1.0, gt=0, description="Step of the server along the mean of w_i - x^r; the paper also takes 2."
        )

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True)},
        keep={"theta": Part(PARAMS, private=True), "visited": Part(SCALAR, private=True)},
        server={"model": Part(PARAMS)},
    )

    def check(self, config: Config) -> list[str]:
        o, lam = config.local.optimizer, self.settings.lam
        if o.name != "sgd" or o.momentum or o.weight_decay:
            return [
                "local.optimizer: pfedme's step on w is lr lam (w - theta); it needs sgd without momentum and weight decay"
            ]
        # each step multiplies the distance of theta and w by 1 minus this product
        for name, rate in (("local.optimizer.lr", o.lr), ("method.inner_lr", self.settings.inner_lr)):
            if rate * lam > 2:
                return [f"method.lam: {lam:g} found, {name}: {rate:g}; allowed: a product of at most 2"]
        return []

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"theta": tree.zeros(task.params_like), "visited": torch.zeros(())}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings

        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "theta": client.shared["model"]}

        def towards(w: Tree, carry: Tree, batch: Any, key: Any) -> tuple[Tree, Tree]:
            theta = carry["theta"]
            for _ in range(s.inner_steps):
                slope = tree.add(gradient(task.loss, theta, batch, key), tree.sub(theta, w), s.lam)
                theta = tree.add(theta, slope, -s.inner_lr)
            return tree.scale(tree.sub(w, theta), s.lam), {"theta": theta}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            kept = {"theta": carry["theta"], "visited": torch.ones_like(client.own["visited"])}
            return {"delta": tree.sub(carry["model"], client.shared["model"])}, kept

        return sgd_visit(task.loss, self.local, start=start, grad=towards, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="one"))
        return {"model": tree.add(state["model"], got.folded["delta"], self.settings.beta)}

    def view(self, task: Task) -> Visit:
        def personal(client: ClientContext) -> Tree:
            """theta_i, or the global model for a client that was never asked."""
            return tree.where(client.own["visited"] > 0, client.own["theta"], client.shared["model"])

        return model_of(personal)
