"""One model per client at the server, moved by the task vectors of clients that learn alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Need, Part, Wire, model_of, sgd_visit, tree, visit
from rayfed.adapters import lora
from rayfed.lazy import torch
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class TaskVectors(Method):
    """Base of FedBip and FedBip-L: `groups` says which entries of a task vector are weighed with the same weights."""

    logs: ClassVar = {
        "similarity/least_sum": ("least sum of similarities that a weight was divided by", "0 = weights fell back"),
        **{
            f"similarity/{of}_{side}": (f"mean cosine of the {of.replace('_', ' ')} of two clients {who}", "cosine")
            for of in ("task_vectors", "models")
            for side, who in (
                ("within", "of one planted group"),
                ("across", "of two planted groups"),
                ("mean", "without groups"),
            )
        },
    }

    class Settings(MethodSettings):
        needs: ClassVar = dict.fromkeys(("negative", "temperature", "neighbours"), (Need("weights", ("similarity",)),))

        negative: Literal["clamp", "raw"] = Field("clamp", description="Negative similarities: put at 0, or kept.")
        temperature: float | None = Field(
            None, gt=0, description="Weights by softmax(similarity / temperature); null: by the quotient."
        )
        neighbours: int | None = Field(
            None, ge=1, description="Weights for so many of the most similar clients only, oneself included; null: all."
        )
        similarity: Literal["vectors", "product"] = Field(
            "vectors", description="What is compared: the trained parameters' changes, or with LoRA those of B A."
        )
        weights: Literal["similarity", "uniform"] = Field(
            "similarity", description="Weights by similarity (the method), or equal (what it is without it)."
        )
        newcomers: Literal["mean", "first"] = Field(
            "mean",
            description="What a client that never took part is served: the mean of the models of those who did, or the first one.",
        )

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="theta_i")},
        up={"delta": Part(PARAMS, update=True, note="the task vector")},
        server={
            "models": Part(stack("N", PARAMS), note="theta_i"),
            "seen": Part(tensor("N", dtype="bool"), note="who took part"),
            "first": Part(PARAMS),
        },
    )
    universal: ClassVar[str | None] = None
    no_rule = "every client gets another mixture of the updates"

    def check(self, config: Config) -> list[str]:
        if self.settings.similarity == "product" and config.adapter.kind != "lora":
            return [
                f"method.similarity: product found, adapter.kind: {config.adapter.kind} has no B A; allowed: vectors"
            ]
        return []

    def init(self, task: Task, key: int) -> Tree:
        first, n = task.init_params(key), task.population
        models = tree.map(lambda x: x[None].repeat(n, *[1] * x.dim()), first)
        return {"models": models, "seen": torch.zeros(n, dtype=torch.bool), "first": first}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": client.mine["model"]}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], client.mine["model"])}, client.own

        return sgd_visit(task.loss, self.local, start=start, end=end)

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Return the groups of entries that share one similarity matrix: all entries in one."""
        return [list(names)]

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients = fed.sample()
        got = fed.ask(self.train, clients, mine={c: {"model": tree.pick(state["models"], c)} for c in clients})
        if not got.ids:
            return state
        at = torch.tensor(got.ids)
        before, tau = tree.map(lambda x: x[at], state["models"]), got.stacked("delta")
        after: dict[str, Tensor] = {}
        group = fed.planted(got.ids)
        sums: list[Tensor] = []
        learned = [n for n in tau if n not in task.buffers]
        for names in self.groups(learned):
            s = cosines(self._inner(before, tau, names))
            p = shares(s, self.settings)
            after |= tree.add({n: before[n] for n in names}, tree.combine(p, {n: tau[n] for n in names}))
            sums.append(divisors(s, self.settings))
            log_pairs(fed, "similarity/task_vectors", s, group)
        after |= {n: before[n] + _of_buffers(tau[n], n in task.counters) for n in task.buffers}
        log_pairs(fed, "similarity/models", cosines(gram(before, learned)), group)
        if (divided := torch.cat(sums).abs()).numel():  # raw similarities can cancel in a layer while others do not
            fed.log("similarity/least_sum", float(divided.min()))
        models = {n: x.index_copy(0, at, after[n]) for n, x in state["models"].items()}
        return {**state, "models": models, "seen": state["seen"].index_fill(0, at, True)}

    def _inner(self, before: Tree, tau: Tree, names: Sequence[str]) -> Tensor:
        if self.settings.similarity == "vectors":
            return gram(tau, names)
        factors = [n for n in lora.pairs(names) if n.b in names]
        rest = [n for n in names if not any(n in pair for pair in factors)]
        return gram(tau, rest) + sum(product_gram(before, tau, pair) for pair in factors)

    def serve(self, state: Tree) -> Tree:
        seen = state["seen"]
        if self.settings.newcomers == "first" or not bool(seen.any()):
            return {"newcomer": state["first"]}
        return {"newcomer": tree.map(lambda x: x[seen].mean(0), state["models"])}

    def mine(self, state: Tree, client: int) -> Tree | None:
        known = client < len(state["seen"]) and bool(state["seen"][client])
        return {"model": tree.pick(state["models"], client)} if known else None

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: client.mine["model"] if client.mine else client.shared["newcomer"])


