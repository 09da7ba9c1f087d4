"""Questions to the head: what it answers, and where it says nothing."""

from __future__ import annotations

import pytest

from actors.jobs import head
from actors.jobs.head_program import Environment, Killed, format_answer
from rayfed.errors import PlacementError, RunFailed
from tests.fake_head import Client, connect, details


def test_the_answer_is_found_among_other_lines() -> None:
    there = Environment("3.11.2", None, "f00", ["peft"])
    made = connect(log=f"noise\n{format_answer(there)}\nmore noise\n")
    assert head.probe_environment(made, ["peft"]) == there
    sent = made.client.sent
    assert sent["entrypoint"] == "python head_program.py probe peft" and list(sent["files"]) == ["head_program.py"]
    assert sent["metadata"]["rayfed"] == "helper"


def test_a_head_that_does_not_answer_is_reported_with_its_log() -> None:
    with pytest.raises(RunFailed, match="the head could not run `python`: python: not found"):
        head.kill_drivers(connect(log="python: not found\n"), "r")
    with pytest.raises(RunFailed, match="could not run"):  # another question's answer is none
        head.read_run_state(connect(log=format_answer(Killed(1))), "runs", "r")


def test_a_helper_that_never_starts_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HELPER_S", 0)
    monkeypatch.setattr(Client, "get_job_info", lambda self, name: details(name, "PENDING"))
    made = connect()
    monkeypatch.setattr(made, "wait_for_end", lambda name, seconds: False)
    with pytest.raises(PlacementError, match="did not start a small job"):
        head.kill_drivers(made, "r")
    assert made.client.stopped == [made.client.sent["submission_id"]]
