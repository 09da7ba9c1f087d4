"""Candidates, cross-fitted experts and the judgement of them, on clients whose model is one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import cluster
from rayfed.cluster import Evidence, auto
from tests.unit.cluster.evidence import untouched

Log = dict[str, float]


class Numbers:
    """Clients whose update is a number u and whose loss under a model m, from 0, is (m - target)^2 + 1."""

    def __init__(self, updates: Any, targets: Any = None, examples: Any = None, silent: tuple[int, ...] = ()):
        self.u = np.asarray(updates, float)
        self.targets = self.u if targets is None else np.asarray(targets, float)
        self.examples = [1.0] * len(self.u) if examples is None else list(examples)
        self.silent, self.trials, self.log = silent, [], Log()

    def trial(self, weights: np.ndarray, asked: np.ndarray) -> np.ndarray:
        self.trials.append((weights, asked))
        models = weights @ self.u
        told = (models[asked] - self.targets[:, None]) ** 2 + 1
        told[list(self.silent)] = np.nan
        return told

    def evidence(self, signatures: Any = None, **more: Any) -> Evidence:
        n = len(self.u)
        s = np.eye(n) if signatures is None else np.asarray(signatures, float)
        return Evidence(
            list(range(n)), torch.as_tensor(s), torch.ones(n, 2), untouched, more.pop("losses", untouched),
            examples=self.examples, trial=self.trial, log=self.log.__setitem__, key=3, **more,
        )  # fmt: skip


def found(e: Evidence, **settings: Any) -> list[int]:
    return list(cluster.make({"kind": "auto", "evidence": ["signatures"], **settings}).labels(e, 99))


PAIRS = [[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]]  # directions of two groups


def test_members_of_other_folds_by_hand() -> None:
    """In the order 2, 0, 1 the first cluster's members are dealt 0, 1, 0; the lone one has nobody."""
    labels, order = np.array([0, 0, 0, 1]), np.array([2, 0, 3, 1])
    assert auto.others(labels, order, 2) == [(1, 2), (0,), (0,), ()]
    assert auto.others(labels, order, 3) == auto.others(labels, order, 9) == [(1, 2), (0, 2), (0, 1), ()]


def test_cross_fitted_losses_by_hand() -> None:
    """Updates 1, 1, -1, -1. In one cluster each client meets the mean of the three others, -1/3 or 1/3: (4/3)^2 + 1. In pairs it meets
    its like: 1. Alone it meets the start, 0: 2."""
    clients = Numbers([1, 1, -1, -1])
    lost = auto.cross_fitted([(0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 2, 3)], clients.evidence(), 4)
    assert lost.tolist() == [pytest.approx([25 / 9, 1, 2])] * 4
    ((weights, asked),) = clients.trials  # one ask for all
    assert asked.shape == (4, 3) and sorted(weights.sum(1).round(9).tolist()) == [0] + [1] * 8


def test_experts_weigh_members_by_examples() -> None:
    """Client 2 meets (3 * 1 + 1 * 5) / 4 = 2, client 0 (5 + 0) / 10, client 1 (3 + 0) / 12."""
    clients = Numbers([1, 5, 0], targets=[0.5, 0.25, 4], examples=[3, 1, 9])
    assert auto.cross_fitted([(0, 0, 0)], clients.evidence(), 3)[:, 0].tolist() == pytest.approx([1, 1, 5])


def test_two_groups_are_found_and_it_says_by_what() -> None:
    """The members of pairs save 16/9 of 25/9, all of them alike."""
    clients = Numbers([1, 1, -1, -1])
    assert found(clients.evidence(PAIRS)) == [0, 0, 1, 1]
    log = clients.log
    assert log["by_signatures"] == 1 and log["by_kept"] == log["by_counts"] == 0
    assert log["gain"] == pytest.approx(1 - 9 / 25) and log["structure"] > 0.9 and log["sure"] > 100


def test_clients_that_are_no_better_off_stay_together() -> None:
    """Signatures show two groups, but all have one target: the mean of more of them is nearer."""
    clients = Numbers([1.3, 0.7, 1.2, 0.8], targets=[1, 1, 1, 1])
    assert found(clients.evidence(PAIRS)) == [0] * 4
    assert clients.log["structure"] > 0.9 and clients.log["gain"] < 0
    assert {clients.log[f"by_{kind}"] for kind in auto.KINDS} == {0}


