"""Report pages of runs and studies: their figures, numbers and sentences."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayfed.report import study_summary
from rayfed.storage.new_folder import new_folder
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.text_files import load_json, yaml_bytes
from tests.unit.report.folders import CONFIG, ME, make_run, make_study, page_of


def test_report_of_a_run(tmp_path):
    path = make_run(RunFolder.create(tmp_path, CONFIG, owner=ME), 20, 1.0, 0)
    page = page_of(path)
    assert page.tags.count("svg") == 13  # curves 2, own 1, clients 1, clusters 2, partition 1, worth 2, cost 4
    assert "script" not in page.tags
    final = json.loads((path / "summary.json").read_text())["metrics"]["accuracy/global"]["final"]
    for needed in (f"{final:.4f}", "fedavg", "20 of 20", "digits", "a <note>", "24.0 MB", "torch", "group 2", "unseen"):
        assert needed in page.text, needed
    assert re.search(r"rayfed run \S*config\.yaml", page.text)
    pngs = sorted(os.listdir(path / "plots"))
    assert pngs == [f"{n}.png" for n in ("clients", "clusters", "cost", "curves", "others", "partition", "worth")]
    assert all((path / "plots" / p).read_bytes().startswith(b"\x89PNG") for p in pngs)


def test_report_of_a_run_that_has_hardly_begun(tmp_path):
    folder = RunFolder.create(tmp_path, {"name": "x<y", "method": "fedavg"}, owner=ME)
    assert "No round has been written yet" in page_of(folder.path).text
    folder.commit(1, {"loss/global": float("nan"), "odd": 1e-9})
    text = page_of(folder.path).text
    assert "1.000e-09" in text and "running" not in text and "starting" in text


def test_report_and_summary_of_a_study(tmp_path):
    claim = {"metric": "accuracy/global", "at": 10, "better": "disue", "than": "fedavg"}
    path = make_study(tmp_path, claim=claim)
    out = study_summary(path)
    assert load_json(path / "summary.json") == out
    assert out["status"] == "done" and list(out["arms"]) == ["fedavg", "ifca", "disue"]
    table = pq.read_table(path / "results.parquet")
    assert table.column_names[:3] == ["arm", "seed", "round"] and table.num_rows == 3 * 3 * 20
    rows = table.to_pylist()
    values = [r["accuracy/global"] for r in rows if r["arm"] == "ifca" and r["round"] == 20]
    got = out["arms"]["ifca"]["accuracy/global"]
    assert got["n"] == 3
    assert got["mean"] == pytest.approx(np.mean(values)) and got["sd"] == pytest.approx(np.std(values, ddof=1))
    at = {(r["arm"], r["seed"]): r["accuracy/global"] for r in rows if r["round"] == 10}
    pairs = [at["disue", s] - at["fedavg", s] for s in (0, 1, 2)]
    from scipy import stats

    low, high = stats.ttest_1samp(pairs, 0.0).confidence_interval(0.95)
    assert out["claim"]["mean_difference"] == pytest.approx(np.mean(pairs))
    assert out["claim"]["ci95"] == pytest.approx([low, high])
    assert out["claim"]["verdict"] == "better" and out["claim"]["n"] == 3

    page = page_of(path)
    assert page.tags.count("figure") == 8  # accuracy, loss, own, clients, clusters, partition, worth, cost
    text = " ".join(page.text.split())
    for needed in (
        "disue beats fedavg in accuracy/global at round 10",
        "— better",
        f"{got['mean']:.4f} ± {got['sd']:.4f}",
    ):
        assert needed in text, needed
    assert re.search(r"rayfed run \S*study\.yaml", text)


def test_an_unfinished_study(tmp_path, undrawn):
    path = make_study(tmp_path, seeds=(0, 1), unfinished=2)
    text = page_of(path).text
    assert "2 of 6 runs are not done" in text
    assert not (path / "summary.json").exists()
    out = study_summary(path)
    assert out["status"] == "incomplete" and out["arms"]["fedavg"]["loss/global"]["n"] == 2
    assert out["arms"]["disue"]["loss/global"] == {**out["arms"]["disue"]["loss/global"], "n": 1, "sd": None}
    assert out["claim"] is None


def test_a_study_that_has_not_begun(tmp_path, undrawn):
    study = {**CONFIG, "seeds": [0], "arms": {"a": {}, "b": {}}}
    study["claim"] = {"metric": "accuracy/global", "at": 5, "better": "a", "than": "b"}
    path = new_folder(tmp_path, "compare", {"study.yaml": yaml_bytes(study)})
    text = " ".join(page_of(path).text.split())
    assert "0 of 2" in text and "incomplete: it needs two seeds or more with both values; 0 found" in text
