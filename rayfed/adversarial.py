"""Adversarial examples: inputs moved within a ball to where a loss is large, by projected gradient steps (PGD)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rayfed import keys
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Ball
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree


def within(z: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """Return points z (B, ...) projected on the ball around inputs x and on the range of inputs."""
    away = z - x
    far = (
        away.clamp(-ball.rho, ball.rho)
        if ball.norm == "linf"
        else away * (ball.rho / _length(away).clamp(min=ball.rho))
    )
    z = x + far
    return z if ball.low is None and ball.high is None else z.clamp(ball.low, ball.high)


def start(x: Tensor, ball: Ball, key: Tensor) -> Tensor:
    """Return random points of the ball around inputs x (B, ...): uniform for linf; for l2 of uniform direction and distance."""
    if ball.norm == "linf":
        return within(x + ball.rho * (2 * keys.uniform(key, x.shape, x.dtype) - 1), x, ball)
    way = keys.normal(key, x.shape, x.dtype)
    far = keys.uniform(keys.fold(key, 1), (len(x),), x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    return within(x + ball.rho * far * way / _length(way).clamp(min=1e-12), x, ball)


def moved(loss: Callable[[Tensor], Tensor], x: Tensor, begin: Tensor, ball: Ball, steps: int, step: float) -> Tensor:
    """Return inputs (B, ...) after `steps` of z <- P(z + step sign(grad loss(z))), under l2 along grad / ||grad||_2.

    loss: of each row, (B,), of its own input alone; begin: where the first step begins. Madry et al. 2018 (1706.06083); one step of
    size rho from x itself is FGSM (Goodfellow et al. 2015, 1412.6572). No gradient passes through what it returns.
    """
    slope = torch.func.grad(lambda z: loss(z).sum())
    z = begin
    for _ in range(steps):
        g = slope(z)
        z = within(z + step * (g.sign() if ball.norm == "linf" else g / _length(g).clamp(min=1e-12)), x, ball)
    return z.detach()


def _length(x: Tensor) -> Tensor:
    """Return the norm of each row, shaped so that it divides rows."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))


def attacked(task: Task, ball: Any) -> Task:
    """Return a task whose measures of a row are the worst of those at the row itself and at what PGD moves it to, against the model
    that is measured; ball: `evaluate.adversary` of the config."""
    made, step = copy.copy(task), ball.rate
    better = {m.name: m.better for m in task.measures}

    def metrics(params: Tree, batch: Any) -> dict[str, Tensor]:
        x = batch["x"]

        def loss(z: Tensor) -> Tensor:
            return task.loss(params, {**batch, "x": z})

        found = task.metrics(params, batch)
        for i in range(ball.restarts):
            key = torch.tensor(keys.key(i, 0, -1, "start of an attack"), device=x.device)
            z = moved(loss, x, start(x, ball, key), ball, ball.steps, step)
            now = task.metrics(params, {**batch, "x": z})
            worse = {n: torch.minimum if better[n] == "higher" else torch.maximum for n in found}
            found = {n: worse[n](v, now[n]) for n, v in found.items()}
        return found

    made.metrics = metrics  # type: ignore[method-assign]
    return made


def misfit(setting: str, ball: Ball, federation: Federation) -> list[str]:
    """Return why a federation's inputs cannot be moved within a ball; setting: what names it."""
    if federation.kind not in ("image", "tabular") or federation.form != "classes":
        return [
            f"{setting}: found, task.data is {federation.kind} with {federation.form}; allowed: images or numbers with classes"
        ]
    x = federation.arrays["x"]
    least, most = (float(x.min()), float(x.max())) if x.size else (math.inf, -math.inf)
    found = []
    if ball.low is not None and least < ball.low - 1e-6:
        found.append(
            f"{setting}.low: {ball.low:g} found, task.data goes down to {least:.4g}; allowed: at most that, or null"
        )
    if ball.high is not None and most > ball.high + 1e-6:
        found.append(
            f"{setting}.high: {ball.high:g} found, task.data goes up to {most:.4g}; allowed: at least that, or null"
        )
    return found
