"""FDLoRA: a private adapter, trained once alone, and a global one; each client mixes them with two weights that it searches for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Part, Phase, Visit, Wire, mean, optimizers, sgd_visit, tree, visit
from rayfed.adapters import lora
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.visits import accumulate, average, once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree


class FDLoRA(OverLoRA):
    """Qi et al. 2024, "FDLoRA: Personalized Federated Learning of Large Language Model via Dual LoRA Tuning" (2406.07925). The paper's text
    could not be read: what follows is from its abstract and from two independent re-implementations.

    Stage 1, before round 1: every client trains its private adapter p_i from one start; the global adapter is their mean, g = mean p_i,
    of those that reply; where nobody does, the next round begins with it.
    Stage 2, each round: client i: g_i <- local training from g; sends its change. Server: D = mean_i (g - g_i), one step of SGD with
    Nesterov's momentum on D: v <- beta v + D, g <- g - eta (D + beta v). `momentum: heavy` is g <- g - eta v (one of the two has that).
    `sync` N: in every Nth round p_i <- g_i at the clients asked; null: never. The re-implementations differ about it.
    Stage 3, whenever a client's model is assembled: A = w_1 A_p + w_2 A_g, B = w_1 B_p + w_2 B_g, w without gradients the least of
    loss + l1 (|w_1| + |w_2|) on the client's first `rows` training rows; here over a grid of [0, 1]^2 [ours: the paper has a black-box
    search]. The head, which language models lack, is the mean of both heads with these weights [ours].
    A client that took no part in stage 1 is served g.
    The search of stage 3 reads the client's rows without noise. What it makes stays at the client, so that noise on updates covers what
    is sent; `local.privacy`, which is about the rows, is refused.
    Down: A (r, n), B (m, r) of each layer, head. Up: their change. Kept at client i: p_i (with its head), and whether it has one.
    At the server: g, v, and whether stage 1 is over.
    """

    no_privacy = "chooses each client's weights w by the losses of its rows, which get no noise"

    class Settings(MethodSettings):
        server_lr: float = Field(1.0, gt=0, description="Step eta of the server's optimizer.")
        beta: float = Field(0.5, ge=0, lt=1, description="Momentum of the server's optimizer.")
        momentum: Literal["nesterov", "heavy"] = Field(
            "nesterov", description="Which momentum: Nesterov's, or heavy-ball."
        )
        sync: int | None = Field(None, ge=1, description="Rounds between two copies of g_i into p_i; null: none.")
        grid: int = Field(5, ge=2, description="Values of w_1 and of w_2 that are tried, from 0 to 1.")
        l1: float = Field(0.05, ge=0, description="Weight of |w_1| + |w_2| in the search.")
        rows: int = Field(32, ge=1, description="Training rows that the search is on.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="g; in stage 1 the start")},
        up={"delta": Part(PARAMS, update=True, note="of g; in stage 1 of p_i")},
        keep={
            "own": Part(PARAMS, private=True, note="p_i"),
            "trained": Part(SCALAR, private=True, note="1 once it has a p_i"),
        },
        server={
            "model": Part(PARAMS, note="g"),
            "v": Part(PARAMS),
            "begun": Part(SCALAR, note="1 once stage 1 is over"),
        },
    )

    def init(self, task: Task, key: int) -> Tree:
        zero = torch.zeros((), dtype=task.dtype, device=task.device)
        return {"model": task.init_params(key), "v": tree.zeros(task.params_like), "begun": zero}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"own": task.initial, "trained": torch.zeros((), dtype=task.dtype, device=task.device)}

    @visit
    def alone(self, task: Task) -> Visit:
        """Run stage 1 at one client."""
        return self._visit(task, keeps=True)

    @visit
    def train(self, task: Task, sync: bool = False) -> Visit:
        """Run a round of stage 2 at one client."""
        return self._visit(task, keeps=sync)

    def _visit(self, task: Task, keeps: bool) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            after = {"own": carry["model"], "trained": torch.ones_like(client.own["trained"])}
            return {"delta": tree.sub(carry["model"], client.shared["model"])}, after if keeps else client.own

        return sgd_visit(task.loss, self.local, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, clients = self.settings, fed.sample()
        if not clients:
            return state
        fold = mean("delta", weight="one")
        if not state["begun"]:
            got = fed.ask(self.alone, range(fed.population), shared={"model": state["model"]}, fold=fold)
            if not got.ids:
                return state
            model = tree.add(state["model"], got.folded["delta"])
            state = {**state, "model": model, "begun": torch.ones_like(state["begun"])}
        sync = s.sync is not None and fed.round % s.sync == 0
        got = fed.ask(self.train.with_(sync=sync), clients, shared={"model": state["model"]}, fold=fold)
        if not got.ids:
            return state
        back = tree.scale(got.folded["delta"], -1.0)
        model, v = outer_step(state["model"], back, state["v"], s.server_lr, s.beta, s.momentum == "nesterov")
        return {**state, "model": task.keep_averages(model, state["model"], got.folded["delta"]), "v": v}

    def view(self, task: Task) -> Visit:
        s = self.settings
        tried = [(a / (s.grid - 1), b / (s.grid - 1)) for a in range(s.grid) for b in range(s.grid) if a or b]

        def begin(client: ClientContext) -> Tree:
            return {"own": client.own["own"], "model": client.shared["model"]}

        def enter(client: ClientContext, carry: Tree) -> Tree:
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            return {"own": carry["own"], "model": carry["model"], "sum": {"loss": zero.repeat(len(tried))}, "n": zero}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            w = batch["w"] * (carry["n"] + batch["w"].cumsum(0) <= s.rows)
            losses = [task.loss(mixed(carry["own"], carry["model"], *pair), batch) for pair in tried]
            return {**carry, **accumulate(carry, {"loss": torch.stack(losses, -1)}, w)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            w = torch.tensor(tried, dtype=task.dtype, device=task.device)
            best = w[(average(carry)["loss"] + s.l1 * w.abs().sum(1)).argmin()]
            fused = mixed(carry["own"], carry["model"], best[0], best[1])
            return {"model": tree.where(client.own["trained"] > 0, fused, carry["model"])}, client.own

        return Visit(begin, [Phase(once("train"), step, enter, counts=False)], end)


def outer_step(x: Tree, gradient: Tree, v: Tree, lr: float, beta: float, nesterov: bool) -> tuple[Tree, Tree]:
    """Return a tree after one step of SGD with momentum, and the momentum's vector."""
    opt = optimizers.sgd(beta, nesterov)
    new, state = opt.update(gradient, {"velocity": v} if beta else {}, x, lr)
    return new, state.get("velocity", v)


def mixed(own: Tree, g: Tree, w1: Any, w2: Any) -> Tree:
    """Return w_1 p + w_2 g of A and B, and of everything else their mean with these weights."""
    both = w1 + w2
    return {n: (w1 * p + w2 * g[n]) / (1.0 if lora.is_a(n) or lora.is_b(n) else both) for n, p in own.items()}
