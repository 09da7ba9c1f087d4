"""The list of jobs and one job's state."""

from __future__ import annotations

from types import SimpleNamespace

from actors.jobs.states import list_states
from tests.fake_head import LOG, connect, details


def test_the_list_has_this_projects_jobs_with_their_round() -> None:
    other = SimpleNamespace(submission_id="o", metadata={}, start_time=5)
    made = connect(details("j", runs="6"), other, log=LOG)
    (row,) = (r.to_json() for r in list_states(made))
    assert (row["job"], row["status"], row["method"], row["round"], row["rounds"], row["clients"], row["runs"]) == (
        "j", "running", "fedavg", 7, 9, 12, 6,
    )  # fmt: skip