def _of_buffers(rows: Tensor, counter: bool) -> Tensor:
    return rows.amax(0) if counter else rows.mean(0)


def gram(stacked: Tree, names: Sequence[str]) -> Tensor:
    """Return (n, n) inner products over some entries of leaves (n, ...), float64."""
    n = len(tree.values(stacked)[0])
    g = torch.zeros(n, n, dtype=torch.float64)
    for name in names:
        x = stacked[name].reshape(n, -1).to("cpu", torch.float64)
        g = g + x @ x.T
    return g


def product_gram(before: Tree, tau: Tree, n: lora.Names) -> Tensor:
    """Return (n, n) inner products of the changes of one layer's B A, float64, without B A itself: <B_i A_i, B_k A_k> of the pairs
    [B', -B] (m, 2r), [A'; A] (2r, q)."""
    old, new = ([x[f].to("cpu", torch.float64) for f in n] for x in (before, tree.add(before, tau)))
    b, a = torch.cat([new[0], -old[0]], 2), torch.cat([new[1], old[1]], 1)
    return (torch.einsum("imr,kms->ikrs", b, b) * torch.einsum("irq,ksq->ikrs", a, a)).sum((2, 3))


def cosines(g: Tensor) -> Tensor:
    """Return cosine similarities from a Gram matrix (n, n); 1 on the diagonal, 0 off it where a vector is 0."""
    d = g.diagonal().clamp(min=0).sqrt()
    scale = torch.where(d > 0, 1 / d, torch.zeros_like(d))
    return (g * scale[:, None] * scale).clamp(-1, 1).fill_diagonal_(1.0)


def shares(s: Tensor, settings: TaskVectors.Settings) -> Tensor:
    """Return weights p (n, n) of similarities s (n, n); rows sum to 1."""
    if settings.weights == "uniform":
        return torch.full_like(s, 1 / len(s))
    s, keep = counted(s, settings)
    if settings.temperature is not None:
        return torch.softmax((s / settings.temperature).masked_fill(~keep, -torch.inf), 1)
    s = s * keep
    total = s.sum(1, keepdim=True)
    return torch.where(total == 0, torch.eye(len(s), dtype=s.dtype), s / total)  # raw similarities can cancel


def divisors(s: Tensor, settings: TaskVectors.Settings) -> Tensor:
    """Return (n,) the row sums that `shares` divides by, 0 where a row cancelled; (0,) where its weights are no quotients."""
    if settings.weights == "uniform" or settings.temperature is not None:
        return s.new_zeros(0)
    s, keep = counted(s, settings)
    return (s * keep).sum(1)


def counted(s: Tensor, settings: TaskVectors.Settings) -> tuple[Tensor, Tensor]:
    """Return (similarities with negative ones as the settings say, which of a row have a weight), both (n, n)."""
    s = s.clamp(min=0) if settings.negative == "clamp" else s
    keep = torch.ones_like(s, dtype=torch.bool)
    if settings.neighbours is not None and settings.neighbours < len(s):
        ranked = s.clone().fill_diagonal_(2.0)  # oneself first, whoever ties
        keep = torch.zeros_like(keep).scatter(
            1, ranked.argsort(dim=1, descending=True, stable=True)[:, : settings.neighbours], True
        )
    return s, keep


def log_pairs(fed: Fed, name: str, s: Tensor, group: Tensor) -> None:
    """Log NAME_within and NAME_across: the mean of s (n, n) over pairs of clients of one planted group, and of two; without groups
    NAME_mean over all pairs."""
    pair = torch.triu(torch.ones_like(s, dtype=torch.bool), 1)
    same = (group[:, None] == group) & pair
    sides = [("mean", pair)] if bool((group < 0).any()) else [("within", same), ("across", pair & ~same)]
    for side, these in sides:
        if bool(these.any()):
            fed.log(f"{name}_{side}", float(s[these].mean()))
