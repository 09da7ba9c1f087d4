"""The page's kind of task and its metric run, and measure what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import metrics, report
from rayfed.engine.resident import Resident
from tests import toy
from tests.conformance import checks
from tests.conformance.checks import Case
from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(), re.S)
(OWN_KIND,) = [b for b in BLOCKS if "class Counts" in b]
(OWN_METRIC,) = [b for b in BLOCKS if "def within_ten" in b]


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kind")
    (folder / "counts.py").write_text(OWN_KIND)
    (folder / "mine.py").write_text(OWN_METRIC)
    task = {"kind": f"{folder / 'counts.py'}:Counts", "data": f"{folder / 'counts.py'}:calls"}
    return {
        "task": task,
        "federation": {"groups": {"kind": "none"}},
        "evaluate": {"metrics": [f"{folder / 'mine.py'}:within_ten"]},
    }


def test_it_is_about_forty_lines() -> None:
    kind = OWN_KIND[OWN_KIND.index("class Counts") : OWN_KIND.index("def calls")]
    assert len(kind.strip().splitlines()) <= 40


@pytest.mark.parametrize("check", [checks.two_rounds_run, checks.loop_is_vmap], ids=lambda c: c.__name__)
def test_conformance(check: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    check(Case("fedavg", changes), tmp_path)


def test_it_learns_and_its_measures_are_what_they_say(changes: dict[str, Any], tmp_path: Path) -> None:
    c = toy.config("fedavg", executor="vmap", rounds=15, **changes, local={"optimizer": {"lr": 0.03}})
    f = toy.federation(c)
    ran = toy.run_folder("fedavg", tmp_path, executor="vmap", rounds=15, **changes, local={"optimizer": {"lr": 0.03}})
    first, last = ran.rows[0], ran.rows[-1]
    assert last["explained/global"] > max(0.3, first["explained/global"]) and last["loss/global"] < first["loss/global"]
    task = Resident(c, f, None, "cpu").task
    with torch.no_grad():
        batch = task.batch({n: a[f.pooled_test] for n, a in f.arrays.items()})
        p = task.predict(ran.state["model"], batch).double().numpy()
    y = batch["y"].double().numpy()
    assert last["error/global"] == pytest.approx(np.abs(p - y).mean(), rel=1e-5)
    assert last["within_ten/global"] == (np.abs(p - y) < 10).mean()
    mean = y.mean()
    deviance = [2 * np.mean(np.where(y > 0, y * np.log(np.maximum(y, 1) / q), 0) - y + q) for q in (p, mean)]
    assert last["explained/global"] == pytest.approx(1 - deviance[0] / deviance[1], rel=1e-5)
    assert metrics.lower_is_better("error/global") and not metrics.lower_is_better("explained/global")
    page = report.write_report(ran.folder.path).read_text()
    assert "share of the deviance that is explained" in page and "Share of predictions that are off" in page
