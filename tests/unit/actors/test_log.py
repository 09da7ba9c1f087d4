"""Progress in a job's log."""

from __future__ import annotations

from actors.jobs.log import OPENING, last_round
from tests.fake_head import LOG


def test_the_last_round_of_a_log() -> None:
    assert last_round(LOG) == 7
    assert last_round("starting\n") == last_round("") == 0


def test_rays_own_lines_are_known() -> None:
    assert [bool(OPENING.match(line)) for line in LOG.splitlines()] == [True, True, False, False, False, False]
