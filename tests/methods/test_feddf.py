"""FedDF: the public set, what it reduces to, one step in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, partition, tree
from rayfed.data import Dataset, Part
from rayfed.distill import ensemble
from rayfed.errors import ConfigError
from rayfed.methods.feddf import distill, mean_logits
from tests import toy

PROBE = {"federation": {"probe": 40}}
DOUBLE = {"executor": "vmap", "dtype": "float64"}
needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


# -- the public set ----------------------------------------------------------------------------------------------------


def dataset(n: int = 60, test: int = 12) -> Dataset:
    """Images whose first pixel is their number."""
    x = np.zeros((n + test, 1, 2, 2), np.float32)
    x[:, 0, 0, 0] = np.arange(n + test)
    x[:, 0, 1, 1] = -1.0
    y = np.arange(n + test) % 3
    return Dataset("numbered", Part(x[:n], y[:n]), Part(x[n:], y[n:]), 3, ("a", "b", "c"), "image")


def built(probe: int, seed: int = 1, kind: str = "dirichlet", **federation: Any) -> partition.Federation:
    kinds = {
        "dirichlet": {"kind": kind, "alpha": 0.5},
        "iid": {"kind": kind},
        "shards": {"kind": kind, "per_client": 2},
    }
    f = {"clients": 5, "per_round": None, "partition": kinds[kind], "groups": {"kind": "none"}, "probe": probe}
    c = toy.config("fedavg", seed=seed, federation={**f, "holdout": {"kind": "none"}, **federation})
    return partition.build(c, dataset())


def numbers(f: partition.Federation, rows: np.ndarray) -> list[int]:
    """Which images these rows are, whatever way they were turned."""
    return sorted(int(v) for v in f.arrays["x"][rows].max((1, 2, 3)))


@pytest.mark.parametrize("kind", ["dirichlet", "iid", "shards"])
def test_probe_rows_are_no_clients_and_the_rest_is_dealt(kind: str) -> None:
    f = built(15, kind=kind)
    probe = numbers(f, f.probe)
    dealt = numbers(f, np.concatenate([f.train.rows, f.val.rows, f.test.rows]))
    assert len(probe) == len(set(probe)) == 15 and sorted(probe + dealt) == list(range(60))
    assert numbers(f, f.pooled_test) == list(range(60, 72))
    assert f.arrays["y"][f.probe].tolist() == [-1] * 15 and len(f.arrays["y"]) == len(f.arrays["x"]) == 72
    assert f.class_counts.sum() == len(f.train.rows)
    again, other = built(15, kind=kind), built(15, seed=2, kind=kind)
    assert numbers(again, again.probe) == probe != numbers(other, other.probe)
    assert np.array_equal(again.train.rows, f.train.rows)
    back = partition.Federation.from_numpy(f.numpy())
    assert np.array_equal(back.probe, f.probe)


def test_no_probe_is_the_split_as_ever() -> None:
    """Every row is dealt, and none is appended."""
    f = built(0)
    assert len(f.probe) == 0 and len(f.arrays["x"]) == 72
    assert numbers(f, np.concatenate([f.train.rows, f.val.rows, f.test.rows])) == list(range(60))


def test_the_probe_is_turned_as_the_clients_are() -> None:
    """Rotation groups: the public set has every group's turns, in the clients' proportion."""
    f = built(16, groups={"kind": "rotation", "count": 4}, clients=8)
    corner = [(f.arrays["x"][r, 0] == -1).nonzero() for r in f.probe]
    where = [(int(a[0]), int(b[0])) for a, b in corner]
    assert set(where) == {(1, 1), (0, 1), (0, 0), (1, 0)}


def test_too_large_a_probe_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"federation.probe: 60 found, allowed: less than the 60 training rows"):
        built(60)
    with pytest.raises(ConfigError, match=r"federation.probe: -1 found"):
        toy.config("fedavg", federation={"probe": -1})


def test_it_needs_a_public_set() -> None:
    with pytest.raises(ConfigError, match=r"federation.probe: 0 found, feddf"):
        toy.config("feddf")


# -- the method --------------------------------------------------------------------------------------------------------


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_steps_it_is_fedavg_to_the_bit(executor: str) -> None:
    done = toy.simulate({"name": "feddf", "steps": 0}, executor=executor, **PROBE)
    assert tree.same(done.state, toy.simulate("fedavg", executor=executor, **PROBE).state)


@needs_fedavg
def test_a_single_client_teaches_the_average_nothing() -> None:
    """Teacher and student are one model: no loss, no gradient. (One step: Adam makes steps out of rounding.)"""
    one = {"federation": {"probe": 40, "per_round": 1}, "rounds": 1, **DOUBLE}
    done, plain = (toy.simulate(m, **one) for m in ({"name": "feddf", "steps": 1}, "fedavg"))
    torch.testing.assert_close(tree.flatten(done.state["model"]), tree.flatten(plain.state["model"]), rtol=0, atol=1e-9)
    assert done.rows[-1]["distill/before"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_one_round_in_numpy(plain: Any, tau: float) -> None:
    """Softmax regression: the mean of the clients' logits, and Adam's first step from the weighted average."""
    s = {"name": "feddf", "steps": 1, "batch": 64, "lr": 0.01, "tau": tau}
    done = toy.simulate(s, rounds=1, federation={"probe": 40}, **plain.WORK)
    start, ids = plain.vector(done.initial["model"]), done.fed.drawn[0].ids
    data = [plain.data(done.fed, c) for c in ids]
    models = np.stack([plain.descend(start, x, y) for x, y in data])
    average = np.average(models, axis=0, weights=[len(y) for _, y in data])
    f = done.fed.federation
    x = f.arrays["x"][f.probe].astype(np.float64)

    def logits(p: np.ndarray) -> np.ndarray:
        return x @ p[:-4].reshape(4, -1).T + p[-4:]

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    teacher, student = softmax(np.mean([logits(p) for p in models], 0) / tau), softmax(logits(average) / tau)
    off = tau * (student - teacher) / len(x)
    g = np.concatenate([(off.T @ x).ravel(), off.sum(0)])
    want = average - 0.01 * g / (np.abs(g) + 1e-8)
    np.testing.assert_allclose(plain.vector(done.state["model"]), want, atol=1e-9)
    kl = tau**2 * (teacher * np.log(teacher / student)).sum(1).mean()
    assert done.rows[0]["distill/before"] == pytest.approx(kl, abs=1e-12)


def test_one_teacher_pulls_the_student_towards_it() -> None:
    fed = toy.make_fed(toy.config({"name": "feddf", "steps": 150, "lr": 0.02, "batch": 16}, **PROBE, **DOUBLE))
    task, s = fed.task, fed.method.settings
    student, teacher = task.fresh_params(1), tree.scale(task.fresh_params(2), 2.0)
    x = fed.probe()
    assert x.shape == (40, 8) and x.dtype == torch.float64
    target = mean_logits(task, [teacher], x, 16)
    torch.testing.assert_close(target, task.apply(teacher, x), rtol=0, atol=1e-12)
    taught, before, after = distill(task, student, x, target, s, 3)
    assert before == pytest.approx(float(ensemble.kl(target, task.apply(student, x), 1.0).mean()), abs=1e-12)
    assert after < before / 10
    same = distill(task, student, x, target, s, 3)[0]
    assert tree.same(taught, same) and not tree.same(taught, distill(task, student, x, target, s, 4)[0])


def test_the_rate_falls_along_a_cosine() -> None:
    """Two steps of a constant gradient: Adam moves by lr, then by lr (1 + cos(pi / 2)) / 2 = lr / 2."""
    fed = toy.make_fed(toy.config({"name": "feddf", "steps": 2, "lr": 1e-6, "batch": 40}, **PROBE, **DOUBLE))
    student, x = fed.task.fresh_params(1), fed.probe()
    target = mean_logits(fed.task, [tree.scale(fed.task.fresh_params(2), 2.0)], x, 40)
    moved = tree.sub(distill(fed.task, student, x, target, fed.method.settings, 3)[0], student)
    assert float(moved["head.bias"].abs().min()) == pytest.approx(1.5e-6, rel=1e-2)


def test_order_of_clients_does_not_matter() -> None:
    one, two = (toy.simulate({"name": "feddf", "steps": 5}, order=o, **PROBE, **DOUBLE) for o in (None, 4))
    assert tree.same(one.state, two.state)
