"""FeSEM: seeding, E-step and M-step against NumPy; one centre is FedAvg."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.cluster import canonical
from rayfed.errors import ConfigError
from rayfed.metrics import ari
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


def centres(state: tree.Tree, plain: Any) -> list[np.ndarray]:
    return [plain.vector(state["experts"][k]) for k in sorted(state["experts"], key=int)]


@needs_fedavg
@pytest.mark.parametrize("seeding", ["solutions", "random"])
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_one_centre_is_fedavg_to_the_bit(executor: str, seeding: str) -> None:
    one = toy.simulate({"name": "fesem", "clusters": 1, "seeding": seeding}, executor=executor, rounds=3)
    average = toy.simulate("fedavg", executor=executor, rounds=3)
    assert tree.same(one.state["experts"]["0"], average.state["model"])
    for mine, theirs in zip(
        one.rows, average.rows, strict=True
    ):  # the cluster's model is one model, and its place 8 bytes
        assert mine["bytes/up"] == theirs["bytes/up"]
        assert mine["bytes/down"] == theirs["bytes/down"] + 7 * 8


@pytest.mark.parametrize("weight", ["one", "examples"])
def test_rounds_in_numpy(plain: Any, weight: str) -> None:
    """Partial participation. Round 1: the best of all 2-partitions of the solutions; then E-step, descent, M-step."""
    spec = {"name": "fesem", "clusters": 2, "weight": weight}
    done = toy.simulate(spec, rounds=4, **plain.WORK)
    start = plain.vector(done.initial["experts"]["0"])
    solution = {i: start for i in range(12)}
    size = {i: len(plain.data(done.fed, i)[1]) if weight == "examples" else 1 for i in range(12)}
    models: list[np.ndarray] = []
    at: dict[int, int] = {}

    def mean(ids: list[int]) -> np.ndarray:
        return np.average([solution[i] for i in ids], axis=0, weights=[size[i] for i in ids])

    for draw in done.fed.drawn:
        ids = list(draw.ids)
        if not models:
            for i in ids:
                solution[i] = plain.descend(start, *plain.data(done.fed, i))

            def loss(p: tuple[int, ...], ids: list[int] = ids) -> float:
                groups = [[i for i, k in zip(ids, p) if k == j] for j in set(p)]
                return sum(size[i] * ((solution[i] - mean(g)) ** 2).sum() for g in groups for i in g)

            best = canonical(np.array(min(product(range(2), repeat=len(ids)), key=loss)))
            at.update(zip(ids, best.tolist()))
            models = [mean([i for i in ids if at[i] == k]) for k in range(2)]
            continue
        for i in ids:
            at[i] = int(np.argmin([((solution[i] - m) ** 2).sum() for m in models]))
        for i in ids:
            solution[i] = plain.descend(models[at[i]], *plain.data(done.fed, i))
        models = [mean(m) if (m := [i for i in ids if at[i] == k]) else models[k] for k in range(2)]
    assert len(set(at.values())) == 2
    assert done.state["assignment"].tolist() == [at.get(i, -1) for i in range(12)]
    for mine, want in zip(centres(done.state, plain), models, strict=True):
        np.testing.assert_allclose(mine, want, atol=1e-11)
    for i, state in done.clients().items():
        np.testing.assert_allclose(plain.vector(state["solution"]), solution[int(i)], atol=1e-11)


def test_random_centres_are_all_nearest_to_the_first_at_first(plain: Any) -> None:
    """The published seeding: whoever has no solution is at the common start, which is centre 0."""
    done = toy.simulate({"name": "fesem", "seeding": "random"}, rounds=1, executor="vmap")
    assert set(done.state["assignment"].tolist()) == {-1, 0}
    others = ("1", "2")
    assert all(tree.same(done.state["experts"][k], done.initial["experts"][k]) for k in others)
    assert not tree.same(done.initial["experts"]["1"], done.initial["experts"]["2"])
    assert tree.same(done.initial["experts"]["0"], done.fed.task.initial)


def test_two_parabolas_by_hand(quadratics: Any) -> None:
    """Two centres for two clients: after round 1 each trains alone, x <- x* + (x - x*) (1 - lr f'')^K."""
    done = toy.simulate({"name": "fesem", "clusters": 2}, rounds=3, **quadratics())
    want = [1 - 0.8**60, 0.98**60 - 1]
    assert done.state["assignment"].tolist() == [0, 1]
    for k, x in zip("01", want):
        assert float(done.state["experts"][k]["head.weight"]) == pytest.approx(x, abs=1e-12)


def test_a_client_waits_with_the_one_model_until_there_are_replies_enough() -> None:
    class Few(toy.ToyFed):
        def sample(self, n: int | None = None, **more: Any) -> tuple[int, ...]:
            return super().sample(n, **more)[: self.round]

    done = toy.simulate("fesem", rounds=2, kind=Few, executor="vmap")
    assert set(done.state["experts"]) == {"0"}
    more = toy.simulate("fesem", rounds=3, kind=Few, executor="vmap")
    assert set(more.state["experts"]) == {"0", "1", "2"}


def test_too_few_clients_a_round_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.clusters: 8 found, .* \(7\)"):
        toy.config({"name": "fesem", "clusters": 8})
    toy.config({"name": "fesem", "clusters": 8, "seeding": "random"})


def test_planted_groups_are_found(split: Any) -> None:
    """Opposite labels on like inputs."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(24, 8)) for _ in range(8)]
    group = [0, 1, 1, 0, 1, 0, 0, 1]
    split(xs, [(x[:, 0] > 0).astype(int) ^ g for x, g in zip(xs, group)], group=group)
    everyone = {"clients": 8, "per_round": None, "holdout": {"kind": "none"}}
    for rounds in (1, 4):
        done = toy.simulate({"name": "fesem", "clusters": 2}, rounds=rounds, executor="vmap", federation=everyone)
        assert done.state["assignment"].tolist() == group  # and ids stay
    assert done.scores()[0]["clusters/ari"] == 1.0 == ari(group, done.state["assignment"].tolist())


def test_held_out_clients_are_served_by_training_loss(plain: Any) -> None:
    done = toy.simulate({"name": "fesem", "clusters": 2}, rounds=3, **plain.WORK)
    models = centres(done.state, plain)
    unseen = [r for r in done.scores()[1] if r["unseen"]]
    assert len(unseen) == 2
    for row in unseen:
        train, test = (plain.data(done.fed, row["client"], s) for s in ("train", "test"))
        best = min(models, key=lambda m: plain.loss(m, *train))
        assert row["loss"] == pytest.approx(plain.loss(best, *test), abs=1e-12)


def test_the_e_step_is_not_metered() -> None:
    fed = toy.make_fed(toy.config("fesem", executor="vmap"))
    fed.begin(1)
    state = fed.method.init(fed.task, 5)
    experts = tree.stack([state["experts"]["0"]] * 3)
    got = fed.ask(fed.method.nearest, range(12), shared={"experts": experts}, metered=False)
    assert fed.meter["bytes/up"] == fed.meter["bytes/down"] == fed.meter["visits"] == 0
    assert torch.equal(got.stacked("cluster"), torch.zeros(12, dtype=torch.int64))
