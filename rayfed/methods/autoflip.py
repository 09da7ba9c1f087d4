"""AutoFLIP: weights that hardly moved in a short exploration are pruned, the same ones for everybody, before training begins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, Part, Wire, keys, mean, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.exploring import Exploring, ExploringSettings, quantile, spread

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class AutoFLIP(Exploring):
    """Internò et al. 2024, "Automated Hybrid Model Pruning in Federated Learning through Loss Exploration" (2405.10271), its
    unstructured part.

    Round 1 explores: explorers q train from theta_0 for `explore_epochs`; D = mean_q (theta_q - theta_0)^2 element by element, G = (D -
    min D) / (max D - min D) tensor by tensor. thr = the p-quantile of all values of G over all tensors; M = 1 where G > thr, all ones
    with p = 0. The model is theta_0 * M. Every later round: FedAvg in which gradients and, after each local step, weights are
    multiplied by M; x <- (x + sum_i (n_i / n) u_i) * M.
    Only weights (tensors of two axes and more) are pruned: biases and normalisation layers move little at first [ours]. `mask: random` and
    `magnitude` (the smallest of theta_0) are baselines of the same p, which are there before round 1 and explore nothing.
    Removing whole units, the paper's structured part, and making the mask anew in later rounds are not built.
    Down: in round 1 the model (P floats), then the kept weights and M (a bit each). Up: (theta_q - theta_0)^2 (P) once, then the kept
    weights' update, n_i. The kept are counted as P - floor(p W), W the weights, the most that there can be. Kept at clients: nothing.
    At the server: the model, M.
    """

    logs: ClassVar = {
        "autoflip/kept": ("entries of the model that are not pruned", "fraction"),
        "autoflip/least": ("weights kept in the tensor that lost most", "fraction"),
    }

    class Settings(ExploringSettings):
        prune: float = Field(0.5, ge=0, lt=1, description="p, the share of the weights that is pruned.")
        mask: Literal["explored", "random", "magnitude"] = Field(
            "explored", description="What decides; the others are baselines."
        )

    no_buffers = "running statistics are no weights, and are not pruned"
    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS, note="theta_0, to explorers"),
            "pruned": Part(PARAMS, note="x = x * M"),
            "mask": Part(PARAMS, note="M, bool"),
        },
        up={
            "delta": Part(PARAMS, update=True, note="of the kept"),
            "squares": Part(PARAMS, note="(theta_q - theta_0)^2"),
        },
        server={"model": Part(PARAMS), "mask": Part(PARAMS, note="bool"), "explored": Part(SCALAR, note="0 or 1")},
    )

    def check(self, config: Config) -> list[str]:
        s = self.settings
        if s.mask == "explored":
            return []
        read = {n: f.default for n, f in ExploringSettings.model_fields.items()}
        return [
            f"method.{n}: {getattr(s, n)} found, but nothing reads it with method.mask: {s.mask}"
            for n, usual in read.items()
            if getattr(s, n) != usual
        ]

    def cost(self, part: str, sent: Tree) -> int:
        if part not in ("pruned", "mask", "delta"):
            return super().cost(part, sent)
        leaves = tree.values(sent)
        clients, size = len(leaves[0]), sum(x[0].numel() for x in leaves)
        if part == "mask":
            return clients * math.ceil(size / 8) if self.settings.prune else 0
        weights = sum(x[0].numel() for x in leaves if prunable(x[0]))
        return clients * (size - math.floor(self.settings.prune * weights)) * leaves[0].element_size()

    def init(self, task: Task, key: int) -> Tree:
        model, how = task.init_params(key), self.settings.mask
        if how == "explored":
            whole = tree.map(lambda x: torch.ones_like(x, dtype=torch.bool), model)
            return {"model": model, "mask": whole, "explored": torch.zeros(())}
        if how == "random":
            drawn = keys.uniform(
                keys.fold(torch.tensor(key), 1), (sum(x.numel() for x in model.values()),), torch.float64
            )
            pieces = iter(drawn.split([x.numel() for x in model.values()]))
            scores = {n: next(pieces).reshape(x.shape) for n, x in model.items()}
        else:
            scores = tree.map(torch.abs, model)
        mask = self.mask(scores)
        return {"model": kept(model, mask), "mask": mask, "explored": torch.ones(())}

    def mask(self, scores: Tree) -> Tree:
        """Return M: true where a weight's score is above the p-quantile of all weights', and on all entries that are no weights."""
        weights = [x.flatten() for x in tree.values(scores) if prunable(x)]
        threshold: Any = -math.inf
        if self.settings.prune and weights:
            threshold = quantile(torch.cat(weights), self.settings.prune)
        return tree.map(lambda x: (x > threshold) if prunable(x) else torch.ones_like(x, dtype=torch.bool), scores)

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["pruned"], "mask": client.shared["mask"]}

        def hold(params: Tree, carry: Tree) -> Tree:
            return kept(params, carry["mask"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], client.shared["pruned"])}, client.own

        return sgd_visit(task.loss, self.local, start=start, hook=hold, after=hold, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        if not bool(state["explored"]):
            squares = self.explored(state, fed)
            if squares is None:
                return state
            mask = self.mask(tree.map(spread, squares))
            return {"model": kept(state["model"], mask), "mask": mask, "explored": torch.ones(())}
        shared = {"pruned": state["model"], "mask": state["mask"]}
        got = fed.ask(self.train, fed.sample(), shared=shared, fold=mean("delta", weight="examples"))
        fed.log("autoflip/kept", float(tree.flatten(tree.map(lambda m: m.double(), state["mask"])).mean()))
        fed.log("autoflip/least", min(float(m.double().mean()) for m in tree.values(state["mask"])))
        model = tree.add(state["model"], got.folded["delta"])
        return {**state, "model": kept(model, state["mask"])}


def prunable(x: Tensor) -> bool:
    """Return whether a tensor holds weights, not biases or scales."""
    return x.dim() >= 2


def kept(x: Tree, mask: Tree) -> Tree:
    """Return x where the mask is true, else zeros."""
    return tree.map(lambda a, m: torch.where(m, a, 0.0), x, mask)
