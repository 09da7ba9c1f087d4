"""Papers' settings: files are whole, cells name arms, plans run nothing, and verdicts are those of the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayfed import methods
from rayfed.config.load import load_config, ready
from rayfed.launch import reproduce
from rayfed.launch.reproduce import Cell
from tests.configs import refusal


@pytest.mark.parametrize("name", reproduce.names())
def test_a_paper_is_a_study_whose_arms_and_rounds_its_cells_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAYFED_DATA", "RAYFED_INSTRUCTIONS", "RAYFED_LM", "RAYFED_MODEL"):
        monkeypatch.setenv(variable, "digits")
    paper = reproduce.read(name)
    study: Any = load_config(paper.config)
    assert name in ready() and {c.arm for c in paper.cells} == set(study.arms)
    assert all(c.at <= study.base.rounds for c in paper.cells)
    assert not [p for config in study.arms.values() for p in methods.of(config).check(config)]
    said = reproduce.plan(name)
    assert all(f"{c.paper:g}" in said and c.arm in said for c in paper.cells) and f"rayfed run {name}" in said
    assert len(said.split("Compared:")[1].strip().splitlines()) == len(paper.cells)


def test_an_unknown_name_names_the_nearest() -> None:
    assert "'fedsped' is unknown (did you mean 'fedspeed'?)" in refusal(reproduce.read, "fedsped")


def test_what_is_missing_is_said_as_of_any_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYFED_DATA", raising=False)
    assert "RAYFED_DATA" in refusal(reproduce.request, "fedspeed")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([], "not run"),
        ([None], "not run"),
        ([0.805], "one seed: same"),
        ([0.7], "one seed: below"),
        ([0.801, 0.799, 0.8], "same"),
        ([0.9, 0.901, 0.902], "above"),
        ([0.5, 0.501, 0.502], "below"),
        ([0.8, 0.82, 0.78], "undecided"),
    ],
)
def test_verdicts(values: list[Any], verdict: str) -> None:
    got = reproduce._judged(Cell(arm="a", at=3, paper=0.8), values)
    assert got["verdict"] == verdict and got["values"] == [v for v in values if v is not None]
    assert verdict in reproduce.table([got])


def test_a_study_that_was_run_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rayfed

    paper = reproduce.read("fedspeed")
    config = {
        "name": "small", "rounds": 1, "task": {"data": "synthetic:blobs", "model": "linear"},
        "federation": {"clients": 4}, "method": "fedavg", "seeds": [0, 1], "arms": {"fedspeed-iid": {}, "fedavg-iid": {}}, "track": [],
    }  # fmt: skip
    monkeypatch.setattr("rayfed.report.write_report", lambda *a, **k: None)
    monkeypatch.setattr(
        reproduce,
        "read",
        lambda name: paper.model_copy(
            update={"cells": [Cell(arm=a, at=1, paper=9.0) for a in ("fedspeed-iid", "other")]}
        ),
    )
    done = rayfed.run(config, local=True, out=tmp_path)
    mine, other = reproduce.compare("fedspeed", done.path)
    assert len(mine["values"]) == 2 and mine["verdict"] == "below" and other["verdict"] == "not run"
