"""CCVR: what it reduces to, that only the last layer moves, and that sums do not depend on who holds what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import keys, methods, total, tree
from rayfed.config.schema import Config
from rayfed.distill import statistics
from tests import toy
from tests.toy import ToyFed

SHORT = {"name": "ccvr", "steps": 5, "batch": 8}
DOUBLE = {"executor": "vmap", "dtype": "float64"}
needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


@needs_fedavg
@pytest.mark.parametrize("when", ["after", "serve", "loop"])
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_steps_it_is_fedavg_to_the_bit(executor: str, when: str) -> None:
    done = toy.simulate({**SHORT, "steps": 0, "when": when}, executor=executor)
    plain = toy.simulate("fedavg", executor=executor).state["model"]
    assert tree.same(done.state["model"], plain) and tree.same(done.state["average"], plain)


@needs_fedavg
@pytest.mark.parametrize("when", ["after", "serve"])
def test_training_goes_on_as_fedavgs_to_the_bit(when: str) -> None:
    done, plain = toy.simulate({**SHORT, "when": when}, rounds=3), toy.simulate("fedavg", rounds=3).state["model"]
    assert tree.same(done.state["average"], plain)
    names = done.fed.task.classifier_names
    for n, p in done.state["model"].items():
        assert torch.equal(p, plain[n]) == (n not in names), n


def test_only_the_last_round_refits_unless_it_is_asked_for() -> None:
    early = toy.simulate({**SHORT, "when": "after"}, rounds=3, until=2)
    assert tree.same(early.state["model"], early.state["average"]) and "refit/loss" not in early.rows[1]
    each = toy.simulate({**SHORT, "when": "serve"}, rounds=3, until=2)
    assert all("refit/loss" in row for row in each.rows) and not tree.same(each.state["model"], each.state["average"])


def test_in_a_loop_the_next_round_starts_from_the_refitted_model() -> None:
    one, two = (toy.simulate({**SHORT, "when": w}, rounds=1) for w in ("loop", "serve"))
    assert tree.same(one.state["model"], two.state["model"]) and tree.same(one.state["average"], one.state["model"])
    apart = [toy.simulate({**SHORT, "when": w}, rounds=2).state["average"] for w in ("loop", "serve")]
    assert not tree.same(*apart)


@pytest.mark.parametrize("covariance", ["diag", "full", "shared"])
@pytest.mark.parametrize("cohort", [1, 5])
def test_sums_are_those_of_the_pooled_rows(covariance: Any, cohort: int, split: Any) -> None:
    """Whoever holds which row, in whatever order, and however calls are cut; classes and clients with one row as well."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, 6)), np.r_[rng.integers(0, 3, 59), 3]
    settings = {**SHORT, "covariance": covariance}
    found = []
    for sizes in ([60], [1, 30, 29], [20] * 3):
        order = np.random.default_rng(len(sizes)).permutation(60)
        cuts = np.split(order, np.cumsum(sizes)[:-1])
        split([x[c] for c in cuts], [y[c] for c in cuts], classes=4)
        fed = toy.make_fed(toy.config(settings, resources={"cohort": cohort}, **DOUBLE))
        fed.begin(1)
        names = statistics.PARTS
        got = fed.ask(
            fed.method.features, [*range(fed.population)][::-1],
            shared={"model": fed.task.init_params(3)}, fold=tuple(map(total, names)),
        )  # fmt: skip
        found.append(statistics.gaussians([got.folded[n] for n in names], covariance))
    z = fed.task.features(fed.task.init_params(3), torch.as_tensor(x.astype(np.float32)).double())
    for made in found:
        assert made.counts.tolist() == np.bincount(y, minlength=4).tolist()
        for c in range(4):
            torch.testing.assert_close(made.means[c], z[y == c].mean(0), rtol=0, atol=1e-10)
        torch.testing.assert_close(made.factors**2, found[0].factors ** 2, rtol=0, atol=1e-10)


