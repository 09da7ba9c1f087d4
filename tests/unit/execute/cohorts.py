"""The toy's cohorts by hand, and visits whose numbers depend on order, padding, keys and states."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rayfed import execute, keys, tree
from rayfed import visits as v
from rayfed.config.schema import Local
from rayfed.execute import batches
from rayfed.execute.batches import BatchSampler, Cohort
from rayfed.task import Task
from rayfed.training import sgd_visit
from rayfed.visits import ClientContext, Over, Phase, Visit
from tests import toy

D = torch.float64


BATCH = 8


def sampler(batch: int = BATCH, seed: int = 1) -> BatchSampler:
    return BatchSampler(toy.federation(toy.config()), seed=seed, batch_size=batch, device="cpu", dtype=D)


def data() -> dict[str, torch.Tensor]:
    arrays = toy.federation(toy.config()).arrays
    return {n: torch.as_tensor(a.copy()).to(D) if a.dtype.kind == "f" else torch.tensor(a) for n, a in arrays.items()}


def cohort(
    visit: Visit, clients: Any = range(6), dispatch: int = 1, p: BatchSampler | None = None, lr: float = 0.1
) -> Cohort:
    return (p or sampler()).cohort(visit, tuple(clients), dispatch=dispatch, round=3, rounds=9, lr=lr)


def run(
    name: str, visit: Visit, c: Cohort, d: Any = None, shared: Any = None, mine: Any = None, own: Any = None
) -> Any:
    """(parts, own, steps) of all clients of the cohort, whatever pieces they come in."""
    got = list(
        execute.execute_visit(name, visit, c, shared or {}, mine or {}, own or {}, d if d is not None else data())
    )
    covered = [i for at, *_ in got for i in range(at.start, at.stop)]
    assert covered == list(range(len(c.clients)))
    return tuple(
        tree.map(lambda *xs: torch.cat([torch.as_tensor(x) for x in xs]), *piece) for piece in list(zip(*got))[1:]
    )


def over(*phases: Over) -> Visit:
    """A visit of these phases that does nothing; for its plan."""
    idle = [Phase(o, lambda carry, batch, key: carry) for o in phases]
    return Visit(lambda client: {}, idle, lambda client, carry: ({}, client.own))


def seen(p: batches.PhaseBatches, i: int) -> list[list[list[int]]]:
    """Rows of the data arrays that client number i meets: step by step, batch by batch, without padding."""
    steps = [t for t in range(p.active.shape[1]) if p.active[i, t]]
    assert steps == list(range(len(steps)))  # idle steps come last
    return [[p.rows[i, t, j][p.w[i, t, j] > 0].tolist() for j in range(p.rows.shape[2])] for t in steps]


def sizes() -> np.ndarray:
    return toy.federation(toy.config()).train.sizes()


def rows_of(c: int, split: str = "train") -> list[int]:
    return getattr(toy.federation(toy.config()), split)[c].tolist()


def flat(nested: list[list[list[int]]]) -> list[int]:
    return [r for step in nested for batch in step for r in batch]


def gather(kinds: tuple[Over, ...], *, counts: bool = True) -> Visit:
    """Adds up what it is shown, weighted by step number, so that order, padding and idle steps all matter."""

    def begin(client: ClientContext) -> Any:
        return {"sum": torch.zeros(8, dtype=D), "n": torch.zeros((), dtype=D), "t": torch.zeros((), dtype=D)}

    def step(carry: Any, batch: Any, key: torch.Tensor) -> Any:
        several = batch if isinstance(batch, tuple) else (batch,)
        t = carry["t"] + 1
        total = sum((j + 1) * (b["x"] * b["w"][:, None]).sum(0) for j, b in enumerate(several))
        return {"sum": carry["sum"] + t * total, "n": carry["n"] + sum(b["w"].sum() for b in several), "t": t}

    def end(client: ClientContext, carry: Any) -> Any:
        return {**carry, "steps": client.info.steps, "sum_lr": client.info.sum_lr}, client.own

    return Visit(begin, [Phase(o, step, counts=counts) for o in kinds], end)


MIXES = {
    "epochs": (v.epochs(2),),
    "steps": (v.steps(7),),
    "pairs": (v.epochs(1, batches=2), v.steps(3, batches=2)),
    "mixed": (v.once(), v.epochs(1), v.whole("test"), v.steps(2)),
}


def noisy(local: Local, task: Task) -> Visit:
    """Two-phase training of this file's own: Adam, weight noise and dropout by key, a private state, a `mine`."""

    def loss(params: Any, batch: Any, key: torch.Tensor) -> torch.Tensor:
        keep = (keys.uniform(keys.fold(key, 1), (8,), D) < 0.8).to(D)
        noise = 0.01 * keys.normal(key, params["head.bias"].shape, D)
        return task.loss({**params, "head.bias": params["head.bias"] + noise}, {**batch, "x": batch["x"] * keep})

    def start(client: ClientContext) -> Any:
        drift = keys.normal(keys.fold(client.own["key"], client.info.round), client.own["bias"].shape, D)
        return {
            "model": {**client.shared["model"], "head.bias": client.own["bias"] + 0.01 * drift},
            "pull": client.mine["pull"],
        }

    def end(client: ClientContext, carry: Any) -> Any:
        sent = {
            "delta": tree.sub(carry["model"], client.shared["model"]),
            "secret": client.info.secret,
            "k": client.own["key"],
        }
        return sent, {**client.own, "bias": carry["model"]["head.bias"]}

    return sgd_visit(
        loss, local, start=start, end=end, hook=lambda g, carry: tree.add(g, carry["model"], carry["pull"]),
        phases=[(v.steps(3), lambda n: n.startswith("head")), (v.epochs(2), lambda n: not n.startswith("head"))],
    )  # fmt: skip


def noisy_run(name: str, d: Any = None, clients: Any = range(6), optimizer: str = "adam") -> Any:
    c = toy.config(dtype="float64", local={"optimizer": {"name": optimizer, "lr": 0.05, "weight_decay": 0.01}})
    task = Task(c, toy.federation(c))
    visit, ids = noisy(c.local, task), tuple(clients)
    own = {"key": torch.tensor([keys.key(1, 0, i, "own") for i in ids]), "bias": torch.zeros(len(ids), 4, dtype=D)}
    mine = {"pull": torch.tensor([0.01 * i for i in ids], dtype=D)}
    plans = cohort(visit, ids, lr=c.local.optimizer.lr)
    return run(name, visit, plans, d, {"model": task.initial}, mine, own)


def apart(a: Any, b: Any) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(tree.values(a), tree.values(b), strict=True))