def test_without_structure_nothing_is_tried() -> None:
    """All are equally unlike, or spread evenly over a quarter of a circle."""
    angles = np.linspace(0, np.pi / 2, 12)
    for signatures, least in ((np.eye(12), 0.1), (np.stack([np.cos(angles), np.sin(angles)], 1), 0.9)):
        clients = Numbers(np.arange(12))
        assert found(clients.evidence(signatures), least=least) == [0] * 12
        assert clients.log["structure"] < least and not clients.trials


def test_splitting_costs_standard_errors() -> None:
    """Savings 16/9 and 16/9, 7/9 and 7/9 more or less: their mean is a known number of standard errors."""
    clients = Numbers([1, 1, -1, -1], targets=[1, 1, -1, -0.2])
    e = clients.evidence(PAIRS)
    lost = auto.cross_fitted([(0,) * 4, (0, 0, 1, 1)], e, 4)
    saved = lost[:, 0] - lost[:, 1]
    errors = saved.mean() / (saved.std(ddof=1) / 2)
    assert found(e, sure=errors - 0.01) == [0, 0, 1, 1]
    assert clients.log["sure"] == pytest.approx(errors)
    assert found(e, sure=errors + 0.01) == [0, 0, 0, 0]


def test_clusters_can_be_switched_off_and_then_nothing_is_asked() -> None:
    clients = Numbers([1, 1, -1, -1])
    assert found(clients.evidence(PAIRS), most=1) == [0] * 4 and not clients.trials and not clients.log
    for few in range(3):
        assert found(Numbers([1] * few).evidence(np.eye(few))) == [0] * few


def test_what_most_evidence_shows_is_taken() -> None:
    """Three kinds speak of 0, 1 | 2, 3, one of another grouping; spans are not asked for unless they are named."""
    other, u = np.array([[1, 0], [-1, 0], [1, 0.1], [-1, 0.1]]), torch.tensor(PAIRS, dtype=torch.float64)
    clients = Numbers([1, 1, -1, -1])
    e = clients.evidence(other, gram=lambda: u @ u.T)
    object.__setattr__(e, "counts", torch.tensor([[9, 1], [8, 1], [1, 9], [1, 8]]))
    assert found(e, evidence=["signatures", "updates", "counts"]) == [0, 0, 1, 1]
    assert clients.log["by_updates"] == clients.log["by_counts"] == 1 and clients.log["by_signatures"] == 0


def test_structure_by_hand() -> None:
    """0, 1 and 10, 11 on a line: a silhouette is 1 - 1 / 10.5 or 1 - 1 / 9.5; in distances that are all alike it is 0."""
    x = np.array([0.0, 1, 10, 11])
    line, flat = abs(x[:, None] - x), 1 - np.eye(4)
    labels = np.array([0, 0, 1, 1])
    mean = 1 - (1 / 10.5 + 1 / 9.5) / 2
    assert auto.structure(labels, [line]) == pytest.approx(mean)
    assert auto.structure(labels, [line, flat]) == pytest.approx(mean / 2**0.5)
    assert auto.structure(np.array([0, 1, 0, 1]), [line]) == 0 == auto.structure(np.arange(4), [line])
    assert auto.less_nearest(line + 5 * flat)[0].tolist() == pytest.approx(
        [0, 0, 9, 10]
    )  # 5 % of six pairs: the nearest


@pytest.mark.parametrize(("keep", "stays"), [(0.0, False), (0.9, True)])
def test_the_partition_that_is_there_stays_unless_another_shows_more(keep: float, stays: bool) -> None:
    """There is 0, 1 | 2 | 3, which shows less than the pairs."""
    clients = Numbers([1, 1, -1, -1], targets=[1, 1, -0.1, -0.1])
    e = clients.evidence(PAIRS, before=[4, 4, 7, 9], known=[4, 7, 9])
    assert (found(e, keep=keep, least=0.1, sure=0.0) == [0, 0, 1, 2]) == stays
    assert clients.log["by_kept"] == stays


