"""The folder of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rayfed.storage.sweep_folder import counts, load_sweep
from tests.unit.report.folders import make_sweep


def test_lower_may_be_better(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "s")
    about = yaml.safe_load((path / "sweep.yaml").read_text())
    (path / "sweep.yaml").write_text(yaml.safe_dump({**about, "mode": "min"}))
    assert load_sweep(path).ranked[0].name == "00000"


def test_trials_that_diverged_or_failed_are_no_results(tmp_path: Path) -> None:
    """Also where they have no row yet."""
    path = make_sweep(tmp_path / "s")
    for trial, outcome in (("00004", {"reason": "NaN", "diverged": 5}), ("00003", {"reason": "x", "later": 1})):
        (path / "trials" / trial / "outcome.json").write_text(json.dumps(outcome))
    new = path / "trials" / "00009"
    new.mkdir()
    (new / "point.json").write_text(json.dumps({"trial": "00009", "point": {"method.clusters": 7}, "origin": None}))
    assert len(load_sweep(path).trials) == 6, "it has only begun"
    (new / "outcome.json").write_text(json.dumps({"reason": "NaN", "diverged": 1}))
    sweep = load_sweep(path)
    assert [t.name for t in sweep.ranked] == ["00002", "00001", "00000", "00005"]
    assert [(t.name, str(t.outcome)) for t in sweep.unsound] == [
        ("00004", "diverged in round 5"), ("00009", "diverged in round 1"), ("00003", "failed: x"),
    ]  # fmt: skip
    without = next(t for t in sweep.trials if t.name == "00009")
    assert (without.round, without.point, without.by_seed("loss/global")) == (0, {"method.clusters": 7}, {})
    assert without.last["folder"] == "trials/00009" and not any(t.complete for t in sweep.unsound)
    assert counts(sweep) == {"planned": 6, "begun": 7, "complete": 3, "diverged": 2, "failed": 1}
