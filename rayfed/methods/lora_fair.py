"""LoRA-FAIR: the mean of the factors, with B corrected towards the mean product while A stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import MethodSettings, Need, mean, optimizers, tree
from rayfed.adapters import lora
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import GAP, OverLoRA

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree
    from rayfed.config.schema import Config


class LoRAFAIR(OverLoRA):
    """Bian et al. 2024, "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement" (2411.14961).

    Client i: (A_i, B_i) <- local training from (A, B); sends their change, and the head's.
    Server: A <- sum_i p_i A_i, B' = sum_i p_i B_i, head alike, and with D* = sum_i p_i B_i A_i layer by layer
        B <- B' + argmin_X  dist(D*, (B' + X) A) + lam ||X||.
    `distance: squares`: ||D* - (B' + X) A||^2 + lam ||X||^2, solved: X = (D* - B' A) A^T (A A^T + lam I)^-1. Whatever the
    factors' distance the residual shrinks, and with lam 0 B A is D* on the span of A's rows.
    `distance: cosine`, the paper's: dist = 1 - cosine similarity, by `steps` of Adam from X = 0, of which the X with the least
    objective is taken, X = 0 among them; X in units of ||B'|| (the unit and Adam are ours; the paper takes SGD). A norm that
    is not squared holds X at 0 where the factors are near each other: then the layer is FedIT's. A cosine does not see
    length, so a corrected B' + X is scaled until B A is nearest to D* [ours]; unscaled, lam 0 inflates the product.
    `lora/corrected` is the share of layers whose B was moved.
    Down: A (r, n), B (m, r) of each layer, head. Up: their updates, n_i. Kept at clients: nothing.
    At the server: A, B, head; within a round the factors of all its clients.
    """

    logs: ClassVar = {
        **GAP,
        "lora/gap_before": ("`lora/gap` of B' in the place of B", "0 = exact"),
        "lora/corrected": ("share of layers whose B is not the mean's", "0 = FedIT"),
    }
    no_rule = "what is corrected are the clients' products B A, each from its own factors"
    one_rank = "B is corrected for all rows of A at once, of which a client of a smaller rank holds only some"

    class Settings(MethodSettings):
        needs: ClassVar = dict.fromkeys(("steps", "lr"), (Need("distance", ("cosine",)),))

        distance: Literal["squares", "cosine"] = Field("squares", description="What is small between D* and B A.")
        lam: float = Field(0.01, ge=0, description="Weight of the correction's norm.")
        steps: int = Field(100, ge=0, description="Steps of Adam per round and layer (cosine); 0 is FedIT.")
        lr: float = Field(0.01, gt=0, description="Rate of Adam, in units of ||B'|| (cosine).")

    def check(self, config: Config) -> list[str]:
        s = self.settings
        unread = [
            n
            for n in ("steps", "lr")
            if s.distance == "squares" and getattr(s, n) != self.Settings.model_fields[n].default
        ]
        return super().check(config) + [
            f"method.{n}: {getattr(s, n)} found, `distance: squares` takes no steps of Adam; needed: method.distance: cosine"
            for n in unread
        ]

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        old = state["model"]
        got = fed.ask(self.train, fed.sample(), shared={"model": old}, fold=mean("delta"), keep="delta")
        if not got.ids:
            return state
        new = tree.add(old, got.folded["delta"])
        exact = lora.products(old, got, "examples")
        fed.log("lora/gap_before", lora.gap(exact, new))
        for n, (b, a) in exact.items():
            mean_b, mean_a = new[n.b].to(b.dtype), new[n.a].to(a.dtype)
            better = corrected(mean_b, mean_a, b @ (a @ mean_a.T), (b, a), self.settings).to(new[n.b].dtype)
            fed.log("lora/corrected", float(not torch.equal(better, new[n.b])))
            new[n.b] = better
        fed.log("lora/gap", lora.gap(exact, new))
        return {"model": new}


def corrected(b: Tensor, a: Tensor, target: Tensor, exact: lora.Pair, s: LoRAFAIR.Settings) -> Tensor:
    """Return B' + X of one layer: b (m, r), a (r, n) the mean factors, target (m, r) = D* A^T, exact the pair of D*, all float64.

    D* and B A are never formed: <D*, Y A> = <D* A^T, Y> and ||Y A||^2 = <Y A A^T, Y>.
    """
    square = a @ a.T
    if s.distance == "squares":
        ridge = square + s.lam * torch.eye(len(a), dtype=a.dtype, device=a.device)
        return b + (target - b @ square) @ torch.linalg.pinv(
            ridge, hermitian=True
        )  # without lam A may have fewer directions
    size, norm, adam = b.norm(), lora.norm(*exact), optimizers.adam()
    if not (size and norm):
        return b

    def objective(x: Tensor) -> Tensor:
        y = b + size * x
        cosine = (target * y).sum() / (norm * ((y @ square) * y).sum().sqrt())
        return 1 - cosine + s.lam * (x.square().sum() + torch.finfo(x.dtype).tiny).sqrt()

    x = best = torch.zeros_like(b)
    state, least = adam.init({"x": x}), torch.inf
    for _ in range(s.steps + 1):
        slope, value = torch.func.grad_and_value(objective)(x)
        if value < least:
            best, least = x, float(value)
        moved, state = adam.update({"x": slope}, state, {"x": x}, s.lr)
        x = moved["x"]
    if not best.any():
        return b
    y = b + size * best
    return y * ((target * y).sum() / ((y @ square) * y).sum())
