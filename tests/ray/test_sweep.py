"""Whole sweeps on a Ray that the command starts by itself: results, kill -9, refusals, ASHA, PBT."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from rayfed.report.point_text import value_text
from rayfed.storage.sweep_folder import read_rows
from tests.ray.conftest import numbers, only_run, until

SMALL: dict[str, Any] = {
    "rounds": 6,
    "evaluate": {"every": 2},
    "federation": {"clients": 12, "per_round": 6, "groups": {"kind": "none"}},
    "task": {
        "data": {"name": "synthetic:blobs", "examples": 400, "classes": 4, "features": 8, "test": 60},
        "model": {"name": "mlp", "hidden": [8]},
    },
    "resources": {"executor": "vmap", "cohort": 6, "actors": 1},
}
pytestmark = pytest.mark.slow  # their own clusters: minutes on two cores

SPACE = """
from ray import tune

space = {"local.optimizer.lr": tune.grid_search([0.05, 0.2])}
wide = {"local.optimizer.lr": tune.loguniform(1e-3, 0.5)}
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    file = tmp_path / "rate.py"
    file.write_text(SPACE)
    return file


def table(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path / "sweep.parquet").to_pylist()


def by_trial(path: Path) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for row in table(path):
        out.setdefault(row["trial"], []).append(row["round"])
    return out


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was last written, and what it holds."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return {p.relative_to(path).as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def visible(path: Path) -> dict[str, bytes]:
    """What the files hold that are no locks."""
    return {name: data for name, (_, data) in contents(path).items() if not Path(name).name.startswith(".")}


def listed(rayfed: Any, out: Path) -> dict[str, Any]:
    """The one line of `rayfed runs`."""
    code, said = rayfed("runs", out, "--json").wait()
    assert code == 0, said
    (line,) = json.loads(said[: said.rindex("]") + 1])
    return line


def test_a_sweep_is_killed_and_goes_on(rayfed, config, space, tmp_path):
    """kill -9 of the driver in mid-trial; `--resume` at once; every run has the numbers of the same run alone."""
    long = {**SMALL, "rounds": 60, "evaluate": {"every": 5}}
    command = rayfed(
        "sweep", f"{space},participation", config(**long), "--set", "federation.per_round=6", "--seeds", "0,1",
        "--out", tmp_path / "o", "--address", "local", "--concurrent", "1",
    )  # fmt: skip
    place = until(lambda: only_run(tmp_path / "o") / "trials" / "00001", "the sweep's folder")
    until(lambda: len(read_rows(place)) >= 2, "the second trial has reported twice")
    before = {r["round"]: r["seeds"] for r in read_rows(place)}
    command.kill(signal.SIGKILL)
    command.wait()
    path = only_run(tmp_path / "o")
    assert not (path / "summary.json").exists()
    assert listed(rayfed, tmp_path / "o")["status"].startswith("interrupted (resume with: rayfed sweep --resume ")
    ended = contents(path / "trials" / "00000")
    code, out = rayfed("sweep", "--resume", path, "--address", "local").wait()
    assert code == 0, out
    assert contents(path / "trials" / "00000") == ended, "what had ended is left alone"
    assert by_trial(path) == {t: list(range(5, 61, 5)) for t in ("00000", "00001")}, "no row is lost, none is doubled"
    after = {r["round"]: r["seeds"] for r in read_rows(place)}
    metric = "accuracy/global"
    assert all(after[r][s][metric] == before[r][s][metric] for r in before for s in before[r])
    events = [json.loads(line) for line in (place / "seed-0" / "events.jsonl").read_text().splitlines()]
    (resumed,) = [e["round"] for e in events if e["kind"] == "resumed"]
    assert resumed >= max(before) - 5, "at most the current rounds are lost"
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "done" and summary["trials"] == {
        "planned": 2,
        "begun": 2,
        "complete": 2,
        "diverged": 0,
        "failed": 0,
    }
    assert (path / "sweep.html").is_file()
    line = listed(rayfed, tmp_path / "o")
    assert (line["kind"], line["status"], line["round"], line["rounds"]) == ("sweep", "done", 240, 240)
    assert line["trials"]["complete"] == 2 and line["best"] == summary["best"][0]["value"]
    # Tune's memory lags behind a kill -9, at worst by all trials: each reports what its folder has, and nothing runs again.
    shutil.rmtree(path / "tune")
    before = contents(path / "trials")
    code, out = rayfed("sweep", "--resume", path, "--address", "local").wait()
    assert code == 0 and "[2/2 done]" in out, out
    assert contents(path / "trials") == before
    # A trial's runs are ordinary ones: the same config alone gives the same rows.
    for rate, trial in ((0.05, "00000"), (0.2, "00001")):
        code, out = rayfed(
            "run", config(**long), "--set", f"local.optimizer.lr={rate}", "--set", "federation.per_round=6", "--set", "seed=1",
            "--out", tmp_path / trial, "--local",
        ).wait()  # fmt: skip
        assert code == 0, out
        assert numbers(only_run(tmp_path / trial)) == numbers(path / "trials" / trial / "seed-1")


