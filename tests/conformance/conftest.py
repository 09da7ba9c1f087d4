from __future__ import annotations

import pytest

from tests.tiny import on_bert  # noqa: F401


@pytest.fixture(autouse=True)
def updates_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole updates of the toy (212 numbers) count as large and stay with their actor; signatures (68) travel."""
    monkeypatch.setattr("rayfed.engine.worker.SMALL", 100)
