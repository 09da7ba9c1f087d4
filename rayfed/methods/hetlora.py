"""HetLoRA: clients of different ranks, which prune themselves; factors padded with zeros, weighted by their norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Need, Part, Wire, mean, sgd_visit, tree, visit
from rayfed.adapters import lora, ranks
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class HetLoRA(OverLoRA):
    """Cho et al. 2024, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models" (2401.06432).

    Client i, of rank r_i at first by `adapter.rank`: takes the first r_i rows of A and columns of B and trains them on
        loss + lam sum over layers ||B_{:, s:r_i}||_F ||A_{s:r_i, :}||_F,   s = floor(gamma r_i), at least `least`;
    r_i <- s if that sum of products is then smaller than it was at the visit's start; sends A_i, B_i of that rank and the head.
    Server: q_i = ||B_i A_i||_F / sum_j ||B_j A_j||_F, over all layers and with the client's own scale, in which B_i is too;
    A <- sum_i q_i A_i, B <- sum_i q_i B_i, head alike, A_i and B_i padded with zeros (`pad: zero`). `pad: rank_wise` instead
    takes the mean of row k of A and column k of B over the clients that hold it, sum_i q_i A_i[k] / sum_i q_i. With `weight`
    examples or one, q_i is n_i / n or 1 / K. Rows and columns that no client of the round holds stay as they are (ours).
    RBLA (Chen et al. 2024, 2408.08699) is `pad: rank_wise, weight: examples, gamma: 1`.
    With one rank for all, gamma = 1 and equal norms it is FedIT with equal weights.
    Down: r_i rows of A and columns of B of each layer, head. Up: their changes, r_i, and with `weight: norm` q's norm, with
    `weight: examples` n_i. Kept at client i: r_i.
    At the server: A, B, head of the largest rank.
    """

    logs: ClassVar = {"lora/rank": ("mean rank of the round's clients, after pruning", "rank")}

    class Settings(MethodSettings):
        needs: ClassVar = {"least": (Need("gamma", (1.0,), but=True),)}

        gamma: float = Field(
            0.99, gt=0, le=1, description="Share of its rank that a pruned client keeps; 1: no pruning."
        )
        lam: float = Field(5e-3, ge=0, description="Weight of the penalty on the rows and columns up for pruning.")
        least: int | None = Field(
            None, ge=1, description="Rank below which nobody prunes; default: the smallest drawn."
        )
        pad: Literal["zero", "rank_wise"] = Field(
            "zero", description="What a client that lacks a row counts for there."
        )
        weight: Literal["norm", "examples", "one"] = Field(
            "norm", description="Weights q_i of the means: by norm (published), by examples, or equal."
        )

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={
            "delta": Part(PARAMS, update=True, note="from what it was sent, within the rank it now has"),
            "norm": Part(SCALAR, note="||B_i A_i||_F over all layers, with `weight: norm`"),
            "rank": Part(tensor(dtype="int64")),
        },
        keep={"rank": Part(tensor(dtype="int64"), note="its present rank")},
        server={"model": Part(PARAMS)},
    )

    def check(self, config: Config) -> list[str]:
        out, least = super().check(config), self.settings.least
        if config.adapter.kind == "lora" and least is not None and least > config.adapter.largest:
            out.append(f"method.least: {least} found, allowed: at most the largest rank ({config.adapter.largest})")
        return out

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"rank": torch.as_tensor(task.ranks[client], dtype=torch.int64, device=task.device)}

    @visit
    def train(self, task: Task) -> Visit:
        names, s = lora.pairs(task.params_like), self.settings
        assert task.config.adapter.kind == "lora"
        least = min(task.config.adapter.shares) if s.least is None else s.least

        def pruned(rank: Tensor) -> Tensor:
            return torch.minimum(
                rank, (s.gamma * rank.to(torch.float64) + 1e-9).floor().to(rank.dtype).clamp(min=least)
            )

        def tail(params: Tree, rank: Tensor) -> Tensor:
            """Return the sum of products that is penalised, 0-d."""
            at = torch.arange(params[names[0].a].shape[0], device=rank.device)
            there = (at >= pruned(rank)) & (at < rank)
            each = [length(params[n.b] * there) * length(params[n.a] * there[:, None]) for n in names]
            return torch.stack(each).sum()

        def start(client: ClientContext) -> Tree:
            return {
                "model": client.shared["model"],
                "rank": client.info.rank,
                "tail": tail(client.shared["model"], client.info.rank),
            }

        def objective(params: Tree, carry: Tree, batch: Tree, key: Tensor) -> Tensor:
            return task.loss(params, batch, key) + s.lam * tail(params, carry["rank"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            shrunk = tail(carry["model"], client.info.rank) < carry["tail"]
            rank = torch.where(shrunk, pruned(client.info.rank), client.info.rank)
            now = ranks.cut(carry["model"], rank)
            delta = tree.sub(now, ranks.cut(client.shared["model"], rank))
            if s.weight != "norm":
                return {"delta": delta, "rank": rank}, {"rank": rank}
            own_scale = ranks.factor(task.config, client.info.rank)
            norm = torch.stack([lora.norm(now[n.b], now[n.a]) for n in names]).square().sum().sqrt()
            norm = norm if own_scale is None else norm * own_scale.to(norm.dtype)
            return {"delta": delta, "norm": norm, "rank": rank}, {"rank": rank}

        return sgd_visit(task.loss, self.local, start=start, end=end, objective=objective)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight=s.weight))
        if not got.ids or not got.weight["delta"]:
            return state
        held = got.stacked("rank")
        fed.log("lora/rank", float(held.double().mean()))
        q = got.examples if s.weight == "examples" else torch.ones_like(got.examples)
        q = got.stacked("norm").to(torch.float64) if s.weight == "norm" else q
        return {"model": padded(state["model"], got.folded["delta"], held, q / q.sum(), s.pad)}


def padded(model: Tree, delta: Tree, held: Tensor, q: Tensor, pad: str) -> Tree:
    """Return sum_i q_i of the clients' models, of ranks `held` (K,), from that of their changes; `pad` as in the settings."""
    out = {}
    for name, x in model.items():
        if not (lora.is_a(name) or lora.is_b(name)):
            out[name] = x + delta[name]
            continue
        size = x.shape[0] if lora.is_a(name) else x.shape[1]
        share = (q[:, None] * (torch.arange(size)[None] < held[:, None])).sum(0).to(x)  # of each row, over its holders
        share = share[:, None] if lora.is_a(name) else share
        new = x * share + delta[name] if pad == "zero" else x + delta[name] / share.clamp(min=torch.finfo(x.dtype).tiny)
        out[name] = torch.where(share > 0, new, x)
    return out


def length(x: Tensor) -> Tensor:
    """Return the Euclidean norm, 0-d, whose gradient at zero is zero."""
    return (x.square().sum() + torch.finfo(x.dtype).tiny).sqrt()
