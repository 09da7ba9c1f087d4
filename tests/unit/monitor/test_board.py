"""The board: runs and sweeps below a folder, whatever state they are in, and all parts of one run."""

from __future__ import annotations

import json
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from rayfed.monitor import board as board_module
from rayfed.monitor.board import Board
from rayfed.report.statistics import worst_decile
from rayfed.storage.round_log import read_clients
from rayfed.storage.run_folder import read_metrics
from rayfed.storage.text_files import read_json, sealed_bytes
from tests.unit.monitor.runs import HARMFUL, listed, samples


def test_every_run_has_its_line(runs: Path) -> None:
    found = listed(runs)
    assert set(found) == {"done", "half", "torn", "foreign", HARMFUL, "numbers"}  # links are not followed
    done = found["done"]
    rows = read_metrics(runs / done["id"]).to_pylist()
    assert (done["method"], done["status"], done["round"], done["rounds"]) == ("ifca", "done", 4, 4)
    assert done["metric"] == "accuracy/global" and done["value"] == rows[-1]["accuracy/global"]
    assert done["spark"] == [[r["round"], r["accuracy/global"]] for r in rows]
    assert found["half"]["status"] == "stopped" and "rayfed resume" in found["half"]["note"]
    assert found["torn"]["round"] == 2, "the torn line of round 3 does not count"
    assert found["foreign"]["status"] == "unreadable" and found["foreign"]["note"]


def test_a_run_in_all_its_parts(runs: Path) -> None:
    board = Board(runs)
    run = board.run(listed(runs)["done"]["id"])
    assert run is not None
    folder = runs / run["id"]
    rows = read_metrics(folder).to_pylist()
    panels = {p["name"]: p for p in run["curves"]}
    assert panels["accuracy"]["lines"]["personal"] == [[r["round"], r["accuracy/personal"]] for r in rows]
    assert list(panels)[:2] == ["accuracy", "loss"] and panels["loss"]["lower"] and not panels["accuracy"]["lower"]
    clusters = run["clusters"]
    assert clusters["rounds"] == [1, 2, 3, 4]
    counts = [sum(row[t] > 0 for row in clusters["sizes"]) for t in range(4)]
    assert counts == [r["clusters/count"] for r in rows]
    spread = run["spread"]
    accuracy = spread["measures"][0]
    people = [r for r in read_clients(folder) if not r["unseen"]]
    values = [r["accuracy"] for r in people]
    assert (spread["clients"], spread["unseen"]) == (12, 2) and sum(accuracy["counts"]) == 12
    assert accuracy["worst decile"] == worst_decile(values) and accuracy["worst"][-1] == [4, worst_decile(values)]
    worst = [line[spread["columns"].index("accuracy")] for line in spread["worst"]]
    assert worst == sorted(values)[: len(worst)]
    assert run["about"]["clients"] == 14 and run["about"]["method"] == "ifca"
    log = Board(runs).log(run["id"])
    assert log is not None and log["events"][0]["kind"] == "finished" and Board(runs).log("nothing") is None


def test_who_moved_between_clusters(runs: Path) -> None:
    run = Board(runs).run(listed(runs)["done"]["id"])
    assert run is not None
    member = [
        {r["client"]: r["cluster"] for r in read_clients(runs / run["id"], k) if not r["unseen"]} for k in range(1, 5)
    ]
    moved = [sum(now[c] != was.get(c, now[c]) for c in now) for was, now in pairwise(member)]
    assert run["clusters"]["moved"] == [0, *moved]


def test_a_torn_part_costs_only_itself(runs: Path) -> None:
    run = Board(runs).run("torn")
    assert run is not None
    assert "problem" in run["spread"] and "problem" in run["clusters"]
    assert {p["name"] for p in run["curves"]} >= {"accuracy", "loss"}
    log = Board(runs).log("torn")
    assert log is not None and log["events"] and all(e["kind"] for e in log["events"])
    assert Board(runs).run("numbers")["curves"] == []  # type: ignore[index]  # words and trees are no curves
    assert "problem" in Board(runs).run("foreign")  # type: ignore[operator]


def test_the_folder_may_be_a_run_or_empty(runs: Path, tmp_path: Path) -> None:
    assert Board(tmp_path).runs() == [] and Board(tmp_path / "not there").runs() == []
    (run,) = Board(runs / listed(runs)["done"]["id"]).runs()
    assert run["id"] == "." and run["status"] == "done"


def test_the_list_reads_a_folder_again_only_when_it_changed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / listed(runs)["half"]["id"], folder)
    asked: list[str] = []
    read = board_module.read_entry
    monkeypatch.setattr(board_module, "read_entry", lambda name, path: asked.append(name) or read(name, path))
    board = Board(tmp_path)
    assert board.runs() == board.runs() and asked == ["run"]
    (folder / "state.json").write_bytes(sealed_bytes({**read_json(folder / "state.json"), "clients_per_s": 7.5}))
    assert board.runs()[0]["clients_per_s"] == 7.5 and asked == ["run", "run"]


def test_a_sweep_has_one_line(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(sweep)
    assert {r["id"] for r in board.runs()} == {"alone", "s/trials/00000/seed-1", "s/trials/00001/seed-1"}
    (found,) = board.sweeps()
    assert (found["id"], found["status"], found["round"], found["rounds"]) == ("s", "interrupted", 6, 12)
    assert found["best"] == 0.5 and found["trials"] == {
        "planned": 3,
        "begun": 2,
        "complete": 1,
        "diverged": 0,
        "failed": 0,
    }
    assert "rayfed sweep --resume" in found["note"]
    (inside,) = Board(sweep / "s").sweeps()
    assert inside["id"] == "." and inside["best"] == 0.5
    asked: list[Path] = []
    monkeypatch.setattr(board_module, "sweep_entry", lambda path: asked.append(path) or found)
    assert board.sweeps() and not asked, "read again only when it changed"
    os.utime(sweep / "s" / "trials" / "00001" / "rows.jsonl")
    assert board.sweeps() and asked
    monkeypatch.undo()
    (sweep / "s" / "sweep.yaml").write_text("[")
    assert Board(sweep).sweeps() == [] and len(Board(sweep).runs()) == 3, "its runs keep their lines"


def test_the_pages_metrics(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs, whatever they track, but neither those that Ray exports nor those that ended long ago."""
    for name in ("file", "ray", "old"):
        shutil.copytree(runs / listed(runs)["done"]["id"], tmp_path / name)
        lock = tmp_path / name / "lock.json"
        lock.write_bytes(sealed_bytes({**read_json(lock), "run": name}))
        os.utime(tmp_path / name / "state.json")
    with open(tmp_path / "ray" / "events.jsonl", "a") as file:
        file.write(
            json.dumps({"time": "2026-01-01T00:00:00.000Z", "kind": "placed", "server": 1, "clients": []}) + "\n"
        )
    os.utime(tmp_path / "old" / "state.json", (1.0, 1.0))
    found = samples(Board(tmp_path).prometheus())
    assert {re.search('run="([^"]*)"', k).group(1) for k in found} == {"file"}  # type: ignore[union-attr]
    mine = samples((runs / listed(runs)["done"]["id"] / "metrics.prom").read_text())
    assert sorted(v for k, v in found.items() if "queue" not in k) == pytest.approx(
        sorted(v for k, v in mine.items() if "queue" not in k)
    )
