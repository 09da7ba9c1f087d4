"""What is resident of a run: its data shared with runs on the same data, its visits built once."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed.engine import resident
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.resident import Resident, data_key
from tests import toy


def made(like: Resident | None = None, **changes: Any) -> Resident:
    c = toy.config(**changes)
    return Resident(c, toy.federation(c), None, "cpu", like)


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"method": "scaffold"}, True),
        ({"resources": {"cohort": 7}}, True),
        ({"seed": 2}, False),
        ({"local": {"batch_size": 4}}, False),
        ({"dtype": "float64"}, False),
        ({"evaluate": {"split": "val"}}, False),  # other rows are scored
    ],
)
def test_runs_on_the_same_data_share_it(changes: dict[str, Any], shared: bool) -> None:
    first = made()
    second = made(first, **changes)
    assert (second.data_key == first.data_key) == shared
    assert (second.data is first.data and second.task is first.task and second.sampler is first.sampler) == shared
    assert second.method is not first.method and second.config is not first.config


def test_the_data_key_follows_from_the_config_alone() -> None:
    assert data_key(toy.config()) == data_key(toy.config("ifca", rounds=9)) != data_key(toy.config(seed=3))


def test_a_visit_is_built_once_and_old_ones_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "KEPT", 3)
    res = made()
    train = res.visit("train", False)
    assert res.visit("train", False) is train
    scoring = res.visit("train", True)
    assert scoring is not train and len(scoring.phases) == len(train.phases) + 1
    assert res.visit(Evaluation.PERSONAL, False) is res.visit(Evaluation.PERSONAL, False)
    res.visit(Evaluation.ROWS, False)  # the fourth: the first is let go
    assert len(res._visits) == 3 and res.visit("train", False) is not train


def test_an_evaluation_of_the_servers_own_models_is_in_no_clients_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[str] = []
    monkeypatch.setattr(resident.ranks, "at_rank", lambda visit, task, kept: wrapped.append("rank") or visit)
    res = made()
    res.ranked = True
    for e in set(Evaluation) - {Evaluation.ROBUST}:  # which needs `evaluate.adversary`
        wrapped.clear()
        res.visit(e, False)
        assert bool(wrapped) != (e in (Evaluation.ROWS, Evaluation.CLUSTER)), e
