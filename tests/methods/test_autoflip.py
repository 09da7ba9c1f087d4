"""AutoFLIP: what it reduces to, its mask by NumPy, and that nothing pruned ever moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods.autoflip import AutoFLIP, kept
from rayfed.methods.fedavg import FedAvg
from tests import toy
from tests.configs import the_problem


class SkipsOne(FedAvg):
    """FedAvg that begins in round 2."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return state if fed.round == 1 else super().round(state, fed, task)


def settings(**more: Any) -> dict[str, Any]:
    return {"name": "autoflip", "explore_epochs": 2, **more}


def test_with_nothing_pruned_it_is_fedavg_to_the_bit() -> None:
    one = toy.simulate(settings(prune=0.0), rounds=3)
    other = toy.simulate(f"{__file__}:SkipsOne", rounds=3)
    assert tree.same(one.state["model"], other.state["model"])
    assert (
        one.rows[-1]["bytes/up"] == other.rows[-1]["bytes/up"]
        and one.rows[-1]["bytes/down"] == other.rows[-1]["bytes/down"]
    )


@pytest.mark.parametrize(
    "optimizer", [{"momentum": 0.9, "weight_decay": 0.1}, {"name": "adamw", "lr": 0.01}], ids=["sgd", "adamw"]
)
def test_what_is_pruned_stays_zero(optimizer: dict[str, Any]) -> None:
    """At every client after every step, which its update shows, and at the server."""
    done = toy.simulate(settings(prune=0.7), rounds=3, local={"optimizer": optimizer})
    mask = done.state["mask"]
    assert all(not m.all() for m in mask.values() if m.dim() > 1) and all(m.all() for m in mask.values() if m.dim() < 2)
    assert tree.same(done.state["model"], kept(done.state["model"], mask))
    got = done.fed.ask(done.fed.method.train, range(5), shared={"pruned": done.state["model"], "mask": mask})
    for update in got.gather("delta").values():
        assert tree.same(update, kept(update, mask)) and float(tree.norm(update)) > 0


def test_the_mask_in_numpy() -> None:
    """One explorer of two epochs: FedAvg's update, squared, scaled tensor by tensor, against the quantile of all weights."""
    done = toy.simulate(settings(prune=0.4, explorers=1e-9), rounds=2, until=1)
    update = toy.simulate("fedavg", rounds=1, federation={"per_round": 1})
    assert update.fed.drawn[0].ids == done.fed.drawn[0].ids
    g = {}
    for n, x in update.state["model"].items():
        d = ((x - update.initial["model"][n]).numpy() ** 2).astype(np.float32)
        if d.ndim > 1:
            g[n] = (d - d.min()) / (d.max() - d.min())
    threshold = np.quantile(np.concatenate([v.ravel() for v in g.values()]).astype(np.float64), 0.4)
    for n, values in g.items():
        assert (done.state["mask"][n].numpy() != (values > threshold)).sum() <= 1, n  # one may lie at the threshold
    weights = sum(v.size for v in g.values())
    assert sum(int(done.state["mask"][n].sum()) for n in g) == pytest.approx(0.6 * weights, abs=2)
    assert tree.same(done.state["model"], kept(done.initial["model"], done.state["mask"]))


def test_what_travels_is_counted_packed() -> None:
    """192 weights and 20 biases: at p = 0.5 116 values each way, and 212 bits of the mask."""
    done = toy.simulate(settings(prune=0.5), rounds=2)
    n = len(done.fed.drawn[-1].ids)
    assert sum(x.numel() for x in done.state["model"].values()) == 212
    assert done.rows[1]["bytes/up"] - n * 4 * 116 in (0, 8 * n, 4 * n)  # and n_i
    assert done.rows[1]["bytes/down"] == n * (4 * 116 + 27)


def test_the_baselines_keep_as_many() -> None:
    ready = {m: toy.simulate(settings(prune=0.5, mask=m, explore_epochs=5), rounds=1) for m in ("random", "magnitude")}
    for how, done in ready.items():
        mask = done.initial["mask"]
        assert sum(int(m.sum()) for m in mask.values() if m.dim() > 1) == 96, how
        assert not tree.same(done.state["model"], done.initial["model"])  # they train from round 1
    first = ready["magnitude"].initial
    weights = {n: m for n, m in first["mask"].items() if m.dim() > 1}
    smallest = min(float(first["model"][n][m].abs().min()) for n, m in weights.items())
    whole = toy.simulate("fedavg", rounds=1).initial["model"]
    assert smallest > max(float(whole[n][~m].abs().max()) for n, m in weights.items())


def test_the_order_of_explorers_is_nothing() -> None:
    masks = [toy.simulate(settings(), rounds=2, until=1, order=o).state["mask"] for o in (None, 3)]
    assert tree.same(*masks)


def test_settings_that_a_baseline_does_not_read_are_refused() -> None:
    said = the_problem(method={"name": "autoflip", "mask": "random", "explore_epochs": 2})
    assert said == "method.explore_epochs: 2 found, but nothing reads it with method.mask: random"


def test_quantiles_are_numpys() -> None:
    from rayfed.methods._bases.exploring import quantile

    x = torch.randn(1001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for q in (0.0, 0.1, 0.333, 0.5, 0.99):
        assert float(quantile(x, q)) == pytest.approx(float(np.quantile(x.numpy(), q)), abs=1e-12)
    method = AutoFLIP(AutoFLIP.Settings(prune=0.5), toy.config("autoflip"))
    mask = method.mask({"w": torch.tensor([[0.0, 1.0], [2.0, 3.0]]), "b": torch.zeros(2)})
    assert mask["w"].tolist() == [[False, False], [True, True]] and mask["b"].all()
