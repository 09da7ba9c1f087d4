"""Ravan: the factors are frozen, cut into heads; a small square core between each two is trained, whose mean is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, PARAMS, MethodSettings, Part, Wire, keys, mean, sgd_visit, tree, visit
from rayfed.adapters import lora
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.wire import params_of

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class Ravan(OverLoRA):
    """Raje et al. 2025, "Ravan: Multi-Head Low-Rank Adaptation for Federated Fine-Tuning" (2506.05568).

    Layer: W x + (alpha / r) sum_k s_k B_k H_k A_k x, k = 1 .. h heads; B_k (m, q) and A_k (q, n) are drawn once and frozen, H_k (q, q)
    starts at 0, s_k at 1. `adapter.rank` r is that of all heads together, q = r / h: h q^2 numbers a layer are trained.
    Client i: H_k, s_k, head <- local training; sends s_k H_k and the change of the head.
    Server: H_k <- sum_i p_i s_ik H_ik, s_k = 1 again. Since B and A are common, the layer is the mean of the clients' layers.
    `start: gram_schmidt`: the columns of all B_k side by side are orthonormal, and the rows of all A_k; `normal`: normal numbers of
    deviation m^(-1/2) and n^(-1/2) [ours]. alpha / r is the adapter's own [ours].
    Not here: clients that train only the heads they can afford.
    Down: H (h, q, q) of each layer, head. Up: the change of s_k H_k, of the head, n_i. Kept at clients: B and A, which every client makes
    from the seed. At the server: H, head.
    """

    one_rank = "the frozen factors have one rank for all"

    class Settings(MethodSettings):
        heads: int = Field(2, ge=1, description="Number of heads h; divides the rank.")
        start: Literal["gram_schmidt", "normal"] = Field("gram_schmidt", description="How B and A are drawn.")
        scales: bool = Field(True, description="Train the s_k too; false: they stay 1.")
        weight: Literal["examples", "one"] = Field("examples", description="Weights p_i: by examples, or equal.")

    wire: ClassVar[Wire] = Wire(
        down={"cores": Part(ANY, note="H, (h, q, q) of each layer"), "head": Part(params_of("head"))},
        up={
            "delta": Part(ANY, update=True, note="change of s_k H_k"),
            "head_delta": Part(params_of("head"), update=True),
        },
        server={
            "model": Part(PARAMS, note="head, A, and B with H multiplied into it"),
            "cores": Part(ANY, note="H, (h, q, q) of each layer"),
        },
    )

    def check(self, config: Config) -> list[str]:
        out = super().check(config)
        if out:
            return out
        r, h = config.adapter.largest, self.settings.heads  # type: ignore[union-attr]
        if r % h:
            allowed = ", ".join(str(k) for k in range(1, r + 1) if r % k == 0)
            out.append(f"method.heads: {h} found, allowed with adapter.rank: {r}: its divisors {allowed}")
        if config.init.from_:
            out.append(
                f"init.from: {config.init.from_} found, allowed with method.name: ravan: null; its factors are drawn"
            )
        return out

    def init(self, task: Task, key: int) -> Tree:
        h = self.settings.heads
        q = task.config.adapter.largest // h  # type: ignore[union-attr]
        cores = {n.a: torch.zeros(h, q, q, dtype=task.dtype, device=task.device) for n in lora.pairs(task.params_like)}
        return {"model": {**task.init_params(key), **multiplied(self.factors(task), cores)}, "cores": cores}

    def factors(self, task: Task) -> dict[lora.Names, lora.Pair]:
        """Return the frozen B (m, r) and A (r, n) of each layer, the same wherever they are made."""
        out = {}
        for n in lora.pairs(task.params_like):
            drawn = []
            for name, axis in ((n.b, 0), (n.a, 1)):
                shape = task.params_like[name].shape
                rng = keys.numpy(keys.key(task.config.seed, 0, -1, f"ravan {name}"))
                x = torch.as_tensor(rng.normal(size=tuple(shape))) / shape[axis] ** 0.5
                if self.settings.start == "gram_schmidt":
                    x = torch.linalg.qr(x)[0] if axis == 0 else torch.linalg.qr(x.T)[0].T
                drawn.append(x.to(task.device, task.dtype).contiguous())
            out[n] = (drawn[0], drawn[1])
        return out

    @visit
    def train(self, task: Task) -> Visit:
        fixed, trains = self.factors(task), self.settings.scales

        def start(client: ClientContext) -> Tree:
            cores = client.shared["cores"]
            scales = {n: torch.ones_like(c[:, 0, 0]) for n, c in cores.items()} if trains else {}
            return {"model": {"cores": cores, "scales": scales, "head": client.shared["head"]}}

        def whole(params: Tree) -> Tree:
            return {**params["head"], **multiplied(fixed, scaled(params))}

        def loss(params: Tree, batch: Tree, key: Tensor) -> Tensor:
            return task.loss(whole(params), batch, key)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            now = carry["model"]
            return {
                "delta": tree.sub(scaled(now), client.shared["cores"]),
                "head_delta": tree.sub(now["head"], client.shared["head"]),
            }, client.own

        made = sgd_visit(loss, self.local, start=start, end=end)
        return made._replace(local=lambda carry: whole(carry["model"]))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        head = {n: state["model"][n] for n in task.head}
        folds = [mean(part, weight=self.settings.weight) for part in ("delta", "head_delta")]
        got = fed.ask(self.train, fed.sample(), shared={"cores": state["cores"], "head": head}, fold=folds)
        if not got.ids:
            return state
        cores = tree.add(state["cores"], got.folded["delta"])
        moved = {**tree.add(head, got.folded["head_delta"]), **multiplied(self.factors(task), cores)}
        return {"model": {n: moved[n] for n in state["model"]}, "cores": cores}


def scaled(params: Tree) -> Tree:
    """Return s_k H_k of each layer, (h, q, q)."""
    s = params["scales"]
    return {n: c * s[n][:, None, None] if n in s else c for n, c in params["cores"].items()}


def multiplied(factors: dict[lora.Names, lora.Pair], cores: Tree) -> Tree:
    """Return the adapter whose products are sum_k B_k H_k A_k: each layer's [B_1 H_1, ..., B_h H_h] (m, r) and A (r, n)."""
    out = {}
    for n, (b, a) in factors.items():
        h, q, _ = cores[n.a].shape
        out[n.b] = (b.reshape(len(b), h, q, 1) * cores[n.a]).sum(2).reshape(len(b), h * q)
        out[n.a] = a
    return out
