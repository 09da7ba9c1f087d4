"""submit, status, logs, stop and fetch: what they ask for, what they print, how they end. No Ray anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.jobs import connection, fetch, states, submission
from actors.jobs.head_program import RunState
from tests.fake_head import LOG, connect, details
from tests.unit.cli.commands import Call

DONE = "SUCCEEDED", 0


@pytest.fixture
def head_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the jobs that every command finds on its head; returns the connection."""

    def give(*jobs: Any, log: str = LOG) -> Any:
        made = connect(*jobs, log=log)
        monkeypatch.setattr(connection, "Connection", lambda address: made)
        return made

    return give


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What was submitted, in place of doing it: the job `j` ends with code 4 at once."""
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    made = connect(details("j", "FAILED", 4), log=LOG)
    for name in ("submit_request", "submit_resume"):
        monkeypatch.setattr(submission, name, lambda *a, **k: asked.append((a, k)) or (made, "j"))
    return asked


def test_submit_passes_on_what_it_is_given(call: Call, submitted: Any) -> None:
    call("submit", "run", "c.yaml", "--set", "rounds=3", "--out", "o", "--address", "http://h", "--scale-up", "9")
    call("submit", "sweep", "clusters,x.py", "c.yaml", "--seeds", "0,1", "--shared", "/data")
    call("submit", "resume", "runs/r", "--set", "rounds=5")
    (run, options), (sweep, more), (resumed, rest) = submitted
    assert run == ("c.yaml", ["rounds=3"]) and options["command"] == "run"
    assert (options["out"], options["address"], options["options"]) == ("o", "http://h", ("--scale-up", "9"))
    assert sweep[0] == "c.yaml" and (more["command"], more["spaces"]) == ("sweep", "clusters,x.py")
    assert more["options"] == ["--seeds", "0,1"] and [str(p) for p in more["shared"]] == ["/data"]
    assert resumed == ("runs/r", ["rounds=5"]) and rest == {"address": None, "options": ()}


def test_submit_follows_the_job_and_ends_with_its_code(call: Call, submitted: Any) -> None:
    ended = call("submit", "run", "c.yaml")
    assert ended.code == 4 and ended.out.startswith("job j on http://head:8265\n") and "round 1/9" in ended.out
    ended = call("submit", "run", "c.yaml", "--json")
    assert ended.code == 4 and json.loads(ended.out) == {
        "job": "j", "address": "http://head:8265", "status": "failed (exit 4)", "exit_code": 4,
    }  # fmt: skip


def test_no_wait_only_names_the_job(call: Call, submitted: Any) -> None:
    ended = call("submit", "run", "c.yaml", "--no-wait")
    assert ended.code == 0 and "rayfed logs -f j" in ended.out and "rayfed fetch j" in ended.out
    ended = call("submit", "run", "c.yaml", "--no-wait", "--json")
    assert json.loads(ended.out) == {"job": "j", "address": "http://head:8265", "status": "pending"}


def test_status_lists_jobs(call: Call, head_with: Any) -> None:
    head_with(details("j"), details("k", *DONE, runs="6", per_round="4"))
    ended = call("status")
    lines = ended.out.splitlines()
    assert ended.code == 0 and [line.split()[0] for line in lines] == ["j", "k"]
    assert "? of 12 clients  round 7/9  running" in lines[0] and "4 of 12 clients  round 7/9  6 runs  done" in lines[1]
    assert [r["job"] for r in json.loads(call("status", "--json").out)] == ["j", "k"]
    head_with()
    assert call("status").out == "no jobs on http://head:8265\n"


def test_status_of_one_job(call: Call, head_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head_with(details("j"))
    live = {"round": 2, "rounds": 9, "status": "running"}
    monkeypatch.setattr(states, "read_run_state", lambda *a: RunState("/r/j", live))
    assert call("status", "j").out == "j: running  round 2/9\n/r/j on the head\n"
    assert json.loads(call("status", "j", "--json").out)["state"] == live
    ended = call("status", "i")
    assert ended.code == 2 and "has no job 'i'" in ended.err


def test_logs(call: Call, head_with: Any) -> None:
    head_with(details("j", *DONE))
    assert call("logs", "j").out == LOG
    ended = call("logs", "-f", "j")
    assert ended.code == 0 and "round 1/9" in ended.out and "Running entrypoint" not in ended.out
    assert call("logs", "jj").code == 2


def test_stop(call: Call, head_with: Any) -> None:
    made = head_with(details("j"))
    ended = call("stop", "j")
    assert ended.code == 0 and "j has stopped" in ended.out and made.client.stopped == ["j"]
    head_with(details("j"))
    assert json.loads(call("stop", "j", "--json").out) == {"job": "j", "status": "stopped"}


def test_fetch(call: Call, head_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = head_with(details("j", *DONE))
    asked: list[Any] = []
    monkeypatch.setattr(fetch, "fetch_folder", lambda *a: asked.append(a) or a[2] / a[1])
    assert call("fetch", "j").out == "runs/j\n"
    assert json.loads(call("fetch", "j", "--out", "here", "--json").out) == {"job": "j", "path": "here/j"}
    assert asked == [(made, "j", Path("runs")), (made, "j", Path("here"))]


def test_status_is_watched_until_nothing_runs(call: Call, head_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayfed.launch import live

    head = head_with(details("j"))
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        head.client.known["j"] = details("j", *DONE)

    monkeypatch.setattr(live.time, "sleep", sleep)
    said = call("status", "--watch")
    first, last = said.out.splitlines()
    assert said.code == 0 and len(looks) == 1 and "running" in first and "done" in last
    assert "leave one out" in call("status", "--watch", "--json").err
