"""Addresses, tokens and the list of jobs."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.jobs import connection
from rayfed.errors import ConfigError
from tests.fake_head import connect, details


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for n in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(n, raising=False)
    for wrong in (None, "local", "ray://head:10001"):
        with pytest.raises(ConfigError, match="--address"):
            connection.dashboard_url(wrong)
    monkeypatch.setenv("RAY_ADDRESS", "head:8265")
    assert (
        connection.dashboard_url(None) == "http://head:8265" and connection.dashboard_url("https://x/") == "https://x"
    )
    assert connection.dashboard_url("auto") == "http://127.0.0.1:8265"


def test_a_token_is_honoured_unless_the_user_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(n, "")
        monkeypatch.delenv(n)
    monkeypatch.setenv("HOME", str(tmp_path))
    connection.honour_token()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    connection.honour_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    connection.honour_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_only_this_projects_jobs_are_known_and_a_name_is_helped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = connect(details("j"), SimpleNamespace(submission_id="o", metadata={}, start_time=5))
    assert list(made.list_jobs()) == ["j"]
    with pytest.raises(ConfigError, match=r"has no job 'jj' \(did you mean 'j'\?\)"):
        made.find_job("jj")