def test_what_is_there_need_not_prove_itself_anew() -> None:
    """The pairs save less than two standard errors, and something: they are not newly made, but stay."""
    clients = Numbers([1, 1, -1, -1], targets=[1, 1, -1, 1.54])  # saved: 16/9 thrice, and -5
    e = clients.evidence(PAIRS)
    assert found(e) == [0] * 4 and 0 < clients.log["sure"] < 2
    e = clients.evidence(PAIRS, before=[4, 4, 7, 7], known=[4, 7])
    assert found(e) == [0, 0, 1, 1]


def test_experts_that_live_for_the_run_stay_while_their_clusters_show() -> None:
    """The pairs' experts of this round lose more than one of all: rebuilt ones go, living ones stay until nothing shows them."""
    clients = Numbers([1, 1, -1, -1], targets=[0.1, 0.1, 0.1, 0.1])
    there = {"before": [4, 4, 7, 7], "known": [4, 7]}
    assert found(clients.evidence(PAIRS, **there)) == [0] * 4 and clients.log["sure"] < 0
    assert found(clients.evidence(PAIRS, **there, living=True)) == [0, 0, 1, 1]
    loose = [*PAIRS[:3], [-1, 0.5]]
    assert found(clients.evidence(loose, **there, living=True), least=1.0, keep=0.0) == [0] * 4
    assert found(clients.evidence(PAIRS, living=True)) == [0] * 4, "new ones prove themselves all the same"


def test_losses_of_known_experts_propose_and_place_newcomers() -> None:
    """Two experts; client 3 is new and chooses the second: the partition there is, is that of the losses too."""
    told = {0: [0.1, 0.9], 1: [0.2, 0.3], 2: [0.9, 0.1], 3: [0.8, 0.3]}
    clients = Numbers([1, 1, -1, -1])

    def losses() -> dict[int, torch.Tensor]:
        return {c: torch.tensor(x) for c, x in told.items()}

    method = auto.Auto(auto.Settings())
    e = clients.evidence(losses=losses, before=[5, 5, 8, -1], known=[5, 8])
    assert method.proposed(e, {}) == {(0, 0, 1, 1): {"losses", "kept"}}
    del told[1]
    assert method.proposed(e, {}) == {(0, 0, 1, 1): {"kept"}}
    told.clear()
    assert method.proposed(e, {}) == {}


def test_who_does_not_reply_does_not_judge() -> None:
    """Client 3 alone speaks against the pairs."""
    against = Numbers([1, 1, -1, -1], targets=[1, 1, -1, 60])
    assert found(against.evidence(PAIRS)) == [0, 0, 0, 0]
    silent = Numbers([1, 1, -1, -1], targets=[1, 1, -1, 60], silent=(3,))
    assert found(silent.evidence(PAIRS)) == [0, 0, 1, 1]
    assert found(Numbers([1, 1, -1, -1], silent=(0, 1, 2, 3)).evidence(PAIRS)) == [0, 0, 0, 0]


def test_distances_by_hand() -> None:
    """Shares (1/4, 3/4) and (1, 0): 1 - sqrt(1/4) = 0.5; bases that did not all come propose nothing."""
    clients = Numbers([1, 1])
    e = clients.evidence()
    counted = Evidence(e.ids, e.signatures, torch.tensor([[1, 3], [5, 0]]), untouched, untouched)
    (d,) = auto.distances("counts", counted, 1)
    assert d.ravel().tolist() == pytest.approx([0, 0.5, 0.5, 0])
    spans: Callable[..., Evidence] = lambda b: clients.evidence(bases=lambda: b)  # noqa: E731
    one, two = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    assert [d[0, 1] for d in auto.distances("inputs", spans({0: one, 1: two}), 1)] == pytest.approx([90, 90])
    assert auto.distances("inputs", spans({0: one}), 1) == []


def test_order_of_clients_changes_nothing_but_folds() -> None:
    order = np.array([2, 0, 3, 1])
    e = Numbers(np.array([1, 1, -1, -1.0])[order]).evidence(np.array(PAIRS)[order])
    assert found(e) == [0, 1, 0, 1]
