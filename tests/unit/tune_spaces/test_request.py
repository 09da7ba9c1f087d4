"""What is refused before Ray starts: all problems at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import ray

from tests.unit.tune_spaces.tools import RAW, refused
from tune_spaces.sweep.request import SweepOptions, check_request


def test_all_problems_at_once() -> None:
    found = refused(
        "clustrs", "clusters:bth", "nope.py", search="grd", scheduler="asa", seeds=(0, 0), metric="acc", samples=0
    )
    text = "\n".join(found)
    for piece in (
        "did you mean 'clusters'",
        "did you mean 'both'",
        "no file nope.py",
        "did you mean 'grid'",
        "did you mean 'asha'",
        "--seeds",
        "--metric",
        "--samples",
    ):
        assert piece in text, piece


def test_every_point_of_a_grid_is_tried(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ray import tune\n"
        "space = {'federation.per_round': tune.grid_search([3, 12, 13]), 'method.clusters': tune.grid_search([0, 2])}\n"
    )
    found = refused(str(file))
    problems = {p.partition(": ")[2]: p for p in found}
    (clusters,) = [p for t, p in problems.items() if t.startswith("method.clusters: 0")]
    assert all(f"per_round={n} clusters=0" in clusters for n in (3, 12, 13)) and "clusters=2" not in clusters
    (share,) = [p for t, p in problems.items() if t.startswith("federation.per_round: 13")]
    assert "per_round=13 clusters=2" in share and "per_round=12" not in share


def test_a_split_that_cannot_be_is_reported_before_ray() -> None:
    few = {"data": {"name": "synthetic:blobs", "examples": 40, "classes": 4, "features": 8, "test": 10}}
    found = refused(
        "heterogeneity",
        config={**RAW, "task": {**RAW["task"], **few}, "federation": {**RAW["federation"], "clients": 39}},
    )
    assert found and all("40" in p or "examples" in p for p in found), found
    assert not ray.is_initialized()


def test_a_setting_in_two_spaces() -> None:
    assert "both clusters and clusters:both set it" in refused("clusters", "clusters:both")[0]


def test_searches_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no list of values" in refused("local_work:continuous", search="grid")[0]
    assert "--seeds 0,1,2" in refused("clusters", search="grid", samples=3)[0]
    assert "cannot change in mid-run" in refused("heterogeneity", scheduler="pbt")[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "rayfed-engine[optuna]" in refused("clusters", search="optuna")[0]


def test_a_study_needs_an_arm() -> None:
    arms = {"a": {"method": {"name": "fedavg"}}, "b": {}}
    study = {**RAW, "arms": arms, "seeds": [4, 5]}
    assert "--arm a | b" in refused("participation", config=study)[0]
    made = check_request(["participation"], study, SweepOptions(), arm="a")
    assert made.base.method.name == "fedavg" and made.options.seeds == (4, 5) and made.options.search == "grid"
