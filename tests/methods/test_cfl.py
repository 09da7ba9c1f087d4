"""CFL: cuts by hand and in NumPy, the tree of clusters, and who is served what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.errors import ConfigError
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
ALWAYS = {"name": "cfl", "min_round": 0, "eps_1": 2.0, "eps_2": 0.0}  # every cluster of three, in every round
GROUP = [0, 1, 1, 0, 1, 0, 0, 1]
EVERYONE = {"clients": 8, "per_round": None, "holdout": {"kind": "none"}}


@pytest.fixture
def opposite(split: Any) -> Any:
    """Opposite labels on like inputs: two groups that no one model serves."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(24, 8)) for _ in GROUP]
    return split(xs, [(x[:, 0] > 0).astype(int) ^ g for x, g in zip(xs, GROUP)], group=GROUP)


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_a_cut_it_is_fedavg_to_the_bit(executor: str) -> None:
    never = {"name": "cfl", "weight": "examples", "min_round": 0, "relative": False, "eps_1": 1e-9}
    one = toy.simulate(never, executor=executor, rounds=3)
    average = toy.simulate("fedavg", executor=executor, rounds=3)
    assert tree.same(one.state["experts"]["0"], average.state["model"])
    assert one.state["parents"].tolist() == [-1] and one.state["ancestors"] == {}


def test_no_cut_before_its_round(opposite: Any) -> None:
    for rounds, want in ((2, {"0"}), (3, {"1", "2"})):
        done = toy.simulate({**ALWAYS, "min_round": 2}, rounds=rounds, executor="vmap", federation=EVERYONE)
        assert set(done.state["experts"]) == want


