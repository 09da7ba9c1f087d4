"""Stragglers do a part of their local work: how much is drawn by key, the same for every method, executor and cohort."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rayfed import stragglers, tree
from rayfed.errors import ConfigError
from tests import toy

HALF = {"kind": "uniform", "stragglers": 0.5, "least": 0.2}
ALL = {"federation": {"per_round": None}}


def config(work: dict[str, Any], **more: Any) -> Any:
    return toy.config(**{**more, "local": {"work": work, "epochs": 5}})


def test_who_straggles_is_drawn_anew_each_round_and_by_how_much() -> None:
    c = config(HALF)
    drawn = np.stack([stragglers.shares(c, 60, r) for r in range(1, 40)])
    late = drawn < 1
    assert (late.sum(1) == 30).all() and len({tuple(row) for row in late}) == 39
    assert drawn.min() >= 0.2 and abs(drawn[late].mean() - 0.6) < 0.02
    assert (stragglers.shares(c, 60, 3) == drawn[2]).all()
    other = toy.config("scaffold", local={"work": HALF, "optimizer": {"lr": 0.3}}, federation={"per_round": 3})
    assert (stragglers.shares(other, 60, 3) == drawn[2]).all()
    assert (stragglers.shares(config({}), 60, 1) == 1).all()


@pytest.mark.parametrize("executor", ["loop", "vmap", "debug"])
@pytest.mark.parametrize("cohort", [2, 5])
def test_steps_are_the_first_of_a_full_visit(executor: str, cohort: int) -> None:
    resources = {"cohort": cohort}
    done = toy.simulate(
        executor=executor, dtype="float64", rounds=1, local={"work": HALF, "epochs": 5}, resources=resources, **ALL
    )
    c = done.fed.config
    share = stragglers.shares(c, 12, 1)
    sizes = [len(done.fed.federation.train[i]) for i in range(12)]
    full = [5 * math.ceil(n / 8) for n in sizes]
    done.fed.begin(1)
    got = done.fed.ask(done.fed.method.train, range(12), shared={"model": done.initial["model"]}, keep="delta")
    assert [r.steps for r in got] == [max(1, math.ceil(s * t)) for s, t in zip(share, full, strict=True)]
    assert [r.steps for r in got] != full
    # a client that is asked for just so many steps does the same ones, to the bit
    some = int(np.argmin(share))
    steps = {"epochs": None, "steps": got[some].steps}
    plain = toy.simulate(executor=executor, dtype="float64", rounds=1, local=steps, resources=resources, **ALL)
    plain.fed.begin(1)
    alone = plain.fed.ask(plain.fed.method.train, [some], shared={"model": done.initial["model"]}, keep="delta")
    mine, same = got.gather("delta")[some], alone.gather("delta")[some]
    assert float(tree.norm(tree.sub(mine, same))) < 1e-12 < float(tree.norm(mine))


def test_executors_agree() -> None:
    loop, vmap = (
        toy.simulate("fednova", executor=e, dtype="float64", local={"work": HALF, "epochs": 5})
        for e in ("loop", "vmap")
    )
    assert float(tree.norm(tree.sub(loop.state, vmap.state))) < 1e-9
    assert loop.rows == vmap.rows


@pytest.mark.parametrize("work", [{"kind": "uniform", "least": 1.0}, {"kind": "uniform", "stragglers": 0.0}])
def test_all_of_the_work_is_the_usual_run_to_the_bit(work: dict[str, Any]) -> None:
    some, full = (toy.simulate(executor="vmap", local={"work": w}) for w in (work, {"kind": "full"}))
    assert tree.same(some.state, full.state) and some.rows == full.rows


def test_late_ones_are_left_out_or_kept() -> None:
    kept, dropped = (toy.simulate(rounds=3, local={"work": {**HALF, "late": w}}, **ALL) for w in ("keep", "drop"))
    for r in (1, 2, 3):
        share = stragglers.shares(kept.fed.config, 12, r)
        (all_of_them,), (in_time,) = ([d.ids for d in x.fed.drawn if d.round == r] for x in (kept, dropped))
        assert all_of_them == tuple(range(12)) and in_time == tuple(np.flatnonzero(share == 1))
        assert len(in_time) == 6


def test_late_ones_are_left_out_whatever_they_would_have_done() -> None:
    done = toy.simulate(rounds=2, local={"work": {**HALF, "least": 1.0, "late": "drop"}}, **ALL)
    assert [len(d.ids) for d in done.fed.drawn] == [6, 6]


def test_held_out_clients_may_be_asked() -> None:
    """PACFL asks those that take no part for bases of their inputs."""
    done = toy.simulate("pacfl", rounds=2, local={"work": HALF})
    assert done.fed.federation.clients > done.fed.population


@pytest.mark.parametrize("evaluate", [{"every": 1}, {"every": 1, "finetune_epochs": 2}])
def test_what_a_client_does_for_itself_is_done_in_full(evaluate: dict[str, Any]) -> None:
    """Fine-tuning before a model is served or scored is no work of the round."""
    method, work = (
        {"name": "fedavg_finetune", "finetune_epochs": 3},
        {"kind": "uniform", "stragglers": 1.0, "least": 0.0},
    )
    done = toy.simulate(method, rounds=1, local={"work": work}, evaluate=evaluate)
    full = toy.simulate(method, rounds=1, evaluate=evaluate)._replace(state=done.state)
    assert not tree.same(full.state, toy.simulate(method, rounds=1).state)
    assert done.scores() == full.scores()


def test_settings_of_stragglers_without_any_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"local.work.least: 0.5 found, but nothing reads it with kind: full"):
        config({"least": 0.5})
    with pytest.raises(ConfigError, match=r"local.work.late"):
        config({"kind": "full", "late": "drop"})
