"""The list of runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rayfed.report import write_report
from rayfed.report.sweep import write_sweep
from rayfed.storage.listing import list_runs
from rayfed.storage.new_folder import new_folder
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.text_files import json_bytes, load_json, sealed_bytes, yaml_bytes
from tests.unit.report.folders import CONFIG, ME, make_sweep


def test_runs_lists_what_is_there(tmp_path):
    assert list_runs(tmp_path) == []
    done, cut, live = (RunFolder.create(tmp_path, {**CONFIG, "name": n}, owner=ME) for n in ("done", "cut", "live"))
    for folder in (done, cut, live):
        for r in range(1, 6):
            folder.commit(r, {"loss/global": 1.0})
        folder.state(status="running", round=5, rounds=20)
    done.finish("done", {})
    lock = load_json(cut.path / "lock.json")
    lock["owner"]["start"] += "0"
    (cut.path / "lock.json").write_bytes(sealed_bytes(lock))
    content = {**CONFIG, "name": "st", "seeds": [0, 1], "arms": {"a": {}, "b": {"rounds": 10}}}
    study = new_folder(tmp_path, "st", {"study.yaml": yaml_bytes(content)})
    RunFolder.create(study / "a" / "seed-0", CONFIG, owner=ME, exact=True).state(status="running", round=4, rounds=20)
    (tmp_path / "other").mkdir()
    found = {r["name"].split("-")[0]: r for r in list_runs(tmp_path)}
    assert set(found) == {"done", "cut", "live", "st"}
    assert found["done"]["status"] == "done" and (found["done"]["round"], found["done"]["rounds"]) == (5, 20)
    assert found["cut"]["status"] == f"interrupted (resume with: rayfed resume {cut.path})"
    assert found["live"]["status"] == "running" and found["live"]["method"] == "fedavg"
    assert found["st"]["kind"] == "study" and found["st"]["status"] == "running" and found["st"]["method"] == "a, b"
    assert (found["st"]["round"], found["st"]["rounds"]) == (4, 60)
    cut.state(status="failed", round=5, rounds=20, certain=True, collapsed=4)
    broken = RunFolder.create(study / "b" / "seed-1", CONFIG, owner=ME, exact=True)
    broken.state(status="failed", round=2, rounds=20, certain=True)
    RunFolder.open(study / "a" / "seed-0", owner=ME).state(status="stopped", round=4, rounds=20, collapsed=None)
    found = {r["name"].split("-")[0]: r for r in list_runs(tmp_path)}
    for name, fell in (("cut", 1), ("st", 0)):
        assert found[name]["status"] == "failed (would fail there again: its code or settings have to change)"
        assert found[name]["collapsed"] == fell


def test_the_list_has_one_line_for_a_sweep(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "out" / "s")
    line = list_runs(tmp_path / "out")[0]
    assert len(list_runs(tmp_path / "out")) == 1 and line["kind"] == "sweep" and line["method"] == "ifca"
    assert (line["round"], line["rounds"]) == (5 * 4 * 2 + 2 * 2, 6 * 4 * 2)
    assert line["trials"] == {"planned": 6, "begun": 6, "complete": 5, "diverged": 0, "failed": 0}
    assert line["metric"] == "accuracy/global" and line["best"] == pytest.approx(0.45)
    again = f"(resume with: rayfed sweep --resume {path})"
    me = Owner.me()
    for owner, said in (
        (me, "running"),
        (Owner(me.host, me.pid, f"{me.start}0"), f"interrupted {again}"),
        (None, f"interrupted {again}"),
    ):
        (path / "driver.json").write_bytes(json_bytes(dataclasses.asdict(owner) if owner else {}))
        assert list_runs(tmp_path / "out")[0]["status"] == said
    write_sweep(path, ended=True, failed=1)
    assert list_runs(tmp_path / "out")[0]["status"] == f"failed {again}"
    write_report(path)
    assert list_runs(tmp_path / "out")[0]["status"] == f"failed {again}", "a new page does not forget it"
    for s in (0, 1):
        (path / "trials" / "00005" / f"seed-{s}" / "summary.json").write_text('{"status": "done"}')
    write_sweep(path, ended=True)
    assert list_runs(tmp_path / "out")[0]["status"] == "done"
    (path / "sweep.yaml").write_text("name: [")
    assert list_runs(tmp_path / "out")[0]["status"].startswith("unreadable")
