"""The end of a job."""

from __future__ import annotations

from actors.jobs.stop import stop_job
from tests.fake_head import connect, details


def test_stop_waits_for_the_round_and_reports_a_job_that_has_ended() -> None:
    made = connect(details("j"))
    assert "last round is committed" in stop_job(made, "j") and made.client.stopped == ["j"]
    assert stop_job(made, "j") == "j has ended already: stopped" and made.client.stopped == ["j"]