def test_one_process_serves_all_trials(rayfed, config, space, tmp_path):
    """Trials on the same data and model follow each other in one process with the same client actors; --no-reuse does not."""
    pids = {}
    for how in ("--reuse", "--no-reuse"):
        out_dir = tmp_path / how.strip("-")
        code, out = rayfed(
            "sweep", space, config(**SMALL), "--out", out_dir, "--address", "local", "--concurrent", "1", how
        ).wait()
        assert code == 0, out
        assert "[2/2 done]" in out and "accuracy/global" in out and "sweep.html" in out
        path = only_run(out_dir)
        placed = [
            next(e for e in map(json.loads, (p / "events.jsonl").read_text().splitlines()) if e["kind"] == "placed")
            for p in sorted(path.glob("trials/*/seed-3"))
        ]
        assert [e["trial"][-5:] for e in placed] == ["00000", "00001"]
        pids[how] = [(e["server"], *(c["pid"] for c in e["clients"])) for e in placed]
        assert len({(r["trial"], r["round"]) for r in table(path)}) == len(table(path)) == 6
    assert pids["--reuse"][0] == pids["--reuse"][1]
    assert not set(pids["--no-reuse"][0]) & set(pids["--no-reuse"][1])
    same = [numbers(only_run(tmp_path / h) / "trials" / "00001" / "seed-3") for h in ("reuse", "no-reuse")]
    assert same[0] == same[1], "what is left of an earlier trial changes nothing"


def test_ctrl_c(rayfed, config, space, tmp_path):
    command = rayfed(
        "sweep", space, config(**{**SMALL, "rounds": 100_000}), "--out", tmp_path / "o", "--address", "local"
    )
    place = until(lambda: only_run(tmp_path / "o") / "trials" / "00000", "the sweep's folder")
    until(lambda: len(read_rows(place)) >= 1, "the first row")
    code, out = rayfed("sweep", "--resume", only_run(tmp_path / "o")).wait()
    assert code == 2 and str(command.process.pid) in out, "another driver is refused while this one lives"
    command.kill(signal.SIGINT)
    code, out = command.wait()
    assert code == 130 and "rayfed sweep --resume" in out, out
    assert table(only_run(tmp_path / "o")), "what there is has been written"


RAISES = """
from rayfed import visit
from rayfed.methods.fedavg import FedAvg

class Raises(FedAvg):
    @visit
    def train(self, task):
        if self.local.optimizer.lr == 0.7:
            raise KeyError("no such rate")
        return super().train(task)
"""


