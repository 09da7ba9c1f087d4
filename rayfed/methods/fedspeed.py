"""FedSpeed: FedDyn's pull with the gradient of a point uphill, which seeks flat minima."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import MethodSettings, Need, mean, sgd_visit, tree, visit
from rayfed.methods._bases.dual import Dual
from rayfed.training import gradient

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FedSpeed(Dual):
    """Sun et al. 2023, "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy"
    (ICLR 2023, 2302.10429).

    Client i, in each step on one minibatch: g1 at y; g2 at y + rho g1 / (|g1| + 1e-7); g = (1 - alpha) g1 + alpha g2;
    y <- y - lr (g + lam (y - x^r + h_i)). Then h_i <- h_i + (y_K - x^r), which is the paper's prox-correction over -lam.
    Server, uniform: `server: all`, as the published code, x^{r+1} = mean_S y_i + mean over all N of h_i; `server: active`, as the
    paper, x^{r+1} = mean_S (y_i + h_i). With everybody in every round they are one. A round without replies changes nothing.
    `rho: 0` is FedDyn with alpha = lam to the bit. The code clips to norm 10 (`local.clip: 10`, here before h_i is added), decays
    the rate by 0.998 a round (`local.schedule`), and takes alpha = 1. A step costs two gradients.
    Down: the model (P floats). Up: P floats. Kept at client i: h_i (P). At the server: x, mean of h_i (2 P).
    """

    no_privacy = "steps by gradients at two points"

    class Settings(MethodSettings):
        needs: ClassVar = {"alpha": (Need("rho", (0.0,), but=True),)}

        lam: float = Field(0.1, gt=0, description="Strength of the pull, 1 / lambda of the paper.")
        rho: float = Field(0.1, ge=0, description="How far uphill the second gradient is taken.")
        alpha: float = Field(1.0, ge=0, le=1, description="Weight of the second gradient.")
        server: Literal["all", "active"] = Field(
            "all", description="Whose h_i the server adds: all clients', or the round's."
        )

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings

        def uphill(params: Tree, carry: Tree, batch: Any, key: Any) -> tuple[Tree, Tree]:
            first = gradient(task.loss, params, batch, key)
            above = tree.add(params, first, s.rho / (tree.norm(first) + 1e-7))
            second = gradient(task.loss, above, batch, key)
            return tree.map(lambda a, b: (1 - s.alpha) * a + s.alpha * b, first, second), {}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent, kept = self.end(client, carry)
            if s.server == "active":
                sent = {"delta": {n: u if n in task.buffers else u + kept["h_i"][n] for n, u in sent["delta"].items()}}
            return sent, kept

        return sgd_visit(
            task.loss, self.local, start=self.start, grad=uphill if s.rho else None,
            hook=lambda g, carry: self.pull(g, carry, s.lam), end=end,
        )  # fmt: skip

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        if self.settings.server == "all":
            return super().round(state, fed, task)
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="one"))
        return {**state, "model": tree.add(state["model"], got.folded["delta"])}
