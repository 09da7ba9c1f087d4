"""How clients become calls."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rayfed.config.schema import Named
from rayfed.engine.cohorts import (
    calls_per_round,
    choose_calls,
    client_steps,
    cohort_size,
    cut,
    cut_in_order,
    estimate_step,
    fits_one_call,
    may_begin_alone,
    useful_actors,
)
from tests import toy
from tests.conftest import ROOT


def test_cohorts_hold_clients_of_similar_size_in_any_order_of_asking() -> None:
    fed = toy.make_fed(toy.config(resources={"cohort": 4}))
    cohorts = [c for c, _ in fed.dispatch._cut("train", range(12))]
    again = [c for c, _ in fed.dispatch._cut("train", list(reversed(range(12))))]
    assert cohorts == again and [len(c) for c in cohorts] == [
        4,
        4,
        4,
    ]
    sizes = fed.federation.train.sizes()
    in_order = [(int(sizes[c]), c) for cohort in cohorts for c in cohort]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize(
    ("clients", "per_round", "hidden", "want"),
    [
        (40, 2, 16, 1), (40, 7, 16, 4), (40, 40, 16, 20), (40, 1, 16, 1),
        (200, 100, 16, 50), (600, 256, 16, 128), (600, 257, 16, 65),  # a small model's: at most 128 clients
        (200, 64, 40_000, 32), (200, 100, 40_000, 25), (200, 65, 40_000, 17),  # 2 MB: at most 32
    ],
)  # fmt: skip
def test_the_size_of_cohorts_follows_from_the_config(clients: int, per_round: int, hidden: int, want: int) -> None:
    """An even number of calls, at least two."""
    c = toy.config(
        task={"model": {"name": "mlp", "hidden": [hidden]}},
        resources={"cohort": "auto"},
        federation={
            "clients": clients,
            "per_round": per_round,
            "holdout": {"kind": "none"},
            "groups": {"kind": "none", "count": 1},
        },
    )
    fed = toy.make_fed(toy.config(task={"model": {"name": "mlp", "hidden": [hidden]}}))
    assert cohort_size(c, fed.task) == want
    assert cohort_size(toy.config(resources={"cohort": 5}), fed.task) == 5


def test_work_counts_local_steps() -> None:
    def short(local: dict[str, Any], step: float) -> bool:
        c = toy.config(local=local)
        return fits_one_call(c, toy.federation(c), step)

    whole = {"epochs": None, "steps": 10, "batch_size": 8}
    assert short(whole, 5.7e-5) and not short(whole, 5.8e-5)  # 7 clients, 10 steps: 4 ms
    c = toy.config()
    mean = toy.federation(c).class_counts[:12].sum(1).mean()
    most = 4e-3 / (7 * 2 * math.ceil(mean / 8))  # 2 epochs of batches of 8
    assert short({}, 0.99 * most) and not short({}, 1.01 * most)
    many = toy.config(federation={"clients": 200, "per_round": 150})
    assert not fits_one_call(many, toy.federation(c), 1e-9)  # more than one call takes


def test_the_estimate_of_a_step_follows_from_shapes_and_batch_alone() -> None:
    """No clock: the same on every machine."""

    def estimate(executor: str = "vmap", **changes: Any) -> float:
        c = toy.config(executor=executor, **changes)
        return estimate_step(c, toy.federation(c), toy.make_fed(c).task)

    weights = 8 * 16 + 16 + 16 * 4 + 4
    assert estimate() == pytest.approx(2e-5 + 6 * weights * 8 / 2e10) == estimate()
    assert estimate("loop") - estimate() == pytest.approx(8e-5)
    assert estimate(local={"batch_size": 16}) - estimate() == pytest.approx(6 * weights * 8 / 2e10)
    images = {
        "data": {"name": "synthetic:images", "examples": 240, "classes": 4, "size": 8, "test": 40},
        "model": "cnn",
    }
    c = toy.config(task=images, federation={"groups": "none"})
    task = toy.make_fed(c).task
    inside = sum(p.numel() for p in task.params_like.values() if p.ndim > 2)
    rest = sum(p.numel() for p in task.params_like.values() if p.ndim <= 2)
    assert estimate_step(c, toy.federation(c), task) == pytest.approx(1e-4 + 6 * 8 * (64 * inside + rest) / 2e10)
    c = c.model_copy(update={"task": c.task.model_copy(update={"model": Named(name="hf:any")})})
    assert math.isinf(estimate_step(c, toy.federation(toy.config()), task)) and not may_begin_alone(c)


def test_a_clients_steps_are_those_of_the_mean() -> None:
    c = toy.config(local={"epochs": None, "steps": 10})
    assert client_steps(c, toy.federation(c)) == 10
    c = toy.config()
    mean = toy.federation(c).class_counts[:12].sum(1).mean()
    assert client_steps(c, toy.federation(c)) == 2 * math.ceil(mean / 8)


@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        ({}, True),
        ({"resources": {"visits": "server"}}, True),
        ({"resources": {"visits": "actors"}}, False),
        ({"resources": {"actors": 2}}, False),
        ({"failures": {"client_timeout_s": 5}}, False),
        ({"method": f"{ROOT / 'tests' / 'unit' / 'engine' / 'odd_method.py'}:Odd"}, False),
        ({"task": {"model": f"{ROOT / 'tests' / 'own_nets.py'}:batchnorm"}}, False),
    ],
)
def test_a_run_begins_without_actors_unless_it_asks_for_them(changes: dict[str, Any], alone: bool) -> None:
    assert may_begin_alone(toy.config(**changes)) == alone


@pytest.mark.parametrize(("clients", "calls"), [(1, 2), (32, 2), (64, 2), (65, 4), (128, 4), (129, 6)])
def test_a_round_is_an_even_number_of_calls(clients: int, calls: int) -> None:
    assert calls_per_round(clients) == calls


@pytest.mark.parametrize(("cohort", "useful"), [("auto", 2), (5, 2), (3, 3), (1, 7), (7, 1)])
def test_more_actors_than_calls_are_of_no_use(cohort: Any, useful: int) -> None:
    """Seven clients a round."""
    assert useful_actors(toy.config(resources={"cohort": cohort})) == useful


@pytest.mark.parametrize("asked", [2, 33, 64, 65, 128, 200])
def test_useful_actors_are_the_calls_of_a_model_of_some_megabytes(asked: int) -> None:
    """One formula: what placement counts without the model is what a round of a middling model is cut into."""
    changes: dict[str, Any] = {"task": {"model": {"name": "mlp", "hidden": [40_000]}}, "resources": {"cohort": "auto"}}
    split = {"clients": 200, "per_round": asked, "holdout": {"kind": "none"}, "groups": {"kind": "none", "count": 1}}
    c = toy.config(federation=split, **changes)
    size = cohort_size(c, toy.make_fed(toy.config(task=changes["task"])).task)
    assert len(cut_in_order(range(asked), size)) == useful_actors(c)


def test_a_cut_loses_nobody() -> None:
    federation = toy.federation(toy.config())
    cohorts = cut((9, 0, 5, 2, 11, 7, 4), federation, 3)
    assert [len(c) for c in cohorts] == [3, 3, 1] and sorted(c for cohort in cohorts for c in cohort) == [
        0,
        2,
        4,
        5,
        7,
        9,
        11,
    ]
    assert cut((), federation, 3) == [] and cut_in_order([4, 1, 2], 2) == [(4, 1), (2,)]


@pytest.mark.parametrize(
    ("step", "resources", "in_server", "wanted"),
    [
        (1e-6, {}, True, (7, "server")),
        (1e-6, {}, False, (7, "actors")),
        (1.0, {}, True, (4, "actors")),
        (1e-6, {"cohort": 3}, True, (3, "actors")),
        (1e-6, {"cohort": 9}, True, (9, "server")),
        (1.0, {"visits": "server"}, False, (4, "server")),
        (1e-6, {"visits": "actors"}, True, (7, "actors")),
    ],
)
def test_a_round_of_little_work_is_one_call_in_the_server(
    step: float, resources: dict[str, Any], in_server: bool, wanted: tuple[int, str]
) -> None:
    c = toy.config(resources={"cohort": "auto", **resources})
    assert choose_calls(c, toy.federation(c), toy.make_fed(toy.config()).task, step, in_server) == wanted


def test_a_limit_on_clients_keeps_visits_out_of_the_server() -> None:
    """Its process has none."""
    c = toy.config(resources={"cohort": "auto"}, failures={"client_timeout_s": 5})
    assert choose_calls(c, toy.federation(c), toy.make_fed(toy.config()).task, 1e-6, True) == (7, "actors")