def test_trials_that_diverge_and_trials_that_fail(rayfed, config, tmp_path):
    """The first are results; the others are named, and nobody is sent to try again what must fail again."""
    file, own = tmp_path / "s.py", tmp_path / "own.py"
    own.write_text(RAISES)
    file.write_text(
        "from ray import tune\n"
        "space = {'local.optimizer.lr': tune.grid_search([0.1, 1e30])}\n"
        "fails = {'local.optimizer.lr': tune.grid_search([0.1, 1e30, 0.7])}\n"
    )
    made = config(**SMALL, method={"name": f"{own}:Raises"})
    code, out = rayfed("sweep", file, made, "--out", tmp_path / "o", "--address", "local").wait()
    assert code == 0, out
    assert "[2/2 done]" in out and "2 trials, 1 complete, 1 diverged" in out and "diverged in round 1" in out
    path = only_run(tmp_path / "o")
    assert by_trial(path) == {"00000": [2, 4, 6], "00001": [1]}
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "done" and [d["diverged"] for d in summary["diverged"]] == [1]
    events = [json.loads(line) for line in (path / "trials/00001/seed-3/events.jsonl").read_text().splitlines()]
    assert [e["kind"] for e in events].count("failed") == 1, "it was tried once"
    before = contents(path / "trials")
    shutil.rmtree(path / "tune")  # Tune forgets everything
    code, out = rayfed("sweep", "--resume", path, "--address", "local").wait()
    assert code == 0 and contents(path / "trials") == before, out

    code, out = rayfed("sweep", f"{file}:fails", made, "--out", tmp_path / "f", "--address", "local").wait()
    assert code == 4, out
    path = only_run(tmp_path / "f")
    assert "1 of 3 trials failed; the first: trials/00002" in out and "KeyError: 'no such rate'" in out, out
    assert "would fail again; once it is mended" in out and "--accept-changes" in out
    assert "failed: " in (page := (path / "sweep.html").read_text()) and "no such rate" in page
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "incomplete" and summary["failed"] == 1
    assert summary["trials"] == {"planned": 3, "begun": 3, "complete": 1, "diverged": 1, "failed": 1}
    assert listed(rayfed, tmp_path / "f")["status"] == "failed"
    own.write_text(RAISES.replace("0.7", "0.8"))
    code, out = rayfed("sweep", "--resume", path, "--address", "local").wait()
    assert code == 2 and f"code: {own} was changed" in out and "--accept-changes" in out, out
    code, out = rayfed("sweep", "--resume", path, "--accept-changes", "--address", "local").wait()
    assert code == 0 and "3 trials, 2 complete, 1 diverged" in out and f"code: {own} was changed" in out, out


def test_asha_stops_and_its_runs_can_go_on(rayfed, config, tmp_path):
    file = tmp_path / "s.py"
    file.write_text(
        "from ray import tune\nspace = {'local.optimizer.lr': tune.grid_search([0.3, 0.1, 1e-6, 1e-7, 1e-8, 1e-9])}\n"
    )
    long = {**SMALL, "rounds": 18}
    code, out = rayfed(
        "sweep", file, config(**long), "--scheduler", "asha", "--out", tmp_path / "o", "--address", "local", "--concurrent", "1"
    ).wait()  # fmt: skip
    assert code == 0, out
    path = only_run(tmp_path / "o")
    rounds = {t: max(r) for t, r in by_trial(path).items()}
    assert len(rounds) == 6 and rounds["00000"] == 18 and min(rounds.values()) < 18
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "done" and summary["rounds"] == sum(rounds.values()) < 6 * 18
    left = next(t for t, r in rounds.items() if r < 18)
    code, out = rayfed("resume", path / "trials" / left / "seed-3", "--local").wait()
    assert code == 0, out
    assert len(numbers(path / "trials" / left / "seed-3")) == 18


def test_pbt_clones_runs(rayfed, config, space, tmp_path):
    long = {**SMALL, "rounds": 16, "storage": {"snapshot_every": 16, "keep": 1}}
    code, out = rayfed(
        "sweep", f"{space}:wide", config(**long), "--scheduler", "pbt", "--samples", "4", "--seeds", "0,1",
        "--out", tmp_path / "o", "--address", "local", "--concurrent", "1",
    ).wait()  # fmt: skip
    assert code == 0, out
    path = only_run(tmp_path / "o")
    clones = sorted(path.glob("trials/*/clone-*"))
    assert clones, "nobody was cloned"
    for clone in clones:
        about = json.loads((clone / "point.json").read_text())
        r, source = about["origin"]["round"], path / about["origin"]["folder"]
        assert 0 < r < 16 and 1e-3 <= about["point"]["local.optimizer.lr"] <= 0.5
        for seed in ("seed-0", "seed-1"):
            old, new = numbers(source / seed), numbers(clone / seed)
            assert new[:r] == old[:r] and len(new) > r
    for snapshots in path.glob("trials/**/snapshots"):
        assert len(list(snapshots.iterdir())) == 1, "what may be cloned no more is gone"
    assert all(r[-1] == 16 for r in by_trial(path).values())


