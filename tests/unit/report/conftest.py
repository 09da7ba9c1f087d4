"""Fixtures of the tests of reports."""

from __future__ import annotations

import pytest

from rayfed.report.picture import Picture
from rayfed.storage.run_folder import RunFolder
from tests.unit.report.folders import CONFIG, ME, make_short_run


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their drawings, which take most of the time."""
    monkeypatch.setattr(Picture, "svgs", lambda self: [])
    monkeypatch.setattr(Picture, "png", lambda self: b"")


@pytest.fixture
def several(tmp_path):
    """Two seeds of one experiment, then another method with the first seed and with one that only it has."""
    made = []
    for method, seed, last in (("fedavg", 0, 0.5), ("fedavg", 1, 0.6), ("ifca", 0, 0.75), ("ifca", 1, 0.95)):
        config = {**CONFIG, "seed": seed, "method": {"name": method}, "rounds": 2 if method == "ifca" else 3}
        values = [0.1, last] if method == "ifca" else [0.1, 0.2, last]
        made.append(make_short_run(RunFolder.create(tmp_path, config, owner=ME), values))
    return made
