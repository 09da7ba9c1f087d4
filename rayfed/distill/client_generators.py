"""Generators that clients train on their own rows, once, and draws from them (Liu et al. 2025, Mosaic, 2505.19699; conditional ones,
small and fully connected, are ours)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed import keys, optimizers, tree
from rayfed.distill import generator as gen
from rayfed.lazy import F, torch
from rayfed.visits import Phase, Visit, epochs

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.task import Task
    from rayfed.tree import Tree
    from rayfed.visits import ClientContext


class Generators(NamedTuple):
    """What is drawn of each class: counts (C,); held: (n, C) rows of each class of n clients; weights: their generators, leaves (n, ...);
    noise: d_z; shape: of an input."""

    counts: Tensor
    held: Tensor
    weights: Tree
    noise: int
    shape: tuple[int, ...]

    def draw(self, y: Tensor, rng: torch.Generator, relu: bool = False) -> Tensor:
        """Draw an input (F,) of each label, (B, F): of a client by how many of all rows of the class it holds."""
        z = torch.randn(len(y), self.noise, generator=rng, dtype=tree.values(self.weights)[0].dtype)
        of = torch.multinomial(self.held[:, y].T.double(), 1, generator=rng)[:, 0]
        x = torch.zeros(len(y), math.prod(self.shape), dtype=z.dtype)
        for i in of.unique().tolist():
            at = (of == i).nonzero()[:, 0]
            made = gen.generate(tree.pick(self.weights, i), z[at], y[at], len(self.counts), self.shape)
            x = x.index_put((at,), made.flatten(1))
        return x.clamp(min=0) if relu else x


def generators(told: Tree, noise: int, shape: tuple[int, ...]) -> Generators:
    """Return the draws of what `generator_visit` sent: client -> {"generator", "rows"}."""
    clients = list(told.values())
    held = torch.stack([c["rows"] for c in clients])
    return Generators(held.sum(0), held, tree.stack([c["generator"] for c in clients]), noise, shape)


def generator_visit(task: Task, seed: int, noise: int, passes: int, lr: float) -> Visit:
    """Return a visit that trains a generator and a discriminator of the client's own rows, both given the label, by the non-saturating
    loss, and sends `generator` and `rows` (C,) of each class. All clients start from the same draws.

    Adam (0.5, 0.999) at rate lr, `passes` passes over the train split in the config's batches.
    """
    size, classes, adam = math.prod(task.input_shape), task.classes, optimizers.adam((0.5, 0.999))

    def first(what: str, inputs: int, shape: tuple[int, ...]) -> Tree:
        drawn = gen.init(keys.key(seed, 0, -1, what), inputs, classes, shape, dtype=task.dtype)
        return tree.map(lambda p: p.to(task.device), drawn)

    g_first, d_first = first("client generator", noise, task.input_shape), first("discriminator", size, (1,))

    def real(d: Tree, x: Tensor, y: Tensor) -> Tensor:
        return gen.latent(d, x.flatten(1), y, classes)[:, 0]

    def begin(client: ClientContext) -> Tree:
        return {"g": g_first, "d": d_first, "adam_g": adam.init(g_first), "adam_d": adam.init(d_first)}

    def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
        x, y, w = batch["x"].flatten(1).to(task.dtype), batch["y"], batch["w"]

        def mean(rows: Tensor) -> Tensor:
            return (rows * w).sum() / w.sum().clamp(min=1)

        def made(g: Tree, purpose: int) -> Tensor:
            z = keys.normal(keys.fold(key, purpose), (len(y), noise), task.dtype)
            return gen.generate(g, z, y, classes, (size,))

        def discern(d: Tree, fake: Tensor) -> Tensor:
            return mean(F.softplus(-real(d, x, y)) + F.softplus(real(d, fake, y)))

        d, adam_d = adam.update(
            torch.func.grad(discern)(carry["d"], made(carry["g"], 0)), carry["adam_d"], carry["d"], lr
        )
        slopes = torch.func.grad(lambda g: mean(F.softplus(-real(d, made(g, 1), y))))(carry["g"])
        g, adam_g = adam.update(slopes, carry["adam_g"], carry["g"], lr)
        return {"g": g, "d": d, "adam_g": adam_g, "adam_d": adam_d}

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"generator": carry["g"], "rows": client.info.counts.to(task.dtype)}, client.own

    return Visit(begin, [Phase(epochs(passes), step, counts=False)], end)