def test_a_sweep_in_object_storage_goes_on_elsewhere(env, rayfed, config, space, tmp_path):
    """Every run commits there by itself; another machine (its own cache) brings the sweep and goes on."""
    store = f"file://{tmp_path}/store"
    env["RAYFED_CACHE"] = str(tmp_path / "one")
    long = {**SMALL, "rounds": 40}
    command = rayfed(
        "sweep", space, config(**long), "--seeds", "0,1", "--out", store, "--address", "local", "--concurrent", "1"
    )
    place = until(lambda: only_run(tmp_path / "one" / "runs") / "trials" / "00001", "the sweep's folder")
    until(lambda: len(read_rows(place)) >= 2, "the second trial has reported twice")
    command.kill(signal.SIGINT)
    code, out = command.wait()
    uri = f"{store}/{place.parents[1].name}"
    assert code == 130 and f"rayfed sweep --resume {uri}" in out, out
    ended = visible(place.parent / "00000")
    shutil.move(tmp_path / "one", tmp_path / "lost")
    env["RAYFED_CACHE"] = str(tmp_path / "two")
    code, out = rayfed("resume", uri, "--address", "local").wait()
    assert code == 0 and f"stored: {uri}" in out, out
    path = only_run(tmp_path / "two" / "runs")
    assert by_trial(path) == {t: list(range(2, 41, 2)) for t in ("00000", "00001")}
    assert visible(path / "trials" / "00000") == ended
    kinds = [json.loads(line)["kind"] for line in (path / "trials/00001/seed-0/events.jsonl").read_text().splitlines()]
    assert "resumed" in kinds
    there = Path(uri.removeprefix("file://"))
    for name in ("summary.json", "sweep.html", "sweep.parquet", "trials/00001/seed-1/summary.json"):
        assert (there / name).read_bytes() == (path / name).read_bytes(), "what has ended is under plain names"
    code, out = rayfed(
        "run", config(**long), "--set", "local.optimizer.lr=0.2", "--set", "seed=1", "--out", tmp_path / "alone", "--local"
    ).wait()  # fmt: skip
    assert code == 0, out
    assert numbers(only_run(tmp_path / "alone")) == numbers(path / "trials" / "00001" / "seed-1")


MIXED = """
from ray import tune

space = {
    "local.optimizer.lr": tune.loguniform(1e-7, 0.5),
    "federation.groups": tune.choice([{"kind": "none"}, {"kind": "label_permutation", "count": 2}]),
    "task.model.hidden": tune.choice([[8], [16, 8]]),
}
"""


def test_optuna_with_asha_over_numbers_mappings_and_lists(rayfed, config, tmp_path):
    file = tmp_path / "mixed.py"
    file.write_text(MIXED)
    code, out = rayfed(
        "sweep", file, config(**{**SMALL, "rounds": 18}), "--search", "optuna", "--scheduler", "asha", "--samples", "8",
        "--out", tmp_path / "o", "--address", "local", "--concurrent", "1",
    ).wait()  # fmt: skip
    assert code == 0, out
    path = only_run(tmp_path / "o")
    rounds = {t: max(r) for t, r in by_trial(path).items()}
    assert len(rounds) == 8 and max(rounds.values()) == 18 > min(rounds.values())
    rows = {r["trial"]: r for r in table(path)}
    assert len({r["local.optimizer.lr"] for r in rows.values()}) == 8
    known = {"federation.groups": {"none", "label_permutation(count=2)"}, "task.model.hidden": {"8", "16,8"}}
    for setting, texts in known.items():
        assert {r[setting] for r in rows.values()} == texts, "eight draws have both"
    for trial, row in rows.items():
        config_there = yaml.safe_load((path / "trials" / trial / "seed-3" / "config.yaml").read_text())
        assert value_text(config_there["task"]["model"]["hidden"]) == row["task.model.hidden"]
        assert config_there["federation"]["groups"]["kind"] == row["federation.groups"].partition("(")[0]
    assert (path / "sweep.html").is_file()
