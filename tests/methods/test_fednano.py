"""FedNano: entries merged by Fisher information, worked out row by row, and the crossings of its pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods.fednano import merged, squared
from tests import toy
from tests.tiny import Watched

SPLIT: dict[str, Any] = {
    "task": {"model": {"name": "mlp", "hidden": [6]}, "split": {"after": ["head"]}},
    "federation": {"per_round": 3, "groups": {"kind": "none", "count": 1}},
    "local": {"epochs": 1, "batch_size": 16},
}


def one(x: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([x])}


def test_merged_by_hand() -> None:
    """a = (1/2, 1/2), theta = (1, 4) from 0, F = (2, 1): (2 * 1 + 1 * 4) / 3 = 2; F = (0, 0) falls back to 2.5."""
    fisher, moved = (2 + 1) / 2, (2 * 1 + 1 * 4) / 2
    torch.testing.assert_close(merged(one(2.5), one(fisher), one(moved), 0.0), one(2.0))
    torch.testing.assert_close(merged(one(2.5), one(10 * fisher), one(10 * moved), 1e-12), one(2.0))
    assert tree.same(merged(one(2.5), one(0.0), one(0.0), 0.0), one(2.5))


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    def run(**settings: Any) -> Any:
        return toy.simulate({"name": "fednano", **settings}, rounds=1, dtype="float64", kind=Watched, **SPLIT)

    return {f: run(fisher=f) for f in ("pass", "none")} | {
        "average": toy.simulate("fedavg", rounds=1, dtype="float64", **SPLIT)
    }


def test_without_fisher_it_is_fedavg(runs: dict[str, Any]) -> None:
    assert tree.same(runs["none"].state, runs["average"].state)


def test_every_entry_is_the_weighted_mean_of_what_clients_sent(runs: dict[str, Any]) -> None:
    """With Fisher information row by row by torch's own autograd."""
    done = runs["pass"]
    (got,) = done.fed.got
    deltas, fishers = got.gather("delta"), got.gather("fisher")
    task, a = done.fed.task, {r.client: r.examples for r in got}
    top = bottom = None
    for c, delta in deltas.items():
        theta = tree.add(done.initial["model"], delta)
        rows = done.fed.federation.train[c]
        batch = task.batch({n: x[rows] for n, x in done.fed.federation.arrays.items()})
        by_hand = tree.zeros(theta)
        for i in range(len(rows)):
            here = {n: p.clone().requires_grad_() for n, p in theta.items()}
            z = torch.func.functional_call(task._module, here, (batch["x"][i : i + 1],))
            grads = torch.autograd.grad(
                torch.nn.functional.cross_entropy(z, batch["y"][i : i + 1]), list(here.values())
            )
            by_hand = {n: s + g * g / len(rows) for (n, s), g in zip(by_hand.items(), grads, strict=True)}
        for n, f in fishers[c].items():
            torch.testing.assert_close(f, by_hand[n], rtol=1e-8, atol=1e-12)
        part = tree.scale(tree.map(torch.mul, by_hand, theta), a[c])
        top = part if top is None else tree.add(top, part)
        bottom = tree.scale(by_hand, a[c]) if bottom is None else tree.add(bottom, by_hand, a[c])
    thetas = [tree.add(done.initial["model"], d) for d in deltas.values()]
    for n, p in done.state["model"].items():
        known = bottom[n] > 1e-9
        torch.testing.assert_close(p[known], (top[n] / bottom[n])[known], rtol=1e-8, atol=1e-10)
        stacked = torch.stack([t[n] for t in thetas])
        assert bool((p >= stacked.amin(0) - 1e-9).all() and (p <= stacked.amax(0) + 1e-9).all())


def test_its_pass_crosses_too_and_the_product_costs_nothing(runs: dict[str, Any]) -> None:
    rows = sum(len(runs["pass"].fed.federation.train[c]) for c in runs["pass"].fed.drawn[0].ids)
    once, twice = (runs[n].rows[0] for n in ("none", "pass"))
    assert (
        once["bytes/cut/up"] == rows * 4 * 8
        and twice["bytes/cut/up"] == 2 * once["bytes/cut/up"] == twice["bytes/cut/down"]
    )
    size = tree.nbytes(runs["pass"].state["model"])
    assert twice["bytes/up"] - twice["bytes/cut/up"] - (once["bytes/up"] - once["bytes/cut/up"]) == 3 * size


def test_padding_has_no_information(runs: dict[str, Any]) -> None:
    task, model = runs["pass"].fed.task, runs["pass"].state["model"]
    rows = runs["pass"].fed.federation.train[0][:4]
    batch = task.batch({n: x[rows] for n, x in runs["pass"].fed.federation.arrays.items()})
    w = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=task.dtype)
    some = {n: x[::2] for n, x in batch.items()}
    for a, b in zip(*(tree.values(squared(task, model, t)) for t in ({**batch, "w": w}, some)), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_trained_behind_the_cut_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"behind which head.bias is trained; method.name: fednano trains the client's part alone"
    ):
        toy.simulate("fednano", **toy.merge(SPLIT, {"task": {"split": {"after": ["body"]}}}))
    with pytest.raises(ConfigError, match=r"task.split.after: nothing found, method.name: fednano needs one"):
        toy.config("fednano")
