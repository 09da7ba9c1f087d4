"""The server's answers while it executes rounds: the run's state, when a round is committed, whether the driver lives."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actors import server as module
from actors.messages import ServerState
from actors.server import ServerActor
from rayfed.errors import RunFailed
from rayfed.storage.owner import Owner
from rayfed.storage.run_status import RunStatus


@pytest.fixture
def server() -> Any:
    made: Any = object.__new__(ServerActor)
    made.runner, made.driver, made.checked, made.stopping = None, Owner.me(), float("-inf"), False
    return made


def test_the_state_is_that_of_the_runner(server: Any) -> None:
    assert server.state() == ServerState() and server.state().live == {"status": "starting"}
    live = {"run": "r", "status": "running", "round": 3, "rounds": 9, "eta_s": 1.5}
    server.runner = SimpleNamespace(live=lambda: live)
    state = server.state()
    assert (state.status, state.run, state.round, state.live) == (RunStatus.RUNNING, "r", 3, live)
    live["round"] = 4
    assert state.live["round"] == 3, "a state does not change after it was asked for"


def test_waiting_for_a_round_ends_with_it_or_with_the_run(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live: dict[str, Any] = {"run": "r", "status": "running", "round": 3}
    server.runner = SimpleNamespace(live=lambda: live)
    slept: list[dict[str, Any]] = [{"round": 4}, {"round": 5}, {"status": "stopped"}, {"run": "other"}]
    monkeypatch.setattr(module.time, "sleep", lambda s: live.update(slept.pop(0)))
    server.wait_for_round("r", 5)
    assert live["round"] == 5 and len(slept) == 2
    server.wait_for_round("r", 9)
    assert live["status"] == "stopped" and len(slept) == 1
    live["status"] = "running"
    server.wait_for_round("r", 9)
    server.wait_for_round("r", 9)
    assert live["run"] == "other" and not slept


def test_nothing_is_committed_once_the_driver_is_gone(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server._check_driver()
    server.driver, server.checked = replace(Owner.me(), start=0.0), float("-inf")
    with pytest.raises(RunFailed, match="the driver of this run is gone"):
        server._check_driver()
    server._check_driver()  # checked just now
    server.driver, server.checked = None, float("-inf")
    server._check_driver()


def test_a_stop_before_the_run_begins_is_remembered(server: Any) -> None:
    server.stop()
    assert server.stopping
    stopped: list[int] = []
    server.runner = SimpleNamespace(stop=lambda: stopped.append(1))
    server.stop()
    assert stopped == [1]


def test_client_actors_that_start_late_start_where_much_is_left(server: Any) -> None:
    started: list[int] = []
    server.pool = SimpleNamespace(start=lambda: started.append(1))
    for left, times in ((0.0, 0), (module.WORTH_S, 0), (module.WORTH_S + 1, 1)):
        server.runner = SimpleNamespace(seconds_left=lambda left=left: left)
        server._before_commit()
        assert len(started) == times
