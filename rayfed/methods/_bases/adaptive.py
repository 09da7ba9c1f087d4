"""Adaptive server optimizers over the mean update (Reddi et al. 2021, "Adaptive Federated Optimization", 2003.00295)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Wire, mean, tree
from rayfed.lazy import torch
from rayfed.methods._bases.one_model import OneModel

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree


class AdaptiveSettings(MethodSettings):
    """Settings of algorithm 2 that all of its kinds have."""

    server_lr: float = Field(0.05, gt=0, description="Server step eta_g; the paper's grid is 0.01 to 1.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    tau: float = Field(1e-3, gt=0, description="Degree of adaptivity; the second moment starts at tau^2.")


class DecaySettings(AdaptiveSettings):
    """Settings of the kinds whose second moment forgets."""

    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the second moment.")


class Adaptive(OneModel):
    """Algorithm 2 without its line for v: Delta = example-weighted mean of u_i; m <- beta1 m + (1 - beta1) Delta; v by
    `second`; x <- x + eta_g m / (sqrt(v) + tau). No bias correction. A round without replies changes nothing."""

    Settings = AdaptiveSettings
    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True)},
        server={"model": Part(PARAMS), "m": Part(PARAMS), "v": Part(PARAMS)},
    )

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return the next second moment from this one and Delta^2, element by element."""
        raise TypeError(f"{type(self).__name__} has no rule for the second moment")

    def init(self, task: Task, key: int) -> Tree:
        v = tree.map(lambda p: torch.full_like(p, self.settings.tau**2), task.params_like)
        return {"model": task.init_params(key), "m": tree.zeros(task.params_like), "v": v}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s: Any = self.settings
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="examples"))
        if not got.ids:
            return state
        delta = got.folded["delta"]
        m = tree.add(tree.scale(state["m"], s.beta1), delta, 1 - s.beta1)
        v = tree.map(lambda v, d: self.second(v, d * d), state["v"], delta)
        step = tree.map(lambda m, v: m / (v.sqrt() + s.tau), m, v)
        model = tree.add(state["model"], step, s.server_lr)
        return {"model": task.keep_averages(model, state["model"], delta), "m": m, "v": v}
