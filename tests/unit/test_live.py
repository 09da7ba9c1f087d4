"""What the engine and the Ray pool do in every round and keep cheap."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors import pool as ray_pool
from rayfed.engine import runner as runner_module
from rayfed.engine.runner import Runner
from tests import toy


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run whose clock stands still; `written` holds the rounds of its state.json, `told` those that its caller heard of."""
    written: list[tuple[str, int]] = []
    told: list[int] = []
    folder: Any = SimpleNamespace(
        run_id="r", path=Path("r"), event=None, state=lambda **s: written.append((s["status"], s["round"]))
    )
    nothing: Any = None  # neither data nor actors are asked for here
    made: Any = Runner(toy.config(), nothing, nothing, folder, progress=lambda s: told.append(s["round"]))
    made.written, made.told, made.now = written, told, 100.0
    monkeypatch.setattr(runner_module.time, "perf_counter", lambda: made.now)
    return made


def tell(runner: Any, status: str, round: int) -> None:
    runner.status.update(status=status, round=round)
    runner._write_status()


def test_the_state_file_is_written_a_few_times_a_second_and_at_the_end(runner):
    for r in (1, 2, 3):
        tell(runner, "running", r)
    assert runner.written == [("running", 1)] and runner.told == [1, 2, 3]
    runner.now += 1.5 * runner_module.LIVE_S
    tell(runner, "running", 4)
    tell(runner, "running", 5)
    tell(runner, "done", 5)
    assert runner.written == [("running", 1), ("running", 4), ("done", 5)]


def test_a_small_payload_stays_with_its_calls_and_a_large_one_goes_to_the_store(monkeypatch):
    stored: list[Any] = []
    monkeypatch.setattr(ray_pool.ray, "put", lambda value: stored.append(value) or "ref")
    small, large = ({"w": np.zeros(n, np.float32)} for n in (ray_pool.SMALL // 4, ray_pool.SMALL // 4 + 1))
    pool: Any = object.__new__(ray_pool.RayPool)
    assert pool.put(small) is small and pool.get(small) is small
    assert pool.put(large) == "ref" and stored == [large]


def test_an_actors_call_is_named_once_and_anew_for_its_successor():
    made: list[tuple[str, str]] = []

    def actor(name: str) -> Any:
        def options(num_returns: int, name: str, who: str = name) -> tuple[str, str]:
            made.append((who, name))
            return who, name

        return SimpleNamespace(do=SimpleNamespace(options=options))

    pool: Any = object.__new__(ray_pool.RayPool)
    pool._named, pool.actors = {}, [actor("a"), actor("b")]
    assert [pool._do(i, "train") for i in (0, 0, 1, 1)] == [("a", "train")] * 2 + [("b", "train")] * 2
    assert pool._do(0, "score") == ("a", "score")
    pool.actors[0] = actor("c")
    assert pool._do(0, "train") == ("c", "train")
    assert made == [("a", "train"), ("b", "train"), ("a", "score"), ("c", "train")]
