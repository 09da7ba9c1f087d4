"""Public sets: training rows that no client has, with labels or without, at the server and in visits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import Method, Part, Wire, partition, visit
from rayfed.data import Dataset
from rayfed.data import Part as Rows
from rayfed.errors import ConfigError
from rayfed.execute.batches import BatchSampler
from rayfed.visits import Phase, Visit, once
from rayfed.wire import SCALAR
from tests import toy
from tests.configs import good, problems

X = np.arange(80, dtype=np.float32).reshape(40, 2)
Y = np.arange(40) % 4
DOMAIN = np.array(["north", "south"] * 20)


def conf(**federation: Any) -> Any:
    return good(federation={"clients": 4, "per_round": None, **federation})


def data(**columns: np.ndarray) -> Dataset:
    part = Rows(X, Y, domain=DOMAIN, columns=columns)
    return Dataset("set", part, part.take(np.arange(4)), 4, ("a", "b", "c", "d"), "tabular")


def test_labels_are_known_where_that_is_asked_for() -> None:
    hidden, known = (
        partition.build(conf(public={"rows": 9, "labels": labels}), data(id=np.arange(40))) for labels in (False, True)
    )
    assert np.array_equal(hidden.public, known.public) and len(known.public) == 9
    assert hidden.arrays["y"][hidden.public].tolist() == [-1] * 9
    own = known.arrays["id"][known.public]
    assert np.array_equal(known.arrays["y"][known.public], Y[own]) and np.array_equal(
        known.arrays["x"][known.public], X[own]
    )
    dealt = np.concatenate([i.rows for i in (known.train, known.val, known.test)])
    assert len(dealt) == 31 and not set(known.arrays["id"][dealt]) & set(own)
    assert known.public_labels and not hidden.public_labels


def test_a_probe_is_a_public_set_without_labels() -> None:
    probe, public = (partition.build(conf(**f), data()) for f in ({"probe": 9}, {"public": {"rows": 9}}))
    assert probe.digest() == public.digest() and np.array_equal(probe.probe, public.public)


def test_rows_of_one_domain() -> None:
    f = partition.build(conf(public={"rows": 20, "labels": True, "domain": "south"}), data(id=np.arange(40)))
    assert set(DOMAIN[f.arrays["id"][f.public]]) == {"south"}
    with pytest.raises(
        ConfigError, match=r"federation.public.domain: 'sout' found \(did you mean 'south'\?\), set has: north, south"
    ):
        partition.build(conf(public={"rows": 2, "domain": "sout"}), data())
    with pytest.raises(ConfigError, match=r"federation.public.rows: 21 found, allowed: at most the 20 of domain south"):
        partition.build(conf(public={"rows": 21, "domain": "south"}), data())


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"federation.public.rows: 40 found, allowed: less than the 40 training rows of set"
    ):
        partition.build(conf(public={"rows": 40}), data())
    assert any(
        "probe: 3 found beside public.rows: 4" in p for p in problems("federation.probe=3", "federation.public.rows=4")
    )
    assert any(
        "federation.public.labels: True found, but nothing reads it" in p
        for p in problems("federation.public.labels=true")
    )


class Counts(Method):
    """Adds up public labels at each client."""

    needs = frozenset({"public labels"})
    wire = Wire(up={"sum": Part(SCALAR), "n": Part(SCALAR)}, server={"model": Part(SCALAR)})

    def init(self, task: Any, key: int) -> Any:
        return {"model": torch.zeros(())}

    @visit
    def count(self, task: Any) -> Visit:
        def step(carry: Any, batch: Any, key: Any) -> Any:
            return {"sum": carry["sum"] + (batch["y"] * batch["w"]).sum(), "n": carry["n"] + batch["w"].sum()}

        def begin(client: Any) -> Any:
            return {"sum": torch.zeros(()), "n": torch.zeros(())}

        return Visit(begin, [Phase(once("public"), step, counts=False)], lambda client, carry: (carry, client.own))

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return state


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_every_client_sees_the_same_rows(executor: str) -> None:
    public = {"federation": {"public": {"rows": 150, "labels": True}, "groups": {"kind": "none"}}}
    fed = toy.make_fed(toy.config("fedavg", executor=executor, **public))
    known = fed.public()
    assert known["x"].shape == (150, 8) and known["w"].tolist() == [1] * 150 and (known["y"] >= 0).all()
    assert torch.equal(fed.probe(), known["x"])
    sampler = BatchSampler(fed.federation, seed=1, batch_size=8, device="cpu", dtype=torch.float32)
    made = Counts(Counts.Settings(), fed.config).count(fed.task)
    cohort = sampler.cohort(made, (0, 5, 13), dispatch=1, round=1, rounds=1, lr=0.1)
    (phase,) = cohort.phases
    assert phase.rows.shape[0] == 3 and phase.active.sum(1).tolist() == [2, 2, 2]  # 150 rows, 128 in a step
    seen = [phase.rows[i][phase.w[i] > 0].tolist() for i in range(3)]
    assert seen[0] == seen[1] == seen[2] == fed.federation.public.tolist()


def test_without_a_public_set_there_is_nothing_to_see() -> None:
    fed = toy.make_fed(toy.config("fedavg"))
    assert len(fed.public()["y"]) == 0
    sampler = BatchSampler(fed.federation, seed=1, batch_size=8, device="cpu", dtype=torch.float32)
    cohort = sampler.cohort(
        Counts(Counts.Settings(), fed.config).count(fed.task), (0, 5), dispatch=1, round=1, rounds=1, lr=0.1
    )
    assert cohort.phases[0].rows.shape[1] == 0
