"""Fixed last layers: a simplex, whose classes are equally far apart, whole or with most entries zero."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rayfed import keys, optimizers
from rayfed.errors import ConfigError
from rayfed.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Task


def simplex(task: Task, key: int) -> Tensor:
    """Return M^T (C, d), float64: rows of norm 1 and inner products -1 / (C - 1), the simplex equiangular tight frame
    M = sqrt(C / (C - 1)) P (I - 1 1^T / C), P (d, C) orthonormal columns drawn from a key. ConfigError where d < C."""
    c, d = task.classes, task.feature_size
    if d < c:
        raise ConfigError(
            f"task.model: {task.config.task.model.name} has {d} features before its last layer, method.name: "
            f"{task.config.method.name} needs as many as there are classes, {c}"
        )
    p, _ = torch.linalg.qr(torch.randn(d, c, generator=keys.torch_generator(key), dtype=torch.float64))
    centred = torch.eye(c, dtype=torch.float64) - 1 / c
    return math.sqrt(c / (c - 1)) * (p @ centred).T


def sparse_simplex(task: Task, key: int, *, zeros: float, norm: float, steps: int, lr: float) -> Tensor:
    """Return (C, d), float64: a simplex of which floor(zeros C d) entries are 0, the others after `steps` steps of Adam on

        sum_c (|m_c| - norm)^2 - mean_c arccos( max_{c' != c} cos(m_c, m_c') ).

    Source: FedLoGe (Xiao et al. 2024, 2401.08977), SSE-C. ConfigError where d < C.
    """
    m = simplex(task, key)
    order = torch.randperm(m.numel(), generator=keys.torch_generator(keys.key(key, 0, -1, "zeros")))
    kept = torch.ones(m.numel(), dtype=torch.bool)
    kept[order[: math.floor(zeros * m.numel() + 1e-9)]] = False
    mask = kept.reshape(m.shape)
    itself = torch.eye(len(m), dtype=torch.bool)

    def loss(params: dict[str, Tensor]) -> Tensor:
        rows = params["m"] * mask
        unit = F.normalize(rows, dim=-1)
        nearest = (unit @ unit.T).masked_fill(itself, -1.0).amax(-1).clamp(-1 + 1e-7, 1 - 1e-7)
        return (rows.norm(dim=-1) - norm).square().sum() - torch.arccos(nearest).mean()

    adam, params = optimizers.adam(), {"m": m * mask}
    state = adam.init(params)
    step = torch.func.grad(loss)
    for _ in range(steps):
        params, state = adam.update(step(params), state, params, lr)  # type: ignore[assignment]
    return params["m"] * mask
