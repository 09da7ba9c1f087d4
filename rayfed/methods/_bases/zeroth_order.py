"""What methods share whose clients know nothing of their function but values: a point as one vector, values of many points, local steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from rayfed import Method, MethodSettings, optimizers, tree
from rayfed.lazy import F, torch
from rayfed.training import mean_loss

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

Estimate = Callable[[int, "Tensor"], "Tensor"]  # (local step from 0, z) -> what the optimizer takes for the gradient


class ZerothOrderSettings(MethodSettings):
    """Settings that all have."""

    value: Literal["loss", "f1"] = Field(
        "loss",
        description="What a query answers: the mean loss over the client's rows, or 1 less the F1 of its classes (macro).",
    )
    server_lr: float = Field(1.0, gt=0, description="Step of the server along the mean update.")
    weight: Literal["one", "examples"] = Field("one", description="Clients count alike, or by examples.")


class ZerothOrder(Method):
    """Base: a client asks for values of its function f_i(z) alone (queries), z all trained parameters as one vector. It takes
    `local.steps` steps (else `local.epochs`) of the config's optimizer, fresh in every visit, along an estimate of the gradient. No
    gradient is ever taken."""

    no_buffers = "no training forward pass is ever made, which would write them"
    no_privacy = "take no gradients, of which examples could be clipped"
    logs: ClassVar = {
        "queries/mean": ("values that a client of the round asked for, mean over clients", "queries"),
        "queries/total": ("values that a client of every round has asked for so far, mean over clients", "queries"),
    }

    def check(self, config: Config) -> list[str]:
        found = []
        if config.local.clip is not None:
            found.append(
                f"local.clip: {config.local.clip:g} found, {config.method.name} takes no gradients; allowed: null"
            )
        if config.local.label_smoothing:
            found.append(
                f"local.label_smoothing: {config.local.label_smoothing:g} found, {config.method.name} asks for values of the loss as it is "
                "scored; allowed: 0"
            )
        if config.local.work.kind != "full":
            found.append(
                f"local.work.kind: {config.local.work.kind} found, {config.method.name} does its local steps as one; allowed: full"
            )
        if config.local.schedule.within != "constant":
            found.append(
                f"local.schedule.within: {config.local.schedule.within} found, {config.method.name} keeps a visit's rate; allowed: constant"
            )
        if config.local.optimizer.name not in ("sgd", "adam", "adamw"):
            found.append(
                f"local.optimizer.name: {config.local.optimizer.name} found, allowed with {config.method.name}: sgd, adam, adamw"
            )
        return found

    def fits(self, federation: Federation) -> list[str]:
        if self.settings.value == "f1" and federation.form != "classes":
            return ["method.value: f1 found, task.data holds no classes; allowed: loss"]
        return []

    def visit_steps(self, federation: Federation) -> np.ndarray:
        return np.where(federation.train.sizes() > 0, self.local_steps, 0)

    @property
    def local_steps(self) -> int:
        """Return T, the local steps of a visit."""
        return int(self.local.steps or self.local.epochs or 1)

    def values(self, task: Task, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return a function: points (n, D) -> f_i of each, (n,) float64."""

        def of_one(z: Tensor) -> Tensor:
            model = unflat(z, task)
            if self.settings.value == "f1":
                return 1 - macro_f1(task.predict(model, batch), batch["y"], batch["w"])
            return mean_loss(lambda p, b, k: task.loss(p, b), model, batch, None)

        return lambda points: torch.stack([of_one(z) for z in points]).double()

    def descend(self, client_lr: Tensor, z: Tensor, estimate: Estimate) -> Tensor:
        """Return z after the local steps. client_lr: the round's rate."""
        opt, params = optimizers.make(self.local.optimizer), cast("Tree", {"z": z})
        state = opt.init(params)
        for t in range(self.local_steps):
            params, state = opt.update({"z": estimate(t, params["z"])}, state, params, client_lr.double())
        found: Tensor = params["z"]
        return found

    def count(self, state: Tree, fed: Any, queries: float) -> Tensor:
        """Log a round's mean number of queries; return the sum so far."""
        total = state["queries"] + queries
        fed.log("queries/mean", queries)
        fed.log("queries/total", float(total))
        return total


def flat(model: Tree) -> Tensor:
    """Return parameters as one vector (D,) float64, in the order of their names in the model."""
    return torch.cat([x.reshape(-1) for x in tree.values(model)]).double()


def unflat(z: Tensor, task: Task) -> Tree:
    """Return a vector as parameters."""
    found, at = {}, 0
    for name, like in task.params_like.items():
        found[name] = z[at : at + like.numel()].reshape(like.shape).to(like.dtype)
        at += like.numel()
    return found


def macro_f1(scores: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Return the mean over the classes of y of F1, 0-d; scores (B, C), y (B,), w (B,) 1 or 0 on padding."""
    hit = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(w.dtype) * w[:, None]
    there = F.one_hot(y.long(), scores.shape[-1]).to(w.dtype) * w[:, None]
    f1 = 2 * (hit * there).sum(0) / (hit.sum(0) + there.sum(0)).clamp(min=1)
    present = (there.sum(0) > 0).to(w.dtype)
    return (f1 * present).sum() / present.sum().clamp(min=1)


def update_of(client: ClientContext, z: Tensor, task: Task) -> Tree:
    """Return the change of the model that a client was sent to the point that it reached."""
    return tree.sub(unflat(z, task), client.shared["model"])
