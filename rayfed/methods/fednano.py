"""FedNano: small adapters at the clients before a language model at the server, merged entry by entry by their Fisher information."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Phase, Visit, Wire, mean, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.training import gradient
from rayfed.visits import once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.visits import Batch


class FedNano(Method):
    """FedNano 2025 (2506.14824); no public code, and its reviewers find neither the adapters' place nor the messages in the paper: what
    follows is a reconstruction, all formulas [inferred].

    `task.split` cuts the network behind the client's part; all that is trained is before the cut, small adapters on what the client's
    encoder answers (`adapter: {kind: bottleneck, targets: [embed_tokens]}`), and the frozen rest is the server's.
    Client k: theta_k <- local training from theta, every step's embeddings and their gradients crossing the cut. Then its diagonal Fisher
        information, the mean over its rows (at most the first `rows` of them) of the squared gradient of each row's loss:
        F_k[p] = (1 / n) sum_i (d loss_i(theta_k) / d theta[p])^2; `fisher: steps` adds up squared gradients of its steps in place of
        a pass of its own (FedNano-EF), which for batches of b rows are too small by about b. `normalise` divides F_k by its mean.
    Server, entry by entry: theta[p] <- theta[p] + sum_k a_k F_k[p] delta_k[p] / sum_k a_k F_k[p], a_k = n_k / n, which is the
        F-weighted mean of theta_k; where that denominator is at most `eps`, sum_k a_k delta_k[p].
    `fisher: none` is FedAvg. A client whose loss is large weighs more, unless `normalise`. Embeddings and labels that cross are no secret.
    Down: theta (P). Up: delta_k and F_k (2 P), which the server multiplies itself; over the cut 2 rows x L x d numbers for each epoch, and
    for the pass of F_k. Kept at clients: nothing. At the server: theta.
    """

    class Settings(MethodSettings):
        fisher: Literal["pass", "steps", "none"] = Field(
            "pass",
            description="By single rows after training; by squared gradients of its steps; or none, the plain mean.",
        )
        normalise: bool = Field(
            False, description="Divide each client's Fisher information by its mean over the entries."
        )
        rows: int | None = Field(None, ge=1, description="Rows of the pass, a client's first ones; null: all.")
        eps: float = Field(1e-12, ge=0, description="Denominator up to which an entry has the plain mean.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={
            "delta": Part(PARAMS, update=True),
            "fisher": Part(PARAMS, note="F_k"),
            "moved": Part(PARAMS, note="F_k delta_k, which the server works out: it costs nothing"),
        },
        server={"model": Part(PARAMS)},
    )
    no_buffers = "it weighs entries by squared gradients, and running statistics have none"
    no_privacy = "sends squared gradients of single rows"
    no_rule = "each entry has weights of its own"

    def check(self, config: Config) -> list[str]:
        out = []
        if config.task.split is None or len(config.task.split.after) != 1:
            found = "nothing" if config.task.split is None else "two layers"
            out.append(
                f"task.split.after: {found} found, method.name: fednano needs one: the last layer of the client's part"
            )
        if config.transforms:
            out.append(
                "transforms: found, which change updates, and method.name: fednano weighs them by what clients send beside; allowed: []"
            )
        return out

    def fits_model(self, task: Task) -> list[str]:
        if task.cut is None or not (late := sorted(task.cut.behind & task.params_like.keys())):
            return []
        return [
            f"task.split.after: {', '.join(task.cut.names)} found, behind which {late[0]} is trained; method.name: fednano trains the "
            "client's part alone: cut later, or choose adapter.targets before the cut (and a model that keeps its own head)"
        ]

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings

        def start(client: ClientContext) -> Tree:
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            extra = {} if s.fisher == "none" else {"fisher": tree.zeros(client.shared["model"]), "n": zero}
            return {"model": client.shared["model"], **extra}

        def square(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            w = batch["w"]
            if s.rows is not None:
                w = w * (carry["n"] + w.cumsum(0) <= s.rows).to(w.dtype)
            found, rows = squared(task, carry["model"], {**batch, "w": w}), w.sum()
            if task.crossings is not None and task.cut is not None:
                task.crossings.pass_through(rows.to(torch.int64), len(task.cut.names))
            return {**carry, "fisher": tree.add(carry["fisher"], found), "n": carry["n"] + rows}

        def step_square(params: Tree, carry: Tree, batch: Batch, key: Any) -> tuple[Tree, Tree]:
            g = gradient(task.loss, params, batch, key)
            return g, {"fisher": tree.add(carry["fisher"], tree.map(lambda x: x * x, g)), "n": carry["n"] + 1}

        made = sgd_visit(task.loss, self.local, start=start, grad=step_square if s.fisher == "steps" else None)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            delta = tree.sub(carry["model"], client.shared["model"])
            if s.fisher == "none":
                return {"delta": delta}, client.own
            fisher = tree.scale(carry["fisher"], 1 / carry["n"].clamp(min=1))
            if s.normalise:
                size = sum(x.numel() for x in tree.values(fisher))
                total = sum(x.sum() for x in tree.values(fisher))
                fisher = tree.scale(fisher, size / total.clamp(min=1e-30))
            return {"delta": delta, "fisher": fisher, "moved": tree.map(torch.mul, fisher, delta)}, client.own

        phases = [*made.phases, *([Phase(once(), square, counts=False)] if s.fisher == "pass" else [])]
        return Visit(made.begin, phases, end, local=made.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        weighs = self.settings.fisher != "none"
        parts = ("delta", "fisher", "moved") if weighs else ("delta",)
        got = fed.ask(self.train, fed.sample(), shared=state, fold=[mean(part) for part in parts])
        if not got.ids:
            return state
        change = got.folded["delta"]
        if weighs:
            change = merged(change, got.folded["fisher"], got.folded["moved"], self.settings.eps)
        return {"model": tree.add(state["model"], change)}

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "moved" else super().cost(part, sent)


def squared(task: Task, params: Tree, batch: Batch) -> Tree:
    """Return the sum over the real rows of the squared gradient of each row's loss, {name: tensor}."""
    rows = {n: x for n, x in batch.items() if n != "w"}

    def one(row: Tree) -> Tree:
        single = {n: x[None] for n, x in row.items()}
        return torch.func.grad(lambda p: task.loss(p, {**single, "w": torch.ones(1, dtype=task.dtype)})[0])(params)

    w = batch["w"]
    return tree.map(lambda g: torch.tensordot(w.to(g.dtype), g * g, dims=([0], [0])), torch.vmap(one)(rows))


def merged(plain: Tree, fisher: Tree, moved: Tree, eps: float) -> Tree:
    """Return, entry by entry, moved / fisher, and plain where fisher is at most eps: means over the clients of delta, F and F delta."""

    def entry(p: Tensor, f: Tensor, m: Tensor) -> Tensor:
        return torch.where(f > eps, m / torch.where(f > eps, f, 1.0), p)

    return tree.map(entry, plain, fisher, moved)
