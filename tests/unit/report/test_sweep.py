"""The results of a sweep: a row per trial and round, and the best trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayfed.report.sweep import results, summarise
from rayfed.storage.sweep_folder import load_sweep
from tests.unit.report.folders import make_sweep


def test_results(tmp_path: Path) -> None:
    sweep = load_sweep(make_sweep(tmp_path / "s"))
    summary, table = summarise(sweep, ended=True), results(sweep).to_pylist()
    assert len(table) == 5 * 2 + 1 == len({(r["trial"], r["round"]) for r in table}), "a row per trial and round"
    row = next(r for r in table if r["trial"] == "00002" and r["round"] == 4)
    assert row["method.clusters"] == 3 and row["federation.partition.alpha"] == 0.1 and row["n"] == 2
    assert row["accuracy/global"] == pytest.approx(0.25), "the last written of a round wins"
    half = 12.706204736 * np.std([0.24, 0.26], ddof=1) / np.sqrt(2)  # t(0.975, 1)
    assert row["accuracy/global_sd"] == pytest.approx(0.02 / np.sqrt(2)) and row[
        "accuracy/global_ci95"
    ] == pytest.approx(half)
    assert (
        summary["trials"] == {"planned": 6, "begun": 6, "complete": 5, "diverged": 0, "failed": 0}
        and summary["status"] == "incomplete"
    )
    best = summary["best"]
    assert [b["trial"] for b in best] == ["00004", "00003", "00002", "00001", "00000", "00005"], "stopped ones last"
    assert best[1]["difference"]["mean"] == pytest.approx(-0.1) and best[1]["difference"]["n"] == 2
    assert best[1]["difference"]["ci95"] == pytest.approx([-0.1, -0.1]), "paired: what seeds share drops out"


def test_asha_may_leave_trials(tmp_path: Path) -> None:
    sweep = load_sweep(make_sweep(tmp_path / "s", "asha"))
    assert summarise(sweep, ended=True)["status"] == "done"
    assert summarise(sweep, ended=False)["status"] == "incomplete"
