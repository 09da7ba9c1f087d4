"""What the pool on Ray does with every call and keeps cheap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors import pool as ray_pool
from rayfed.engine.messages import Job, TimingCall, VisitCall


def test_a_small_payload_stays_with_its_calls_and_a_large_one_goes_to_the_store(monkeypatch):
    stored: list[Any] = []
    monkeypatch.setattr(ray_pool.ray, "put", lambda value: stored.append(value) or "ref")
    small, large = (
        {"w": np.zeros(n, np.float32)} for n in (ray_pool.INLINE_BYTES // 4, ray_pool.INLINE_BYTES // 4 + 1)
    )
    pool: Any = object.__new__(ray_pool.RayPool)
    assert pool.put(small) is small and pool.get(small) is small
    assert pool.put(large) == "ref" and stored == [large]


def test_an_actors_call_is_named_once_and_again_for_its_successor():
    made: list[tuple[str, str]] = []

    def actor(name: str) -> Any:
        def options(num_returns: int, name: str, who: str = name) -> tuple[str, str]:
            made.append((who, name))
            return who, name

        return SimpleNamespace(execute_job=SimpleNamespace(options=options))

    pool: Any = object.__new__(ray_pool.RayPool)
    pool._named, pool.actors = {}, [actor("a"), actor("b")]
    assert [pool._named_call(i, "train") for i in (0, 0, 1, 1)] == [("a", "train")] * 2 + [("b", "train")] * 2
    assert pool._named_call(0, "score") == ("a", "score")
    pool.actors[0] = actor("c")
    assert pool._named_call(0, "train") == ("c", "train")
    assert made == [("a", "train"), ("b", "train"), ("a", "score"), ("c", "train")]


def late_pool() -> Any:
    """A pool of two actors that start late, without Ray; the run "r" is resident in it."""
    pool: Any = object.__new__(ray_pool.RayPool)
    pool.plan, pool.actors, pool._late, pool.restarts, pool._on_nodes = SimpleNamespace(actors=2), [], True, 0, False
    pool._starting, pool.nodes, pool._failed_starts = {}, {}, [0, 0]
    pool._runs = {"r": SimpleNamespace(setup="s", federation="f", start=None)}
    pool._adopted, pool._alone, pool.local_worker = set(), {}, SimpleNamespace(runs={"r": None})
    pool.started = []
    pool._start = lambda i: SimpleNamespace(
        setup=SimpleNamespace(remote=lambda *a: pool.started.append(i) or f"ref{i}")
    )
    return pool


def jobs(*clients: int, run: str = "r") -> list[Job]:
    """Visits of so many clients each."""
    return [Job(run, VisitCall(visit="train", clients=tuple(range(n)), dispatch=1, round=1, rounds=1)) for n in clients]


def test_actors_that_start_late_are_set_up_once_and_reported_when_all_are_ready(monkeypatch):
    monkeypatch.setattr(ray_pool.ray, "get", lambda ref: f"node of {ref}")
    pool, reported = late_pool(), []
    pool.on_started = lambda: reported.append(dict(pool.nodes))
    assert pool._ready() == []
    pool.start()
    pool.start()
    assert pool.started == [0, 1] and pool._ready() == [] and not reported
    pool._finish_start(1)
    assert pool._ready() == [1] and not reported
    pool._finish_start(0)
    assert pool._ready() == [0, 1] and reported == [{0: "node of ref0", 1: "node of ref1"}]
    pool._starting = {1: "ref1"}  # a successor, later: nothing new to report
    pool._finish_start(1)
    assert len(reported) == 1


def test_little_work_is_done_here_until_the_first_actor_is_ready(monkeypatch):
    monkeypatch.setattr(ray_pool.ray, "get", lambda ref: "here")
    pool = late_pool()
    pool.on_started = lambda: None
    assert not pool._may_execute_here(jobs(4)), "the run does not say how much work it is"
    pool._alone["r"] = 0.1
    assert pool._may_execute_here(jobs(4)) and pool._may_execute_here(jobs(5, 5)) and not pool._may_execute_here([])
    assert not pool._may_execute_here(jobs(6, 5)), "more than a second"
    assert not pool._may_execute_here(jobs(1, run="other"))
    assert pool._may_execute_here([Job("r", TimingCall(4))])
    pool.start()
    assert pool._may_execute_here(jobs(5, 5))
    pool._finish_start(0)
    assert not pool._may_execute_here(jobs(1))
    pool._adopted.add("r")  # resources.visits: server
    assert pool._may_execute_here(jobs(100)) and not pool._may_execute_here(jobs(1, 1))
    pool._on_nodes = True
    assert not pool._may_execute_here(jobs(1))


def test_a_pool_whose_actors_start_at_once_does_single_jobs_of_adopted_runs_alone():
    pool = late_pool()
    pool._late, pool.actors = False, ["a", "b"]
    pool._alone["r"] = 0.0
    assert not pool._may_execute_here(jobs(1))
    pool._adopted.add("r")
    assert pool._may_execute_here(jobs(1)) and not pool._may_execute_here(jobs(1, 1))


@pytest.mark.parametrize(("per_round", "started"), [(10, []), (11, [0, 1])])
def test_actors_start_while_a_run_is_prepared_whose_asks_are_no_little_work(monkeypatch, per_round, started):
    pool, kept = late_pool(), []
    pool.local_worker = SimpleNamespace(adopt=lambda run, resident: kept.append(run))
    monkeypatch.setattr(ray_pool.process, "keep_freed_memory", lambda: True)
    resident: Any = SimpleNamespace(config=SimpleNamespace(per_round=lambda: per_round))
    pool.begin_here("r", resident, 0.1)
    assert kept == ["r"] and pool._alone == {"r": 0.1} and pool.started == started
