"""APFL: each client is served a mixture of the global model and a local one, trained as that mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import (
    PARAMS,
    SCALAR,
    Method,
    MethodSettings,
    Part,
    Visit,
    Wire,
    keys,
    mean,
    model_of,
    sgd_visit,
    tree,
    visit,
)
from rayfed.lazy import torch
from rayfed.training import gradient

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.visits import Batch


class APFL(Method):
    """Deng et al. 2020, "Adaptive Personalized Federated Learning" (2003.13461), algorithm 1.

    Client i, on each batch, with vbar = a v_i + (1 - a) w_i and g its loss's gradient at vbar:
        w_i <- w_i - eta grad F_i(w_i);   v_i <- v_i - eta a g;   a <- clip(a - alpha_lr <v_i - w_i, g>, 0, 1).
    w_i starts as the global w in every round, v_i and a are kept. Sends w_i - w; server: w <- w + sum_i (n_i / n) (w_i - w): FedAvg
    to the bit (the paper's mean is over clients of equal sizes). Served: a v_i + (1 - a) w with the w of that round; a client that
    never took part, a held-out one too, is served w.
    `alpha_lr: 0` leaves a as it is; the paper's adaptive variant steps with eta. Running statistics of vbar are v_i's own. Some
    code leaves the factor a out of v_i's gradient, or adds to a's a decay of 0.02 a; here they are the paper's.
    Down: w (P floats). Up: update (P), n_i. Kept at client i: v_i (P), a, how often it trained. At the server: w.
    """

    no_privacy = "steps by two gradients, of its own model and of a mixture"

    class Settings(MethodSettings):
        alpha: float = Field(
            0.5, ge=0, le=1, description="First weight of the local model; the paper's: 0.25, 0.5, 0.75."
        )
        alpha_lr: float = Field(0.0, ge=0, description="Step of that weight on each batch; 0 keeps it.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="w")},
        up={"delta": Part(PARAMS, update=True)},
        keep={
            "v": Part(PARAMS, private=True),
            "alpha": Part(SCALAR, private=True),
            "visits": Part(SCALAR, private=True),
        },
        server={"model": Part(PARAMS, note="w")},
    )

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        alpha = torch.tensor(self.settings.alpha, dtype=task.dtype)
        return {"v": task.initial, "alpha": alpha, "visits": torch.zeros(())}

    @visit
    def train(self, task: Task) -> Visit:
        rate, common = self.settings.alpha_lr, sgd_visit(task.loss, self.local)
        (plain,) = common.phases

        def start(client: ClientContext) -> Tree:
            return {"v": client.own["v"], "w": common.begin(client), "alpha": client.own["alpha"]}

        def both(v: Tree, carry: Tree, batch: Batch, key: Tensor) -> tuple[Tree, Tree]:
            w, a = carry["w"]["model"], carry["alpha"]
            g = gradient(task.loss, mixed(v, w, a, task.buffers), batch, keys.fold(key, 1))
            changes = {"w": plain.step(carry["w"], batch, key)}
            if rate:
                slope = sum(((v[n] - w[n]) * g[n]).sum() for n in v if n not in task.buffers)
                changes["alpha"] = (a - rate * slope).clamp(0, 1)
            return tree.scale(g, a), changes

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            after = {"v": carry["v"], "alpha": carry["alpha"], "visits": client.own["visits"] + 1}
            return {"delta": tree.sub(carry["w"]["model"], client.shared["model"])}, after

        made = sgd_visit(task.loss, self.local, train="v", start=start, grad=both, end=end)
        (steps,) = made.phases

        def enter(client: ClientContext, carry: Tree) -> Tree:
            assert plain.enter is not None and steps.enter is not None
            return steps.enter(client, {**carry, "w": plain.enter(client, carry["w"])})

        def local(carry: Tree) -> Tree:
            return mixed(carry["v"], carry["w"]["model"], carry["alpha"], task.buffers)

        return made._replace(phases=[steps._replace(enter=enter)], local=local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"))
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        def served(client: ClientContext) -> Tree:
            w, own = client.shared["model"], client.own
            return tree.where(own["visits"] > 0, mixed(own["v"], w, own["alpha"], task.buffers), w)

        return model_of(served)


def mixed(v: Tree, w: Tree, a: Tensor, buffers: Sequence[str]) -> Tree:
    """Return a v + (1 - a) w; of running statistics v's."""
    return {n: x if n in buffers else a * x + (1 - a) * w[n] for n, x in v.items()}
