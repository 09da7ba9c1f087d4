"""A job's log on the screen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.jobs.follow import follow_job
from rayfed.errors import Interrupted
from tests.fake_head import LOG, connect, details


def test_following_shows_the_progress_of_a_run_once_though_the_connection_breaks(capsys: Any) -> None:
    made = connect(details("j", "SUCCEEDED", 0), log=LOG)
    assert follow_job(made, "j") == 0
    assert capsys.readouterr().out == "".join(LOG.splitlines(keepends=True)[2:])
    assert made.client.breaks == 0


def test_ctrl_c_detaches(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(coroutine: Any) -> None:
        coroutine.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "run", interrupt)
    with pytest.raises(Interrupted, match=r"the job goes on.*rayfed logs -f j.*rayfed stop j") as e:
        follow_job(connect(details("j")), "j")
    assert e.value.exit_code == 130