def test_a_round_by_hand() -> None:
    """Average, sums over the round's clients, refit: put together from the parts gives the engine's model."""
    done = toy.simulate({**SHORT, "when": "loop", "rho": 1.0}, rounds=1, **DOUBLE)
    plain = toy.simulate("fedavg", rounds=1, **DOUBLE).state["model"]
    task, federation = done.fed.task, done.fed.federation
    rows = np.concatenate([federation.train[c] for c in done.fed.drawn[0].ids])
    x, y = (torch.as_tensor(federation.arrays[n][rows]) for n in ("x", "y"))
    z = task.features(plain, x.double())
    of = [z[y == c] for c in range(task.classes)]
    assert all(len(rows) > 1 for rows in of)
    want = statistics.Gaussians(
        torch.tensor([float(len(rows)) for rows in of]),
        torch.stack([rows.mean(0) for rows in of]),
        torch.stack([rows.std(0) for rows in of]),
    )
    rng = keys.torch_generator(keys.key(1, 1 << 20, -1, "refit"))
    model, loss = statistics.refit(task, statistics.features(task), plain, want, rng, steps=5, lr=0.1, batch=8, rho=1.0)
    torch.testing.assert_close(tree.flatten(done.state["model"]), tree.flatten(model), rtol=0, atol=1e-10)
    assert done.rows[0]["refit/loss"] == pytest.approx(loss, abs=1e-10)
    assert float(tree.norm(tree.sub(model, plain))) > 1e-3


@pytest.mark.parametrize(("asked", "when", "everyone"), [
    ("auto", "after", True), ("auto", "loop", False), ("all", "loop", True), ("round", "after", False),
])  # fmt: skip
def test_whose_features_count(asked: str, when: str, everyone: bool) -> None:
    done = toy.simulate({**SHORT, "asked": asked, "when": when}, rounds=1)
    trained = len(done.fed.drawn[0].ids)
    assert done.rows[0]["visits"] == trained + (done.fed.population if everyone else trained)


def test_bytes_count_half_of_a_symmetric_matrix() -> None:
    base = {"federation": {"per_round": 1}, "rounds": 1}
    bytes_up = {
        c: toy.simulate({**SHORT, "when": "loop", "covariance": c}, **base).rows[0]["bytes/up"]
        for c in ("diag", "full")
    }
    d, classes = 16, 4
    assert bytes_up["full"] - bytes_up["diag"] == 4 * classes * (d * (d + 1) // 2 - d)


def test_what_reads_the_last_round_is_not_resumed_with_others() -> None:
    made = [methods.of(toy.config({**SHORT, "when": when})) for when in ("after", "serve", "loop")]
    assert [m.reads_rounds() for m in made] == ["method.when", None, None]


class Empty(ToyFed):
    """Nobody takes part in round 2."""

    def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
        found = super().sample(n, where=where)
        return () if self.round == 2 else found


@pytest.mark.parametrize("when", ["after", "serve", "loop"])
def test_a_round_without_clients_takes_nothing_back(when: str) -> None:
    """What was refitted last is served on; after the last round all clients are asked, whoever trained in it."""
    one, two = (toy.simulate({**SHORT, "when": when}, rounds=2, until=n, kind=Empty).state for n in (1, 2))
    assert tree.same(one["average"], two["average"])
    assert tree.same(one["model"], two["model"]) == (when != "after")


def test_unequal_ranks_are_refused() -> None:
    adapter = {"adapter": {"kind": "lora", "rank": {1: 0.5, 4: 0.5}}, "task": {"model": "hf:nowhere"}}
    for method in (SHORT, {"name": "disue", "inputs": "statistics", "signature": "all"}):
        made = methods.of(toy.config(method))
        (problem,) = made.check(Config.model_validate(toy.merge(toy.TOY, {**adapter, "method": method})))
        assert problem.startswith("adapter.rank: ") and "features of clients of different ranks" in problem
