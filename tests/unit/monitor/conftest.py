"""A folder of runs as a person may have it, and the live page's server for it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayfed.monitor import Server
from tests import toy
from tests.unit.monitor.runs import HARMFUL, listed


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: one with clusters that is done, one stopped, a torn one, foreign ones."""
    home = tmp_path_factory.mktemp("runs")
    toy.run_folder({"name": "ifca", "clusters": 3}, home / "done", rounds=4, track=["prometheus"])
    toy.run_folder("fedavg", home / "half", rounds=4, stop_after=2, track=["prometheus"])
    torn = next((home / "half").iterdir())
    shutil.copytree(torn, home / "torn")
    (home / "torn" / "state.json").write_text('{"status": "runn')
    with open(next((home / "torn" / "parts").glob("rows-*.jsonl")), "a") as file:
        file.write('{"round": 3, "accur')
    with open(home / "torn" / "events.jsonl", "a") as file:
        file.write('{"time": ')
    for part in (home / "torn" / "parts").glob("clients-*.parquet"):
        part.write_bytes(part.read_bytes()[:40])
    for name, config in {
        "foreign": "a: [1",
        HARMFUL: "- just\n- a list\n",
        "numbers": "method: 3\nrounds: many\n",
    }.items():
        (home / name).mkdir()
        (home / name / "config.yaml").write_text(config)
        (home / name / "lock.json").write_text("[]")
    (home / "numbers" / "parts").mkdir()
    (home / "numbers" / "parts" / "rows-1.jsonl").write_text('{"round": 1, "accuracy/global": "high", "x": {"y": 1}}\n')
    (home / "loop").symlink_to(home)
    return home


@pytest.fixture(scope="session")
def server(runs: Path) -> Iterator[Server]:
    made = Server(runs, 0)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.close()
    thread.join()


@pytest.fixture
def sweep(runs: Path, tmp_path: Path) -> Path:
    """A sweep of three trials in its own folder, next to a run; the second has one row, the third has not begun."""
    home = tmp_path / "sweeps"
    shutil.copytree(runs / listed(runs)["done"]["id"], home / "alone")
    about = {
        "options": {"seeds": [1], "metric": "accuracy/global", "scheduler": "none"}, "mode": "max", "trials": 3, "rounds": 4,
        "swept": {"local.epochs": [1, 2, 5]}, "config": {"method": "ifca"},
    }  # fmt: skip
    for i, value in enumerate((0.5, 0.75)):
        place = home / "s" / "trials" / f"{i:05d}"
        shutil.copytree(runs / listed(runs)[("done", "half")[i]]["id"], place / "seed-1")
        row = {
            "round": 4 - 2 * i,
            "folder": f"trials/{place.name}",
            "point": {},
            "seeds": {"1": {"accuracy/global": value}},
        }
        (place / "rows.jsonl").write_text(json.dumps(row))
    (home / "s" / "sweep.yaml").write_text(json.dumps(about))
    return home
