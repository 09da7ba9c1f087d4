"""Unequal LoRA ranks: a client of rank r_i holds zeros in the rows of A (r, n) and the columns of B (m, r) beyond r_i.

Every tree has the largest rank, so that all clients share one cohort. `at_rank` cuts what a client receives, so it holds
what a client of that rank would; with A's row and B's column k both zero neither has a gradient, and SGD and AdamW leave
them at zero. What it sends is zero there too: a fold of updates pads them with zeros, and a row that a client does not hold
gets nothing from it. Scales: a client's forward is W x + (alpha / r_i) B_i A_i x. Outside of visits all trees are in units of
the largest rank's scale, so B arrives times r_i / r and leaves times r / r_i (r the largest rank): B A means the same on both
sides, and means of products need no scales. Where alpha is not set every rank has the scale 2, and this is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys, tree
from rayfed.lazy import torch
from rayfed.visits import ClientContext, Visit
from rayfed.wire import Wire, tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.task import Task
    from rayfed.tree import Tree


def is_a(name: str) -> bool:
    """Return whether a trained parameter is a factor A (r, n)."""
    return "lora_A" in name.split(".")


def is_b(name: str) -> bool:
    """Return whether a trained parameter is a factor B (m, r)."""
    return "lora_B" in name.split(".")


# -- who has which rank ------------------------------------------------------------------------------------------------


def largest(config: Config) -> int:
    """Return the rank of the trained tree; 0 without LoRA."""
    return config.adapter.largest if config.adapter.kind == "lora" else 0


def unequal(config: Config) -> bool:
    """Return whether clients have different ranks."""
    return config.adapter.kind == "lora" and len(config.adapter.shares) > 1


def kept(config: Config, wire: Wire) -> bool:
    """Return whether a client's state says its present rank, at most the drawn one: the kept part `rank`, an int64 scalar."""
    return config.adapter.kind == "lora" and "rank" in wire.keep and wire.keep["rank"].shape == tensor(dtype="int64")


def drawn(config: Config, population: int, clients: int) -> np.ndarray:
    """Return (N,) int64, each client's rank from the seed alone; exact counts, by the largest remainders, among the clients that
    take part and among the held-out ones."""
    if config.adapter.kind != "lora":
        return np.zeros(clients, np.int64)
    found, weights = (np.array(x) for x in zip(*sorted(config.adapter.shares.items()), strict=True))
    out = [
        found[keys.proportional(weights, n, keys.numpy(keys.key(config.seed, 0, -1, f"ranks of {who}")))]
        for who, n in (("clients", population), ("held-out clients", clients - population))
    ]
    return np.concatenate(out).astype(np.int64)


def problems(config: Config, population: int) -> list[str]:
    """Return a sentence for every rank whose share of the clients that take part comes to none of them."""
    if config.adapter.kind != "lora" or not unequal(config):
        return []
    nobody = set(config.adapter.shares) - set(drawn(config, population, population).tolist())
    return [
        f"adapter.rank: a share of {config.adapter.shares[r]:g} found for rank {r}, none of the {population} clients that take part"
        for r in sorted(nobody)
    ]


# -- trees -------------------------------------------------------------------------------------------------------------


def cut(t: Tree, rank: Any, b: Any = None) -> Tree:
    """Return a tree whose factors A (.., r, n) and B (.., m, r) are zero beyond `rank`, a number, a 0-d tensor, or (K,) for leaves
    (K, ..); `b`: what B is multiplied by, alike."""
    return _named(t, lambda name, x: _cut(name, x, rank, b))


def _named(t: Tree, f: Any, name: str = "") -> Tree:
    if isinstance(t, dict):
        return {n: _named(x, f, n) for n, x in t.items()}
    return f(name, t) if is_a(name) or is_b(name) else t