@pytest.mark.parametrize("weight", ["one", "examples"])
def test_two_rounds_in_numpy(plain: Any, weight: str) -> None:
    """All clients: update norms, cosines, the cut, and each half's mean from the parent's model; then again."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    changes = toy.merge(plain.WORK, {"federation": {"per_round": None}})
    done = toy.simulate({**ALWAYS, "weight": weight}, rounds=2, **changes)
    models, members, fresh = {0: plain.vector(done.initial["experts"]["0"])}, {0: list(range(12))}, 1
    cached, largest = {}, 0.0
    for _ in range(2):
        for k in sorted(models):
            data = [plain.data(done.fed, i) for i in members[k]]
            u = np.array([plain.descend(models[k], *d) - models[k] for d in data])
            n = np.array([len(d[1]) if weight == "examples" else 1.0 for d in data])
            largest = max(largest, *np.linalg.norm(u, axis=1))
            if len(u) <= 2:
                models[k] = models[k] + np.average(u, axis=0, weights=n)
                continue
            unit = u / np.linalg.norm(u, axis=1, keepdims=True)
            halves = fcluster(linkage(squareform(1 - unit @ unit.T, checks=False), "complete"), 2, "maxclust")
            cached[k], start, ids = models[k], models.pop(k), members.pop(k)
            for half in (halves == halves[0], halves != halves[0]):
                members[fresh] = [i for i, h in zip(ids, half) if h]
                models[fresh] = start + np.average(u[half], axis=0, weights=n[half])
                fresh += 1
    assert len(models) >= 3
    assert done.state["experts"].keys() == {str(k) for k in models}
    assert done.fed.method.clusters(done.state) == {i: k for i in range(12) for k in members if i in members[k]}
    for k, want in models.items():
        np.testing.assert_allclose(plain.vector(done.state["experts"][str(k)]), want, atol=1e-12)
    for k, want in cached.items():
        np.testing.assert_allclose(plain.vector(done.state["ancestors"][str(k)]), want, atol=1e-12)
    assert float(done.state["largest"]) == pytest.approx(largest, abs=1e-12)


def test_halves_partition_their_parent() -> None:
    before = toy.simulate(ALWAYS, rounds=1, executor="vmap", federation={"per_round": None})
    after = toy.simulate(ALWAYS, rounds=3, executor="vmap", federation={"per_round": None})
    parents = after.state["parents"].tolist()
    assert len(parents) == 1 + 2 * len(after.state["ancestors"]) and max(np.bincount(np.array(parents[1:]))) == 2
    assert set(range(len(parents))) == {int(k) for k in (*after.state["experts"], *after.state["ancestors"])}
    assert set(after.fed.method.clusters(after.state).values()) == {int(k) for k in after.state["experts"]}
    # whoever was in the half 1 of the first cut is in a cluster below it, to the last
    for client, k in enumerate(after.state["assignment"].tolist()):
        path = [k]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        assert before.state["assignment"].tolist()[client] in path and path[-1] == 0


def test_planted_groups_are_found_and_not_cut_again(opposite: Any) -> None:
    spec = {"name": "cfl", "min_round": 3, "eps_1": 0.4}
    for rounds in (4, 10):
        done = toy.simulate(spec, rounds=rounds, executor="vmap", federation=EVERYONE)
        assert done.state["assignment"].tolist() == [1 + g for g in GROUP]
    assert done.scores()[0]["clusters/ari"] == 1.0
    assert done.scores()[0]["accuracy/personal"] > 0.9


def test_two_parabolas_stay_together(quadratics: Any) -> None:
    """Two clients that pull apart are two: |C| > 2 fails, and x <- mean of 1 + (x - 1) a and -1 + (x + 1) b."""
    done = toy.simulate(ALWAYS, rounds=2, **quadratics())
    x, a, b = 0.0, 0.8**20, 0.98**20
    for _ in range(2):
        x = ((1 + (x - 1) * a) + (-1 + (x + 1) * b)) / 2
    assert float(done.state["experts"]["0"]["head.weight"]) == pytest.approx(x, abs=1e-12)


class First(toy.ToyFed):
    """Round 1 hears of clients 0 to 5 only, later rounds of all."""

    def sample(self, n: int | None = None, **more: Any) -> tuple[int, ...]:
        ids = super().sample(n, **more)
        return ids[:6] if self.round == 1 else ids


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_absent_members_choose_by_loss_when_they_come_back(opposite: Any, executor: str) -> None:
    c = {"executor": executor, "federation": EVERYONE}
    spec = {**ALWAYS, "eps_1": 0.9}
    one = toy.simulate(spec, rounds=1, kind=First, **c)
    assert one.state["assignment"].tolist() == [1, 2, 2, 1, 2, 1, 0, 0]
    assert one.fed.method.clusters(one.state).keys() == set(range(6))  # the others have no cluster yet
    two = toy.simulate({**spec, "min_round": 1, "eps_1": 1e-6}, rounds=2, kind=First, **c)
    assert two.state["assignment"].tolist() == [0] * 8
    fed = toy.make_fed(toy.config({**spec, "eps_1": 1e-6}, **c))
    fed.begin(2)
    state = fed.method.round(one.state, fed, fed.task)
    assert state["assignment"].tolist() == [1 + g for g in GROUP]
    # two clients got both leaves and a mask of them, and sent one int
    params = sum(v.numel() for v in tree.values(fed.task.params_like)) * 4
    assert fed.meter["bytes/down"] == 8 * (params + 8) + 2 * (2 * params + 2)
    assert fed.meter["bytes/up"] == 8 * params + 2 * 8


def test_waiting_for_all_members(opposite: Any) -> None:
    spec = {**ALWAYS, "eps_1": 0.9, "absent": "wait"}
    done = toy.simulate(spec, rounds=1, kind=First, executor="vmap", federation=EVERYONE)
    assert done.state["assignment"].tolist() == [0] * 8
    done = toy.simulate(spec, rounds=2, kind=First, executor="vmap", federation=EVERYONE)
    assert done.state["assignment"].tolist() == [1 + g for g in GROUP]
    with pytest.raises(ConfigError, match=r"method.absent: wait found, but 7 of 12 clients"):
        toy.config({"name": "cfl", "absent": "wait"})


def test_best_on_path_is_chosen_by_validation_data(plain: Any) -> None:
    """Every client: least validation loss from the root to its leaf; held-out clients: of all models."""
    changes = toy.merge(plain.WORK, {"federation": {"per_round": None, "split": {"val": 0.3}}})
    done = toy.simulate({**ALWAYS, "serve": "best_on_path"}, rounds=3, **changes)
    parents, at = done.state["parents"].tolist(), done.state["assignment"].tolist()
    models = {int(k): plain.vector(e) for k, e in (done.state["experts"] | done.state["ancestors"]).items()}
    deeper = 0
    for row in done.scores()[1]:
        path = sorted(models, reverse=True)
        if not row["unseen"]:
            path = [at[row["client"]]]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
        val, test = (plain.data(done.fed, row["client"], s) for s in ("val", "test"))
        best = min(path, key=lambda k: plain.loss(models[k], *val)) if len(val[1]) else path[0]
        deeper += str(best) in done.state["ancestors"]
        assert row["loss"] == pytest.approx(plain.loss(models[best], *test), abs=1e-11)
    assert deeper
    with pytest.raises(ConfigError, match=r"federation.split.val is 0"):
        toy.config({"name": "cfl", "serve": "best_on_path"})


def test_leaves_are_served(plain: Any) -> None:
    """A member its leaf; one whose cluster was cut without it the best below by training loss; an unseen one the best."""
    done = toy.simulate({**ALWAYS, "eps_1": 2.0}, rounds=2, **plain.WORK)
    models = {int(k): plain.vector(e) for k, e in done.state["experts"].items()}
    at = done.state["assignment"].tolist()
    parents = done.state["parents"].tolist()

    def below(k: int, node: int) -> bool:
        return k == node or (parents[k] >= 0 and below(parents[k], node))

    waiting = 0
    for row in done.scores()[1]:
        may = [k for k in models if row["unseen"] or below(k, at[row["client"]])]
        waiting += not row["unseen"] and len(may) > 1
        train, test = (plain.data(done.fed, row["client"], s) for s in ("train", "test"))
        best = min(may, key=lambda k: plain.loss(models[k], *train))
        assert row["loss"] == pytest.approx(plain.loss(models[best], *test), abs=1e-11)
    assert waiting


def test_absolute_thresholds_are_norms(quadratics: Any, split: Any) -> None:
    """Three clients at +1 and one at -3 with scalar curvature 1, one step of rate 0.02 from 0: updates 0.02 and -0.06."""
    c = quadratics()
    split([np.tile([1.0, t], (1, 1)) for t in (1.0, 1.0, 1.0, -3.0)], [np.zeros(1)] * 4)
    c["federation"] = {**c["federation"], "clients": 4}
    spec = {"name": "cfl", "min_round": 0, "relative": False, "eps_1": 0.001, "eps_2": 0.059}
    done = toy.simulate(spec, rounds=1, **c)
    assert done.state["assignment"].tolist() == [1, 1, 1, 2]
    x = [float(done.state["experts"][k]["head.weight"]) for k in "12"]
    assert x == pytest.approx([0.02, -0.06], abs=1e-12)
    whole = toy.simulate({**spec, "eps_2": 0.061}, rounds=1, **c)
    assert torch.equal(whole.state["assignment"], torch.zeros(4, dtype=torch.int64))
