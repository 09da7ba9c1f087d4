"""Names of rounds and jobs in Ray's dashboard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from actors.dashboard_names import RoundNames, job_metadata, round_name
from actors.messages import ServerState
from rayfed.storage.run_status import RunStatus
from tests import toy


def test_names_of_rounds_are_few() -> None:
    c = toy.config(rounds=4)
    state = ServerState(RunStatus.RUNNING, "a", 1)
    assert round_name(c, state) == "fedavg round 2/4, 7 of 14 clients"
    assert round_name(c, replace(state, status=RunStatus.STARTING, round=0)) == "fedavg starting, 7 of 14 clients"
    assert round_name(c, replace(state, round=4)) is None
    assert round_name(c, replace(state, status=RunStatus.DONE)) is None and round_name(c, ServerState()) is None
    long = toy.config(rounds=1005)
    names = {round_name(long, replace(state, round=r)) for r in range(1005)}
    assert len(names) <= 100 and "fedavg rounds 1-11/1005, 7 of 14 clients" in names
    assert "fedavg rounds 1002-1005/1005, 7 of 14 clients" in names


class FakeServer:
    """Notes what `wait_for_round.options(name=...).remote(...)` was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.wait_for_round = self

    def options(self, name: str) -> Any:
        self.name = name
        return self

    def remote(self, run: str, until: int) -> None:
        self.calls.append((self.name, run, until))


def test_each_name_is_shown_once_and_until_its_rounds_are_over() -> None:
    server = FakeServer()
    shown = RoundNames(server, toy.config(rounds=4))
    for status, r in (("starting", 0), ("starting", 0), ("running", 1), ("running", 1), ("running", 3), ("done", 4)):
        shown.show(ServerState.of({"run": "a", "status": status, "round": r}))
    assert [(name.partition(",")[0], until) for name, _, until in server.calls] == [
        ("fedavg starting", 1),
        ("fedavg round 2/4", 2),
        ("fedavg round 4/4", 4),
    ]


def test_a_request_in_the_list_of_jobs() -> None:
    found = job_metadata([toy.config(), toy.config({"name": "ifca", "clusters": 2})])
    assert found["job_name"] == "rayfed toy" and found["method"] == "fedavg, ifca" and found["clients"] == "14"
    assert found["runs"] == "2" and all(isinstance(v, str) for v in found.values())
