"""Local optimizers as pure functions of trees, so that they run inside `vmap` as they run alone.

Each is a pair: `init(params) -> state` and `update(grads, state, params, lr) -> (params, state)`. The formulas are
torch.optim's (SGD with PyTorch's momentum; Adam and AdamW with bias correction); padding and the freezing of finished
clients are the executor's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed import tree
from rayfed.lazy import torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor


class Optimizer(NamedTuple):
    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree, Any], tuple[Tree, Tree]]


def make(o: Any) -> Optimizer:
    """Return the optimizer of `local.optimizer` (fields name, momentum, nesterov, weight_decay, betas, eps)."""
    return (
        sgd(o.momentum, o.nesterov, o.weight_decay)
        if o.name == "sgd"
        else adam(o.betas, o.eps, o.weight_decay, o.name == "adamw")
    )


def sgd(momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Optimizer:
    """g <- g + wd p;  v <- m v + g;  p <- p - lr v  (nesterov: p <- p - lr (g + m v)). State: `velocity` if m > 0."""

    def init(params: Tree) -> Tree:
        return {"velocity": tree.zeros(params)} if momentum else {}

    def update(grads: Tree, state: Tree, params: Tree, lr: Any) -> tuple[Tree, Tree]:
        if weight_decay:
            grads = tree.add(grads, params, weight_decay)
        if momentum:
            # torch starts the velocity at the first gradient; from zero that is the same number
            state = {"velocity": tree.add(grads, state["velocity"], momentum)}
            grads = tree.add(grads, state["velocity"], momentum) if nesterov else state["velocity"]
        return tree.add(params, grads, -lr), state

    return Optimizer(init, update)


def adam(
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0, decoupled: bool = False
) -> Optimizer:
    """Kingma & Ba 2015 with bias correction; `decoupled` weight decay is AdamW. State: `m`, `v`, `t` (0-d)."""
    b1, b2 = betas

    def init(params: Tree) -> Tree:
        first = tree.values(params)[0]
        return {
            "m": tree.zeros(params),
            "v": tree.zeros(params),
            "t": torch.zeros((), dtype=first.dtype, device=first.device),
        }

    def update(grads: Tree, state: Tree, params: Tree, lr: Any) -> tuple[Tree, Tree]:
        if weight_decay and not decoupled:
            grads = tree.add(grads, params, weight_decay)
        t = state["t"] + 1
        m = tree.map(lambda a, g: b1 * a + (1 - b1) * g, state["m"], grads)
        v = tree.map(lambda a, g: b2 * a + (1 - b2) * g * g, state["v"], grads)
        c1, c2 = 1 - b1**t, 1 - b2**t

        def move(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
            if weight_decay and decoupled:
                p = p * (1 - lr * weight_decay)
            return p - lr * (a / c1) / (torch.sqrt(b / c2) + eps)

        return tree.map(move, params, m, v), {"m": m, "v": v, "t": t}

    return Optimizer(init, update)
