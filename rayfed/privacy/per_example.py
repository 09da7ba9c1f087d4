"""DP-SGD inside a visit: each example's gradient is clipped by itself, and their sum gets noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rayfed import keys, tree
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import ExamplePrivacy
    from rayfed.tree import Tree


def gradient(
    loss: Callable[[Tree, Any, Any], Any], params: Tree, batch: Tree, key: Tensor, settings: ExamplePrivacy, size: int
) -> Tree:
    """Return what stands for the gradient of the mean loss (Abadi et al. 2016, "Deep Learning with Differential Privacy",
    1607.00133, algorithm 1): (sum_j g_j min(1, C / |g_j|) + N(0, z^2 C^2 I)) / size over the examples j of the batch.

    loss: (params, batch, key) -> (B,); batch: {"w": (B,) 1 or 0 on padding, and others (B, ...)}; settings: C and z; size: the
    examples of a full batch, so that how many there are shows in nothing. Each example has a key of its own.
    """

    def one(example: Tree, number: Tensor) -> Tree:
        single = {n: x[None] for n, x in example.items()}
        return torch.func.grad(lambda p: loss(p, single, keys.fold(key, number))[0])(params)

    w = batch["w"]
    grads = torch.vmap(one)(dict(batch), torch.arange(1, len(w) + 1, device=w.device))
    squares = sum(g.reshape(len(w), -1).square().sum(1) for g in tree.values(grads))
    share = w * (settings.norm / squares.sqrt().clamp(min=settings.norm)).to(w.dtype)
    noise = keys.fold(key, 0)
    numbers = iter(range(1, len(tree.values(params)) + 1))

    def mean(g: Tensor) -> Tensor:
        drawn = keys.normal(keys.fold(noise, next(numbers)), g.shape[1:], g.dtype)
        total = torch.tensordot(share.to(g.dtype), g, dims=([0], [0]))
        return (total + settings.noise_multiplier * settings.norm * drawn) / size

    return tree.map(mean, grads)
