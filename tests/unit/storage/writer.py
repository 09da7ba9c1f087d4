"""A writer of small runs, a check of what it leaves, and other processes. Also imported by processes that are killed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from rayfed.storage import snapshots
from rayfed.storage.owner import Owner, process_start
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.tree_files import load_tree, save_tree

ME = Owner.me()
CONFIG = {
    "name": "toy",
    "seed": 3,
    "rounds": 20,
    "method": {"name": "fedavg"},
    "resources": {"executor": "loop"},
    "storage": {"path": "runs", "snapshot_every": 5, "keep": 2},
}


def fill(r):
    def write(where):
        save_tree(where, "server", {"x": np.full(64, float(r))})
        (where / "clients.json").write_text(json.dumps({"round": r}))

    return write


def step(folder, r, every=5):
    row = {"loss/global": 1.0 / r, "bytes/up": 100 * r, "accuracy/global": r / 100 if r % every == 0 else None}
    clients = [{"client": c, "accuracy": r / 100} for c in range(3)] if r % every == 0 else None
    folder.commit(r, row, clients, fill(r) if r % every == 0 else None)


def make_run(tmp_path, until=0, **changes):
    folder = RunFolder.create(tmp_path, {**CONFIG, **changes}, owner=ME)
    for r in range(1, until + 1):
        step(folder, r)
    folder.wait()
    return folder


def check_run(path, least=0, every=5):
    """A new owner rewinds and finds rows 1..r once each, with their rounds' values, and the snapshot of round r."""
    folder = RunFolder.open(path, owner=ME)
    last, where = folder.rewind()
    assert last >= least
    found = folder.metrics().to_pylist()
    assert [row["round"] for row in found] == list(range(1, last + 1))
    assert all(row["loss/global"] == 1.0 / row["round"] and row["bytes/up"] == 100 * row["round"] for row in found)
    assert (where is None) == (last == 0)
    if where:
        assert snapshots.find_damage(where, last) is None
        assert (load_tree(where, "server")["x"] == last).all()
        assert [c["accuracy"] for c in folder.clients(last)] == [last / 100] * 3
    evaluated = [p for p in (path / "parts").glob("clients-*")] if (path / "parts").exists() else []
    assert all(int(p.stem.split("-")[1]) <= last for p in evaluated)
    hidden = [p.name for p in path.rglob(".*") if p.name != ".lock" and not p.name.startswith(".damaged")]
    assert not hidden
    return folder, last


def other_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    return process, Owner(ME.host, process.pid, str(process_start(process.pid)))
