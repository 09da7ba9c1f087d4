"""Local optimizers as pure functions of trees, so that they run inside `vmap` as they run alone.

Each is a pair: `init(params) -> state` and `update(grads, state, params, lr) -> (params, state)`. The formulas are
torch.optim's (SGD with PyTorch's momentum; Adam and AdamW with bias correction); padding and the freezing of finished
clients are the executor's business.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed import tree
from rayfed.errors import ConfigError, nearest
from rayfed.lazy import torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor


class Optimizer(NamedTuple):
    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree, Any], tuple[Tree, Tree]]


def make(o: Any) -> Optimizer:
    """Return the optimizer of `local.optimizer` (fields name, momentum, nesterov, weight_decay, betas, eps, options)."""
    if is_own(o):
        return of_torch(o)
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


# -- any class of torch.optim, one client at a time ----------------------------------------------------------------------

ALONE = "local.optimizer.name is a class that keeps its state in Python objects, so clients train one at a time"


def is_own(o: Any) -> bool:
    """Return whether `local.optimizer` names a class by its path, which cannot be vectorised."""
    return "." in o.name


def of_torch(o: Any) -> Optimizer:
    """Return a `torch.optim.Optimizer` class as a pair of functions: it is made anew in each step with the state that the step before
    left, so that nothing lives outside of the carry. State: {number of the parameter: {name: tensor}}, {} before the first step."""
    cls = find(o.name)
    more = {**o.options, **({"weight_decay": o.weight_decay} if o.weight_decay else {})}

    def update(grads: Tree, state: Tree, params: Tree, lr: Any) -> tuple[Tree, Tree]:
        moved = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
        opt = cls(list(moved.values()), lr=float(lr), **more)
        for i, (n, p) in enumerate(moved.items()):
            p.grad = grads[n]
            opt.state[p].update({k: x.clone() for k, x in state.get(str(i), {}).items()})
        opt.step()
        left = {str(i): {k: x for k, x in opt.state[p].items() if x is not None} for i, p in enumerate(moved.values())}
        return {n: p.detach() for n, p in moved.items()}, left

    return Optimizer(lambda params: {}, update)


def find(name: str) -> Any:
    """Return the optimizer class of a path, `torch.optim.RMSprop`. ConfigError names the nearest where there is none."""
    module, _, cls = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), cls, None)
    except ImportError as e:
        raise ConfigError(f"local.optimizer.name: {name!r} cannot be imported: {e}") from e
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    base = torch.optim.Optimizer
    known = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, base) and c is not base]
    raise ConfigError(
        f"local.optimizer.name: {name!r} is no optimizer class{nearest(cls, known)}; of torch.optim there are {', '.join(sorted(known))}"
    )


def problems(o: Any) -> list[str]:
    """Return what is wrong with an optimizer that is named by its path, tried for two steps on two numbers."""
    if not is_own(o):
        return []
    find(o.name)
    said = f"local.optimizer.name: {o.name}"
    params: Tree = {"w": torch.ones(2)}
    try:
        opt = of_torch(o)
        state = opt.init(params)
        with torch.no_grad():
            for _ in range(2):
                params, state = opt.update({"w": torch.ones(2)}, state, params, o.lr)
    except Exception as e:
        return [f"{said} with options {o.options} raised {type(e).__name__}: {e}"]
    strange = [k for s in state.values() for k, x in s.items() if not isinstance(x, torch.Tensor)]
    return [f"{said} keeps {strange[0]!r}, which is no tensor; needed: a state of tensors"] if strange else []
