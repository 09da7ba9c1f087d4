"""A conditional generator G(z, y): an MLP from noise and a one-hot label to an input in [0, 1], to a sequence, or to any vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rayfed import keys
from rayfed.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


def init(
    key: int,
    noise: int,
    classes: int,
    shape: Sequence[int],
    hidden: Sequence[int] = (128, 128),
    dtype: torch.dtype | None = None,
) -> Tree:
    """Draw the weights {"0": {"w": (out, in), "b": (out,)}, ...} of a (noise + classes) -> hidden -> prod(shape) network."""
    g = keys.torch_generator(key)
    sizes = [noise + classes, *hidden, math.prod(shape)]
    layers = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound = 1 / math.sqrt(fan_in)  # PyTorch's own for linear layers
        w = (torch.rand(fan_out, fan_in, generator=g, dtype=torch.float64) * 2 - 1) * bound
        b = (torch.rand(fan_out, generator=g, dtype=torch.float64) * 2 - 1) * bound
        layers[str(i)] = {"w": w.to(dtype or torch.float32), "b": b.to(dtype or torch.float32)}
    return layers


def generate(weights: Tree, z: Tensor, y: Tensor, classes: int, shape: Sequence[int]) -> Tensor:
    """Return inputs (B, *shape) in [0, 1] for noise z (B, d_z) and labels y (B,)."""
    return torch.sigmoid(latent(weights, z, y, classes)).reshape(len(z), *shape)


def sequence(weights: Tree, z: Tensor, y: Tensor, classes: int, shape: Sequence[int]) -> Tensor:
    """Return sequences (B, *shape), shape (L, d), of vectors with mean 0 and variance 1 over d, for noise z (B, d_z), labels y (B,)."""
    return F.layer_norm(latent(weights, z, y, classes).reshape(len(z), *shape), (shape[-1],))


def latent(weights: Tree, z: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return what the network's last layer gives, (B, out), for noise z (B, d_z) and labels y (B,)."""
    one_hot = y[:, None] == torch.arange(classes, device=y.device)  # torch's own reads y, which vmap forbids
    h = torch.cat([z, one_hot.to(z.dtype)], 1)
    last = len(weights) - 1
    for i in range(last):
        h = F.relu(F.linear(h, weights[str(i)]["w"], weights[str(i)]["b"]))
    return F.linear(h, weights[str(last)]["w"], weights[str(last)]["b"])


def diversity(z: Tensor, x: Tensor) -> Tensor:
    """Return L_div = exp(-mean over pairs of (|z_b - z_b'|^2 / d_z) (|x_b - x_b'|_1 / dim x)); FedGen's and FedFTG's code. 0-d."""
    flat = x.reshape(len(x), -1)
    dz = torch.cdist(z, z).square() / z.shape[1]
    dx = torch.cdist(flat, flat, p=1) / flat.shape[1]
    return torch.exp(-(dz * dx).mean())
