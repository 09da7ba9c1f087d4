"""FeDeRA: FedIT whose factors start as the largest directions of the pretrained weights, which the frozen weights then lack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfed import MethodSettings, tree
from rayfed.adapters import lora
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import MovesBase

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree
    from rayfed.config.schema import Config


class FeDeRA(MovesBase):
    """Yan et al. 2024, "FeDeRA: Efficient Fine-tuning of Language Models in Federated Learning Leveraging Weight Decomposition"
    (2404.18848).

    Start, layer by layer: W0 = U S V^T;  B <- U_r S_r^(1/2), A <- S_r^(1/2) V_r^T, and the frozen weight is W = W0 - s B A, s = alpha / r,
    so that W + s B A is W0: training begins at the pretrained network. (`alpha` equal to `rank` is s = 1: then what is frozen is W0
    without its r largest directions.)
    Then FedIT: (A_i, B_i) <- local training; A <- sum_i p_i A_i, B <- sum_i p_i B_i, head alike, p_i = n_i / n. W never moves.
    Every client works W out from W0 by itself; here it goes to actors with the model, which is not counted.
    Down: A (r, n), B (m, r) of each layer, head. Up: their updates, n_i. Kept at clients: W. At the server: A, B, head, W.
    A run ends in a whole model, the adapter merged.
    """

    one_rank = "the frozen weights lack the directions of one rank"

    class Settings(MethodSettings):
        weight: Literal["examples", "one"] = Field("examples", description="Weights p_i: by examples, or equal.")

    def check(self, config: Config) -> list[str]:
        out = super().check(config)
        if config.init.from_:
            out.append(
                f"init.from: {config.init.from_} found, allowed with method.name: federa: null; its factors start from the base"
            )
        return out

    def init(self, task: Task, key: int) -> Tree:
        params, taken = dict(task.init_params(key)), {}
        for n in lora.pairs(params):
            name, transposed = lora.weight_of(task, n)
            w = task.frozen[name].to(torch.float64)
            b, a = start_pair(w.T if transposed else w, params[n.a])
            params[n.b], params[n.a] = b.to(task.dtype), a.to(task.dtype)
            taken[n] = -(params[n.b].to(w.dtype) @ params[n.a].to(w.dtype))
        return {"model": {**params, **lora.move_weights(task, {}, taken)}}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        model, base, got = self.ask(state, fed, task)
        return {"model": {**tree.add(model, got.folded["delta"]), **base}}

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "base" else super().cost(part, sent)


def start_pair(w: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Return U_r S_r^(1/2) (m, r) and S_r^(1/2) V_r^T (r, n) of a matrix (m, n), both in its type; directions that it lacks have a row of
    `old` (r, n), with zeros in the other."""
    b, a = lora.best_pair(w, torch.eye(w.shape[1], dtype=w.dtype, device=w.device), old.to(w.dtype))
    root = b.norm(dim=0).sqrt()
    root = torch.where(root > 0, root, torch.ones_like(root))
    return b / root, a * root[:, None]
