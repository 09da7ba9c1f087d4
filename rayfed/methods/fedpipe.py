"""FedPipe: which layers get adapters, of which rank, on frozen weights of how many bits, chosen for each by what its device can do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Visit, Wire, clock, keys, mean, sgd_visit, tree, visit
from rayfed.adapters import budget, lora, normal_float
from rayfed.config.schema import Need
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.training import gradient
from rayfed.visits import steps
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree
    from rayfed.config.schema import Config


class FedPipe(OverLoRA):
    """Fang et al. 2024, "Automated Federated Pipeline for Parameter-Efficient Fine-Tuning of Large Language Models" (2404.06448); no public
    code. Components as summaries of others have them; the formulas are [inferred].

    Before the first round that has clients, and again every `every` rounds, all of them train `profile_steps` with rank `profile_rank` on
    every layer. I <- 0.85 I + 0.15 |w dL/dw| and U <- 0.85 U + 0.15 | |w dL/dw| - I | of each entry of A and B; the importance of a
    layer is the sum over its ranks of the means of I U over B's column and A's row (of the factors, where a summary has the singular
    vectors of B A). Server: their means by n_i, summing to 1.
    A client's plan, by its device (`devices`: speed, bandwidth, memory) and `deadline_s`: the most bits of 16, 8 (even levels), 4
    (NormalFloat) for the adapted layers' frozen weights that leave room for one adapter; then rank by rank by importance over size, until
    memory or time is spent. `choose: random` takes a random order, `uniform` rank `rank` for all and no limit, as baselines.
    A round: client i trains the first r_il rows of A_l and columns of B_l on its own frozen weights. Server, each layer over its owners:
    Delta = sum_i (n_i / n) B_i A_i and its best pair of the largest rank (`aggregate: svd`), whose first r_il are what i is sent; or
    the means of A and of B, padded with zeros (`pad`). A layer that nobody owns stays; the head is averaged.
    The scale alpha / r is the largest rank's for all. Batches are of one size, where the paper chooses them too.
    Served: the network with unquantised weights. Times are simulated by the cost model of `rayfed.adapters.budget`, and the round's is the
    slowest client's. Without limits and with `pad` it is FedIT.
    Down: r_il (m + n) entries of each layer, head; what to train. Up: their changes; once: one number for each layer.
    Kept at clients: nothing. At the server: A, B, head, everybody's plan; within a round its clients' factors.
    """

    one_rank = "each layer of each client has a rank of its own, at most this one"
    no_rule = "each layer has a mean over its own owners"
    no_privacy = "sends sums of squared gradients without noise"

    class Settings(MethodSettings):
        needs: ClassVar = {
            "rank": (Need("choose", ("uniform",)),),
            "deadline_s": (Need("choose", ("uniform",), but=True),),
        }

        deadline_s: float | None = Field(
            None, gt=0, description="Simulated seconds that a client's visit may take; null: any."
        )
        most_bits: Literal[4, 8, 16] = Field(16, description="Most bits that frozen weights have; 16: as they are.")
        profile_rank: int = Field(
            2, ge=1, description="Rank of every layer when importance is measured; at most the adapter's."
        )
        profile_steps: int = Field(20, ge=2, description="Local steps of that; A has no gradient in the first.")
        every: int | None = Field(None, ge=1, description="Rounds from one choice to the next; null: one for all.")
        choose: Literal["importance", "random", "uniform"] = Field("importance", description="Which ranks come first.")
        rank: int = Field(4, ge=1, description="Rank of every layer under `uniform`.")
        aggregate: Literal["svd", "pad"] = Field(
            "svd", description="Best pair of the mean product, or means of padded factors."
        )

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS, note="of which a client is sent what its plan says"),
            "plan": Part(
                tensor("R", 2, dtype="int64"),
                note="rank and bytes of one rank, for each layer and the head: what is sent",
            ),
            "bits": Part(tensor(dtype="int64"), note="of the frozen weights"),
        },
        up={
            "delta": Part(PARAMS, note="of what the plan says"),
            "plan": Part(tensor("R", 2, dtype="int64"), note="as it was sent; its bytes are those of delta"),
            "importance": Part(tensor("L"), note="of each layer"),
        },
        server={
            "model": Part(PARAMS),
            "ranks": Part(tensor("N", "L", dtype="int64"), note="of each client and layer, -1 before there is a plan"),
            "bits": Part(tensor("N", dtype="int64"), note="of each client's frozen weights"),
            "importance": Part(tensor("L"), note="of each layer, sums to 1"),
        },
    )
    logs: ClassVar = {
        "fedpipe/memory": ("memory spent of a device's, of the client that spends the largest share", "fraction"),
        "fedpipe/time": ("simulated seconds spent of the deadline, of the slowest client asked", "fraction"),
        "fedpipe/seconds": ("simulated seconds of the slowest client asked", "s"),
        "fedpipe/idle": (
            "simulated seconds that clients wait for the slowest, of its own",
            "fraction, mean over clients asked",
        ),
        "fedpipe/trained": ("entries of adapters that a client trains", "entries, mean over clients asked"),
        "fedpipe/bits": ("bits of a frozen weight", "bits, mean over clients asked"),
    }

    def check(self, config: Config) -> list[str]:
        out = super().check(config)
        s = self.settings
        if config.adapter.kind == "lora":
            for name in ("profile_rank", *(("rank",) if s.choose == "uniform" else ())):
                if getattr(s, name) > config.adapter.largest:
                    out.append(
                        f"method.{name}: {getattr(s, name)} found, allowed: at most adapter.rank, {config.adapter.largest}"
                    )
        if config.transforms:
            out.append("transforms: found, and method.name: fedpipe sends parts of factors; allowed: []")
        return out

    def fits_model(self, task: Task) -> list[str]:
        names = lora.pairs(task.params_like)
        if not names or self.settings.choose == "uniform":
            return []
        out = []
        for client, plan in enumerate(self.plans(task, np.ones(len(names)))):
            if plan is None:
                limits = self.limits(task)[client]
                least = min(self.precisions)
                need = budget.memory(network(task, self.local.batch_size), np.eye(len(names), dtype=np.int64)[0], least)
                out.append(
                    f"devices: client {client} has {limits.memory:.3g} bytes and {limits.seconds:.3g} s, in which nothing can be trained: "
                    f"weights of {least} bits and one adapter take {need:.3g} bytes; allowed: more memory, a larger method.deadline_s, "
                    "or a smaller model"
                )
                break
        return out

    @property
    def precisions(self) -> tuple[int, ...]:
        """Return the bits that frozen weights may have."""
        if self.settings.choose == "uniform":
            return (self.settings.most_bits,)
        return tuple(b for b in budget.PRECISIONS if b <= self.settings.most_bits)

    def limits(self, task: Task) -> list[budget.Limits]:
        """Return what each client may spend, (N,)."""
        of, n = clock.devices(self.config, task.population), task.population
        if of is None:
            return [budget.Limits()] * n
        each = math.inf if self.settings.deadline_s is None else self.settings.deadline_s
        counts = np.full(n, self.local.steps or 1, float)
        room = np.full(n, math.inf) if of.memory is None else of.memory
        return [budget.Limits(*row) for row in zip(room[:n], [each] * n, counts, of.speed[:n], of.up[:n], strict=True)]

    def plans(self, task: Task, importance: np.ndarray, key: int = 0) -> list[budget.Plan | None]:
        """Return the plan of each client, (N,)."""
        s, net = self.settings, network(task, self.local.batch_size)
        most = self.config.adapter.largest  # type: ignore[union-attr]
        out: list[budget.Plan | None] = []
        for client, limits in enumerate(self.limits(task)):
            if s.choose == "uniform":
                ranks, bits = np.full(len(net.sizes), s.rank, np.int64), s.most_bits
                spent = budget.memory(net, ranks, bits), budget.seconds(net, ranks, limits, most)
                out.append(budget.Plan(ranks, bits, *spent))
                continue
            value = importance
            if s.choose == "random":
                value = keys.numpy(keys.key(key, 0, client, "order of layers")).random(len(net.sizes)) * net.sizes
            out.append(budget.planned(net, limits, value.tolist(), most, self.precisions))
        return out

    def init(self, task: Task, key: int) -> Tree:
        layers, n = len(lora.pairs(task.params_like)), task.population
        return {
            "model": task.init_params(key),
            "ranks": torch.full((n, layers), -1),
            "bits": torch.full((n,), 16),
            "importance": torch.full((layers,), 1 / layers, dtype=task.dtype),
        }

    @visit
    def profile(self, task: Task) -> Visit:
        """How much each layer matters, by some steps of small adapters on all."""
        s, names = self.settings, lora.pairs(task.params_like)
        entries = [n for pair in names for n in pair]

        def start(client: ClientContext) -> Tree:
            model = cut_layers(
                client.shared["model"], torch.full((len(names),), s.profile_rank, device=task.device), names
            )
            zero = tree.zeros({n: model[n] for n in entries})
            return {"model": model, "smooth": zero, "unsure": zero}

        def formula(params: Tree, carry: Tree, batch: Any, key: Any) -> tuple[Tree, Tree]:
            g = gradient(task.loss, params, batch, key)
            now = {n: (params[n] * g[n]).abs() for n in entries}
            smooth = tree.add(tree.scale(carry["smooth"], 0.85), now, 0.15)
            apart = tree.map(lambda a, b: (a - b).abs(), now, smooth)
            return g, {"smooth": smooth, "unsure": tree.add(tree.scale(carry["unsure"], 0.85), apart, 0.15)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            score = tree.map(torch.mul, carry["smooth"], carry["unsure"])
            found = [score[n.b].mean(0).sum() + score[n.a].mean(1).sum() for n in names]
            return {"importance": torch.stack(found)}, client.own

        made = sgd_visit(
            task.loss, self.local, start=start, grad=formula, end=end, phases=[(steps(s.profile_steps), None)]
        )
        return made._replace(local=None)

    @visit
    def train(self, task: Task) -> Visit:
        names, still = lora.pairs(task.params_like), {}
        if self.precisions != (16,):
            still = {n: task.frozen[n].to(task.dtype) for n in (lora.weight_of(task, pair)[0] for pair in names)}

        def start(client: ClientContext) -> Tree:
            model = cut_layers(client.shared["model"], client.mine["plan"][:-1, 0], names)
            few = {n: at_bits(w, client.mine["bits"], self.precisions) for n, w in still.items()}
            return {"model": model, "first": model, "still": few}

        def objective(params: Tree, carry: Tree, batch: Any, key: Any) -> Tensor:
            return task.loss({**carry["still"], **params}, batch, key)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], carry["first"]), "plan": client.mine["plan"]}, client.own

        return sgd_visit(task.loss, self.local, start=start, objective=objective, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, clients = self.settings, fed.sample()
        if not clients:
            return state
        if bool((state["ranks"] < 0).any()) or (s.every and (fed.round - 1) % s.every == 0):
            state = self._chosen(state, fed, task)
        sizes = (
            torch.as_tensor(network(task, 1).sizes) * task.params_like[lora.pairs(task.params_like)[0].a].element_size()
        )
        head = tree.nbytes({n: p for n, p in task.params_like.items() if not (lora.is_a(n) or lora.is_b(n))})
        one = torch.cat([sizes, torch.tensor([head])])
        mine = {}
        for c in clients:
            ranks = torch.cat([state["ranks"][c], torch.ones(1, dtype=torch.int64)])
            mine[c] = {"plan": torch.stack([ranks, one], 1), "bits": state["bits"][c]}
        got = fed.ask(
            self.train, clients, shared={"model": state["model"]}, mine=mine, fold=mean("delta"), keep="delta"
        )
        self._report(state, clients, fed, task)
        return {**state, "model": self._merged(state, got, task)} if got.ids else state

    def _chosen(self, state: Tree, fed: Fed, task: Task) -> Tree:
        """Return the state with a plan for every client."""
        importance = state["importance"]
        if self.settings.choose == "importance":
            got = fed.ask(
                self.profile, range(fed.population), shared={"model": state["model"]}, fold=mean("importance")
            )
            if got.ids and float(got.folded["importance"].sum()) > 0:
                importance = got.folded["importance"] / got.folded["importance"].sum()
        plans = self.plans(task, importance.double().cpu().numpy(), fed.key("plans"))
        ranks = torch.as_tensor(np.stack([p.ranks for p in plans if p is not None]))
        bits = torch.tensor([p.bits for p in plans if p is not None])
        return {**state, "importance": importance, "ranks": ranks, "bits": bits}

    def _merged(self, state: Tree, got: Replies, task: Task) -> Tree:
        """Return the model after each layer's mean over its owners."""
        old, ids = state["model"], torch.tensor(got.ids)
        new = tree.add(old, got.folded["delta"])  # the head; adapters follow
        names, w = lora.pairs(old), got.examples.to(torch.float64)
        moved = got.stacked("delta", [n for pair in names for n in pair])
        for at, n in enumerate(names):
            ranks = state["ranks"][ids, at]
            p = w * (ranks > 0)
            new[n.a], new[n.b] = old[n.a], old[n.b]
            if not float(p.sum()):
                continue
            p = p / p.sum()
            start = [cut_layers({n.a: old[n.a], n.b: old[n.b]}, r[None], [n]) for r in ranks]
            a = torch.stack([t[n.a] for t in start]).double() + moved[n.a].double()
            b = torch.stack([t[n.b] for t in start]).double() + moved[n.b].double()
            if self.settings.aggregate == "pad":
                new[n.a], new[n.b] = ((x * p[:, None, None]).sum(0).to(old[n.a].dtype) for x in (a, b))
            else:
                wide = (b * p[:, None, None]).transpose(0, 1).reshape(b.shape[1], -1)
                new[n.b], new[n.a] = lora.best_pair(wide, a.reshape(-1, a.shape[2]), old[n.a])
        return new

    def _report(self, state: Tree, clients: tuple[int, ...], fed: Fed, task: Task) -> None:
        """Say what the asked clients spend, of what they have."""
        net, limits = network(task, self.local.batch_size), self.limits(task)
        most = self.config.adapter.largest  # type: ignore[union-attr]
        ranks = {c: state["ranks"][c].numpy() for c in clients}
        took = {c: budget.seconds(net, ranks[c], limits[c], most) for c in clients}
        slowest = max(took.values())
        spent = max(budget.memory(net, ranks[c], int(state["bits"][c])) / limits[c].memory for c in clients)
        fed.log("fedpipe/memory", spent)
        fed.log("fedpipe/time", slowest / limits[clients[0]].seconds)
        fed.log("fedpipe/seconds", slowest)
        for c in clients:
            fed.log("fedpipe/idle", 1 - took[c] / slowest if slowest else 0.0)
            fed.log("fedpipe/trained", float(ranks[c] @ net.sizes))
            fed.log("fedpipe/bits", float(state["bits"][c]))
        if self.config.devices.profile != "none":
            fed.elapse(slowest)

    def cost(self, part: str, sent: Tree) -> int:
        if part in ("model", "delta"):
            return 0  # what a plan says of them
        rows: Any = sent
        return int(rows.prod(-1).sum()) if part == "plan" else super().cost(part, sent)


