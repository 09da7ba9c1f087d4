"""FedDF: the average learns from the ensemble of the clients' models, on public inputs without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import MethodSettings, keys, mean, optimizers, tree
from rayfed.distill import ensemble
from rayfed.lazy import torch
from rayfed.methods._bases.one_model import OneModel
from rayfed.task import needs_classes

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation


class FedDF(OneModel):
    """Lin et al. 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (2006.07242), algorithm 1.

    Client i: w_i <- w, E epochs of SGD; sends w_i - w.
    Server: w <- sum_i (n_i / n) w_i over the round's clients, then `steps` Adam steps on batches x of the public set:
        w: min  tau^2 KL(softmax(mean_i f(x; w_i) / tau) || softmax(f(x; w) / tau)),  tau = 1 in the paper,
    at the rate lr (1 + cos(pi t / steps)) / 2 [paper: cosine, batches of 128]. The paper stops early on a validation set (at
    most 10^4 steps, 10^3 without gain); a server that has no labels takes a fixed number of steps [ours].
    The public set is `federation.probe`: training rows that no client gets. One architecture, so one student.
    `steps: 0` is FedAvg to the bit.
    Down: w (P). Up: update (P), n_i. Kept at clients: nothing. At the server: w, the public set; within a round the models
    of all its clients.
    """

    logs: ClassVar = {
        f"distill/{when}": (
            f"loss of the average against the ensemble on the whole public set, {when} the steps",
            "nats",
        )
        for when in ("before", "after")
    }

    class Settings(MethodSettings):
        steps: int = Field(100, ge=0, description="Server steps per round; 0 is FedAvg.")
        batch: int = Field(128, ge=1, description="Public examples per step.")
        lr: float = Field(1e-3, gt=0, description="Adam's first rate in a round; it falls to 0 along a cosine.")
        tau: float = Field(1.0, gt=0, description="Distillation temperature.")

    def check(self, config: Config) -> list[str]:
        if not config.federation.public_rows:
            return ["federation.probe: 0 found, feddf distils on a public set; allowed: a whole number >= 1"]
        return []

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "feddf keeps the teachers' mean logits of the whole probe")

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"), keep="delta")
        model = tree.add(state["model"], got.folded["delta"])
        if not (got.ids and s.steps):
            return {"model": model}
        x = fed.probe()
        teachers = (tree.add(state["model"], d) for d in tree.unstack(got.stacked("delta")))
        target = mean_logits(task, teachers, x, s.batch)
        model, before, after = distill(task, model, x, target, s, fed.key("distillation"))
        fed.log("distill/before", before)
        fed.log("distill/after", after)
        return {"model": model}


def mean_logits(task: Task, models: Iterable[Tree], x: Tensor, batch: int) -> Tensor:
    """Return mean_k f(x; w_k), (n, C), in pieces of `batch` rows."""
    total, number = torch.zeros(()), 0
    with torch.no_grad():
        for w in models:
            total, number = total + torch.cat([task.apply(w, piece) for piece in x.split(batch)]), number + 1
    return total / number


def distill(
    task: Task, student: Tree, x: Tensor, target: Tensor, s: FedDF.Settings, key: int
) -> tuple[Tree, float, float]:
    """Teach the student the logits `target` (n, C) at x (n, ...); return it, and its mean loss over x before and after.

    Batches walk through x in a fresh order each pass.
    """
    rng, adam = keys.torch_generator(key), optimizers.adam()

    def loss(theta: Tree, rows: Tensor) -> Tensor:
        return ensemble.kl(target[rows], task.apply(theta, x[rows]), s.tau).mean()

    def over_all(theta: Tree) -> float:
        apart = ensemble.kl(target, mean_logits(task, [theta], x, s.batch), s.tau)
        return float(apart.mean())

    before, state, left = over_all(student), adam.init(student), torch.zeros(0, dtype=torch.int64)
    for t in range(s.steps):
        if not len(left):
            left = torch.randperm(len(x), generator=rng)
        rows, left = left[: s.batch], left[s.batch :]
        lr = s.lr * (1 + math.cos(math.pi * t / s.steps)) / 2
        student, state = adam.update(torch.func.grad(loss)(student, rows), state, student, lr)
    return student, before, over_all(student)