def _cut(name: str, x: Tensor, rank: Any, b: Any) -> Tensor:
    axis = x.dim() - (2 if is_a(name) else 1)
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]

    def broadcast(v: Any, dtype: Any) -> Tensor:
        v = torch.as_tensor(v, device=x.device).to(dtype)
        return v.reshape(v.shape + (1,) * (x.dim() - v.dim())) if v.dim() else v

    there = torch.arange(x.shape[axis], device=x.device).reshape(shape) < broadcast(rank, torch.int64)
    out = torch.where(there, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return out if b is None or is_a(name) else out * broadcast(b, x.dtype)


def factor(config: Config, rank: Any) -> Any:
    """Return a client's scale over the largest rank's, r / r_i with one alpha; None where all are equal.

    rank: a number or an integer tensor.
    """
    c = config.adapter
    if c.kind != "lora" or (c.alpha is None and not c.rslora):
        return None
    share = largest(config) / (rank.to(torch.float64) if hasattr(rank, "to") else rank)
    return share ** (0.5 if c.alpha is not None else -0.5) if c.rslora else share


def trim(t: Tree, rank: int) -> Tree:
    """Return a tree whose factors have only the rows and columns of `rank`: what a client of that rank really sends or holds."""
    return _named(t, lambda name, x: x[..., :rank, :] if is_a(name) else x[..., :rank])


def cost(price: Callable[[str, Tree], int], parts: Tree, of: Sequence[int] | None) -> int:
    """Return bytes of parts with leaves (k, ...) by a method's `cost`, without what the clients' ranks `of` leave out."""
    if of is None:
        return sum(price(n, p) for n, p in parts.items())
    total = 0
    for rank in sorted(set(of)):
        rows = [i for i, r in enumerate(of) if r == rank]
        total += sum(price(n, trim(tree.map(lambda x, rows=rows: x[rows], p), rank)) for n, p in parts.items())
    return total


def kinds(of: Sequence[int] | None, n: int) -> list[tuple[int, list[int] | None]]:
    """Return (how many of n clients, [their rank]) for every rank among them; one kind, of rank None, where `of` is None."""
    return [(n, None)] if of is None else [(list(of).count(r), [r]) for r in sorted(set(of))]


# -- visits ------------------------------------------------------------------------------------------------------------


def at_rank(inner: Visit, task: Task, kept: bool) -> Visit:
    """Return a visit of clients that hold only their own rank: `info.rank`, or with `kept` the part `rank` of the client's state.

    Cut to it: shared, mine, own, what `begin` and `enter` make, what is sent and kept. Functions of the task use alpha / r_i.
    """

    def held(client: ClientContext) -> ClientContext:
        info = client.info._replace(rank=client.own["rank"]) if kept else client.info
        f = factor(task.config, info.rank)
        b = None if f is None else 1 / f
        return ClientContext(info, *(cut(t, info.rank, b) for t in (client.shared, client.mine, client.own)))

    def begin(client: ClientContext) -> Tree:
        client = held(client)
        rank = client.info.rank
        with task.scaled(factor(task.config, rank)):
            return {"inner": cut(inner.begin(client), rank), "rank": rank}

    def entering(enter: Any) -> Any:
        def enter_at_rank(client: ClientContext, carry: Tree) -> Tree:
            client = held(client)
            rank = client.info.rank
            with task.scaled(factor(task.config, rank)):
                return {"inner": cut(enter(client, carry["inner"]), rank), "rank": rank}

        return enter_at_rank

    def stepping(step: Any) -> Any:
        def step_at_rank(carry: Tree, batch: Any, key: Tensor) -> Tree:
            with task.scaled(factor(task.config, carry["rank"])):
                return {"inner": step(carry["inner"], batch, key), "rank": carry["rank"]}

        return step_at_rank

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        client = held(client)
        rank = client.info.rank
        f = factor(task.config, rank)
        with task.scaled(f):
            parts, after = inner.end(client, carry["inner"])
        return cut(parts, rank, f), cut(after, rank, f)

    phases = [p._replace(step=stepping(p.step), enter=entering(p.enter) if p.enter else None) for p in inner.phases]
    local = inner.local
    return Visit(
        begin, phases, end, inner.vectorize, (lambda carry: local(carry["inner"])) if local is not None else None
    )
