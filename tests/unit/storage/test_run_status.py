"""A run's status is an enum in the program and its word in files, messages and look-ups."""

from __future__ import annotations

import json
import pickle

import pytest

from rayfed.storage.run_status import RunStatus
from rayfed.storage.text_files import json_bytes

WORDS = {
    RunStatus.STARTING: "starting",
    RunStatus.RUNNING: "running",
    RunStatus.STOPPED: "stopped",
    RunStatus.DONE: "done",
    RunStatus.FAILED: "failed",
}


@pytest.mark.parametrize("status", RunStatus)
def test_a_status_is_its_word(status: RunStatus) -> None:
    word = WORDS[status]
    assert json.loads(json_bytes({"status": status})) == {"status": word}
    assert f"{status}" == str(status) == word == status and RunStatus(word) is status
    assert {word: 1}[status] == 1 and status in {word}
    assert pickle.loads(pickle.dumps(status)) is status


def test_which_have_ended() -> None:
    assert [s for s in RunStatus if s.ended] == ["stopped", "done", "failed"]
