"""CELLM (FLASC): the largest entries travel, the clients train all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Need, Part, Wire, optimizers, sgd_visit, total, tree, visit
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config

POSITION = 4  # bytes of one position


class CELLM(Method):
    """CELLM (2407.20557), whose scheme is published as FLASC: Kuo et al. 2024, "Federated LoRA with Sparse Communication"
    (2406.05233). That the two are one is inferred from equal claims.

    P: the D trained numbers (LoRA's A, B and the head, or a whole model). top(x, rho): the max(1, floor(rho D)) entries of x
    of largest size, one ranking over all layers and both factors. Round t, rho = share decay^floor((t - 1) / decay_every):
    Server: M = top(P, rho_down), sends P * M. Client i: from theta_0 = P * M, where what was not sent is zero, all D entries
    train; u_i = theta - theta_0; sends u_i * top(u_i, rho_up). Server: P <- AdamW(P, -mean_i u_i), equal weights, all of P.
    `client_freeze`: only the entries of M train (the pruning baseline). `server_freeze`: round 1 sends all of P, then M is
    the one after it for ever; that round 1's replies are as sparse as later ones is inferred. `tiers` T: client c has shares
    4^-(T - 1 - c mod T) times those (which client has which tier is inferred); their head is masked like the rest, where FLASC's
    code for such clients keeps it dense. Scored is the P * M that would be sent next (`eval_masked`; that it is the next one,
    not the last, is inferred), or P.

    Down: the entries of P in M, with `client_freeze` also M. Up: those of u_i. Both cost their values and the cheaper of a
    bitmap (D / 8 bytes) and positions (4 bytes each), or all D values where that is less or the share is 1. Kept at clients:
    nothing. At the server: P, AdamW's two moments, M, the scored model (D numbers each). Differential privacy, step 6 of FLASC,
    is not part of this file.
    """

    logs: ClassVar = {
        f"sparse/{way}_{kind}": (f"what a client of the highest tier {pays}, {how}", "bytes")
        for way, pays in (("down", "is sent"), ("up", "sends"))
        for kind, how in (("values", "values alone"), ("bitmap", "with a bitmap"), ("positions", "with positions"))
    }

    class Settings(MethodSettings):
        needs: ClassVar = {"decay_every": (Need("decay", (1.0,), but=True),)}

        down: float = Field(0.25, gt=0, le=1, description="Share of the entries sent to clients.")
        up: float = Field(0.25, gt=0, le=1, description="Share of the entries sent to the server.")
        decay: float = Field(1.0, gt=0, le=1, description="Factor of both shares, every `decay_every` rounds.")
        decay_every: int = Field(1, ge=1, description="Rounds between two decays.")
        ranking: Literal["global", "tensor"] = Field(
            "global", description="The largest of all entries, or the same share of every tensor (so of A and B)."
        )
        server_freeze: bool = Field(False, description="Keep the mask that round 1 led to.")
        client_freeze: bool = Field(False, description="Clients train only the entries they were sent.")
        tiers: int = Field(1, ge=1, description="Kinds of clients, each with four times the shares of the one below.")
        eval_masked: bool = Field(True, description="Score what would be sent, not all of P.")
        server_lr: float = Field(1e-3, gt=0, description="Step of the server's AdamW.")
        beta1: float = Field(0.9, ge=0, lt=1, description="Decay of its first moment.")
        beta2: float = Field(0.999, ge=0, lt=1, description="Decay of its second moment.")
        eps: float = Field(1e-8, gt=0, description="Its epsilon.")
        weight_decay: float = Field(0.01, ge=0, description="Its decoupled weight decay.")

    no_rule = "the updates of its tiers are summed, and it takes their mean by itself"
    no_buffers = "it thins every entry of the model, so a mask of the largest would set running variances to zero"

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="P * M"), "mask": Part(PARAMS, note="M, bool")},
        up={"delta": Part(PARAMS, update=True, note="sparse")},
        server={
            "model": Part(PARAMS, note="the scored one"),
            "whole": Part(PARAMS, note="P"),
            "mask": Part(PARAMS, note="M of the next round and the highest tier, bool"),
            "m": Part(PARAMS),
            "v": Part(PARAMS),
            "t": Part(SCALAR, note="server steps"),
        },
    )

    def check(self, config: Config) -> list[str]:
        s = self.settings
        found = (
            f"method.server_freeze: true found with method.tiers: {s.tiers}; one mask is kept, each tier has its own"
        )
        return [f"{found}; allowed: server_freeze false, or tiers 1"] if s.server_freeze and s.tiers > 1 else []

    def share(self, of: str, round: int, tier: int | None = None) -> float:
        """Return the share `of` "down" or "up" of a round (from 1) and a tier (default the highest)."""
        s = self.settings
        below = 0 if tier is None else s.tiers - 1 - tier
        return float(getattr(s, of) * s.decay ** ((round - 1) // s.decay_every) / 4**below)

    @property
    def adamw(self) -> optimizers.Optimizer:
        s = self.settings
        return optimizers.adam((s.beta1, s.beta2), s.eps, s.weight_decay, decoupled=True)

    def init(self, task: Task, key: int) -> Tree:
        whole, s = task.init_params(key), self.settings
        mask = top(whole, 1.0 if s.server_freeze else self.share("down", 1), s.ranking)
        return {"model": self.scored(whole, mask), "whole": whole, "mask": mask, **self.adamw.init(whole)}

    def scored(self, whole: Tree, mask: Tree) -> Tree:
        return apply_mask(whole, mask) if self.settings.eval_masked else whole

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        shares = [[self.share("up", r, i) for r in range(1, self.config.rounds + 1)] for i in range(s.tiers)]

        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], **({"mask": client.shared["mask"]} if s.client_freeze else {})}

        def hold(gradient: Tree, carry: Tree) -> Tree:
            return apply_mask(gradient, carry["mask"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            u = tree.sub(carry["model"], client.shared["model"])
            return {
                "delta": apply_mask(u, top(u, shares, s.ranking, (client.info.client % s.tiers, client.info.round - 1)))
            }, client.own

        return sgd_visit(task.loss, self.local, start=start, hook=hold if s.client_freeze else None, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, whole, clients = self.settings, state["whole"], fed.sample()
        replies, change = 0, tree.zeros(whole)
        for tier in range(s.tiers):
            here = [c for c in clients if c % s.tiers == tier]
            mask = state["mask"]
            if tier < s.tiers - 1:
                mask = top(whole, self.share("down", fed.round, tier), s.ranking)
            shared = {"model": apply_mask(whole, mask), **({"mask": mask} if s.client_freeze else {})}
            got = fed.ask(self.train, here, shared=shared, fold=total("delta"))
            change, replies = tree.add(change, got.folded["delta"]), replies + len(got)
        self._log_bytes(fed, whole, state["mask"])
        new, mask = {n: state[n] for n in ("whole", "m", "v", "t")}, state["mask"]
        if replies:
            before = {n: state[n] for n in ("m", "v", "t")}
            whole, moments = self.adamw.update(tree.scale(change, -1.0 / replies), before, whole, s.server_lr)
            new = {"whole": whole, **moments}
        if not s.server_freeze:
            mask = top(whole, self.share("down", fed.round + 1), s.ranking)
        elif replies and not state["t"]:
            mask = top(whole, s.down, s.ranking)
        return {"model": self.scored(whole, mask), **new, "mask": mask}

    def _log_bytes(self, fed: Fed, whole: Tree, mask: Tree) -> None:
        """Log this round's bytes of one client of the highest tier, each way and by each kind of index."""
        sizes = [x.numel() for x in tree.values(whole)]
        width, size = tree.values(whole)[0].element_size(), sum(sizes)
        share = self.share("up", fed.round)
        up = count(size, share) if self.settings.ranking == "global" else sum(count(n, share) for n in sizes)
        for of, sent in (("down", sum(int(m.sum()) for m in tree.values(mask))), ("up", up)):
            fed.log(f"sparse/{of}_values", width * sent)
            fed.log(f"sparse/{of}_bitmap", width * sent + math.ceil(size / 8))
            fed.log(f"sparse/{of}_positions", (width + POSITION) * sent)

    def cost(self, part: str, sent: Tree) -> int:
        s = self.settings
        if part not in ("model", "mask", "delta"):
            return super().cost(part, sent)
        share = s.up if part == "delta" else s.down
        if share == s.decay == s.tiers == 1:  # nothing is left out
            return 0 if part == "mask" else tree.nbytes(sent)
        leaves = tree.values(sent)
        entries = sum((x != 0).reshape(len(x), -1).sum(1) for x in leaves)  # (k,)
        size, width = sum(x[0].numel() for x in leaves), leaves[0].element_size()
        index = (POSITION * entries).clamp(max=math.ceil(size / 8))
        if part == "mask":  # it says where the model's values belong
            return int(index.sum())
        if part == "model" and s.client_freeze:
            return int((width * entries).sum())
        return int((width * entries + index).clamp(max=width * size).sum())


def count(size: int, share: float) -> int:
    """Return how many of `size` entries a share is, at least one; a share of 0.29 of 100 is 29."""
    return max(1, math.floor(share * size + 1e-9))


def apply_mask(x: Tree, mask: Tree) -> Tree:
    """Return x where the mask is true, else zeros."""
    return tree.map(lambda a, m: torch.where(m, a, torch.zeros_like(a)), x, mask)


def top(x: Tree, share: float | list[list[float]], ranking: str, at: tuple[Tensor, Tensor] | None = None) -> Tree:
    """Return a bool tree, true on the entries of largest size; of equal ones the first. share: one, or a table read `at`."""

    def mask(v: Tensor) -> Tensor:
        if isinstance(share, float):
            k: int | Tensor = count(len(v), share)
        else:
            k = torch.tensor([[count(len(v), p) for p in row] for row in share], device=v.device)[at]
        order = torch.sort(v.abs(), descending=True, stable=True).indices
        return torch.zeros_like(v, dtype=torch.bool).scatter(0, order, torch.arange(len(v), device=v.device) < k)

    if ranking == "tensor":
        return tree.map(lambda p: mask(p.reshape(-1)).reshape(p.shape), x)
    pieces = mask(tree.flatten(x)).split([p.numel() for p in tree.values(x)])
    return {n: m.reshape(p.shape) for (n, p), m in zip(x.items(), pieces, strict=True)}