_answers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def network(task: Task, batch: int) -> budget.Network:
    """Return what is counted of a task's network, for batches of so many rows; activations: what adapted layers answer, in four bytes."""
    names = lora.pairs(task.params_like)
    sizes = np.array([task.params_like[n.a][0].numel() + task.params_like[n.b].shape[0] for n in names])
    weights = [task.frozen[lora.weight_of(task, n)[0]].numel() for n in names]
    frozen = sum(p.numel() for p in task.frozen.values())
    head = sum(p.numel() for n, p in task.params_like.items() if not (lora.is_a(n) or lora.is_b(n)))
    if task not in _answers:
        with torch.no_grad():
            seen = task.watch(task.initial, task.blank(1), [n.a.partition(".lora_A.")[0] for n in names])
        _answers[task] = sum(x.numel() for x in seen.values())
    return budget.Network(sizes, sum(weights), frozen - sum(weights), head, 4 * batch * _answers[task])


def cut_layers(model: Tree, ranks: Tensor, names: list[lora.Names]) -> Tree:
    """Return a model whose factors are zero beyond each layer's rank, (L,) int64."""
    out = dict(model)
    for rank, n in zip(ranks, names, strict=True):
        there = (torch.arange(len(model[n.a]), device=rank.device) < rank).to(model[n.a].dtype)
        out[n.a], out[n.b] = model[n.a] * there[:, None], model[n.b] * there
    return out


def at_bits(w: Tensor, bits: Tensor, precisions: tuple[int, ...]) -> Tensor:
    """Return weights rounded to a client's own number of bits, 0-d, one of `precisions`."""
    out = w
    for b in sorted(set(precisions) - {16}):
        out = torch.where(bits == b, normal_float.rounded(w, b), out)
    return out
