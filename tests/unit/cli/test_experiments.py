"""run and resume: what they print, what they write, how they end. No Ray anywhere."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import rayfed
from rayfed import methods
from rayfed.config.schema import Config, Study
from rayfed.launch.preflight import load_request
from rayfed.metrics import meaning
from tests.unit.cli.commands import TINY, Call, rows, shell, steady, write

# Besides the bookkeeping of the folder (lock.json and hidden files), exactly this.
FOLDER = {
    "config.yaml", "provenance.json", "metrics.parquet", "clients", "state.json", "summary.json", "events.jsonl", "snapshots", "model",
    "report.html", "plots", "tensorboard",
}  # fmt: skip
BOTH_MEANS = ("personal", "cluster", "local", "unseen")
SCORES = {
    f"{m}/{s}" for m in ("accuracy", "loss") for s in ("global", *BOTH_MEANS, *(f"{s}_ex" for s in BOTH_MEANS))
} | {"clusters/ari", "clusters/count"}  # fmt: skip
EVERY_ROUND = {"bytes/up", "bytes/down", "ray/bytes", "time/round"}


# -- run, then resume ----------------------------------------------------------------------------------------------------


class World:
    """A finished run of two rounds, and what its command printed."""

    def __init__(self, base: Path):
        self.base = base
        write(base / "tiny.yaml", TINY)
        no_ray = base / "no_ray"
        no_ray.mkdir()
        (no_ray / "ray.py").write_text("raise ImportError('--local uses no Ray')")
        self.said = shell("run", "tiny.yaml", "--local", cwd=base, hide=no_ray)
        assert self.said.returncode == 0, self.said.stderr
        (self.run,) = (base / "out").iterdir()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_run_shows_rounds_a_table_and_the_report(world: World) -> None:
    out = world.said.stdout
    assert re.search(r"^round 2/2  accuracy/global 0\.\d{3}  accuracy/personal 0\.\d{3}", out, re.M)
    final = rows(world.run / "metrics.parquet")[-1]
    assert re.search(rf"accuracy/unseen .* {final['accuracy/unseen']:.4f} ", out)
    assert "disue, 2 rounds in " in out
    assert out.splitlines()[-1] == f"report: out/{world.run.name}/report.html"
    assert "Traceback" not in world.said.stderr
    assert re.fullmatch(r"tiny-\d{8}-\d{6}-[0-9a-f]{4}", world.run.name)


def test_the_run_folder_holds_what_the_contract_says(world: World) -> None:
    there = {p.name for p in world.run.iterdir()}
    assert there - {".lock", "lock.json"} == FOLDER
    assert {p.name for p in (world.run / "snapshots").iterdir()} == {"round-000001", "round-000002"}
    assert any((world.run / "plots").glob("*.png")) and any((world.run / "tensorboard").iterdir())
    assert not [p for p in world.run.rglob(".*") if p.name != ".lock"]  # no temporaries left


CHOSEN = ("visits", "matmul", "channels_last")  # what a run chooses, and writes, where its executor is set


def test_the_resolved_config_is_the_one_that_ran(world: World) -> None:
    resolved = load_request(world.run / "config.yaml")
    assert isinstance(resolved, Config)
    left = [getattr(resolved.resources, n) for n in CHOSEN]
    assert "auto" not in left and resolved.with_resources(**dict.fromkeys(CHOSEN, "auto")) == load_request(TINY)
    assert yaml.safe_load((world.run / "config.yaml").read_text())["evaluate"] == {
        "every": 2, "clients": "auto", "split": "test", "finetune_epochs": 0, "finetune_lr": None, "rows": [], "metrics": None,
        "adversary": None, "retained": None,
    }  # fmt: skip


def test_rows_have_the_contracts_metrics_and_null_where_not_evaluated(world: World) -> None:
    table = pq.read_table(world.run / "metrics.parquet")
    first, last = table.to_pylist()
    assert table.column_names[0] == "round" and (first["round"], last["round"]) == (1, 2)
    assert set(table.column_names) >= SCORES | EVERY_ROUND
    assert all(first[m] is None and last[m] is not None for m in SCORES)
    assert all(first[m] is not None and last[m] is not None for m in EVERY_ROUND)
    declared = methods.get("disue").logs
    logs = {n: declared[n] for n in table.column_names if n in declared}  # some are of other settings
    assert any(n.startswith("distill/") for n in logs)
    assert not [m for m in table.column_names[1:] if not meaning(m, declared)]
    page = (world.run / "report.html").read_text()
    assert (
        all(f"<td>{n}</td><td>{text}</td>" in page for n, (text, _) in logs.items()) and "method&#x27;s own" not in page
    )


def test_means_are_over_clients_or_over_examples(world: World) -> None:
    """From the clients' rows, worked out again."""
    last = rows(world.run / "metrics.parquet")[-1]
    clients = rows(world.run / "clients" / "round-000002.parquet")
    assert [c["client"] for c in clients] == list(range(12))
    assert sum(c["unseen"] for c in clients) == 2  # 20 % of 12
    for scope, unseen in (("personal", False), ("unseen", True)):
        mine = [c for c in clients if c["unseen"] is unseen and c["test_examples"]]
        for metric in ("accuracy", "loss"):
            values, n = [c[metric] for c in mine], [c["test_examples"] for c in mine]
            assert last[f"{metric}/{scope}"] == pytest.approx(sum(values) / len(values), rel=1e-9)
            weighted = sum(v * k for v, k in zip(values, n, strict=True)) / sum(n)
            assert last[f"{metric}/{scope}_ex"] == pytest.approx(weighted, rel=1e-9)


def test_a_row_of_each_client(world: World) -> None:
    files = sorted(p.name for p in (world.run / "clients").iterdir())
    assert files == ["round-000002.parquet"]  # only where evaluated
    clients = rows(world.run / "clients" / files[0])
    assert set(clients[0]) >= {"client", "group", "cluster", "examples", "loss", "accuracy", "seconds"}
    assert {c["group"] for c in clients} == {0, 1}
    assert {c["cluster"] for c in clients if c["cluster"] is not None} <= {0, 1}
    assert sum(c["examples"] + c["test_examples"] for c in clients) == 320  # to train on, and each client's own test
    assert all(0 <= c["accuracy"] <= 1 and c["loss"] > 0 for c in clients if c["test_examples"])


def test_summary_says_final_and_best_of_each_metric(world: World) -> None:
    summary = json.loads((world.run / "summary.json").read_text())
    about = {k: summary[k] for k in ("status", "rounds", "method", "seed", "executor")}
    assert about == {"status": "done", "rounds": 2, "method": "disue", "seed": 3, "executor": "loop"}
    assert summary["wall_s"] > 0 and {"rayfed", "torch", "numpy", "python", "ray"} <= summary["versions"].keys()
    found = rows(world.run / "metrics.parquet")
    assert set(summary["metrics"]) == set(found[0]) - {"round"}
    for name in ("bytes/up", "accuracy/global", "loss/cluster", "ray/bytes"):
        seen = [(r["round"], r[name]) for r in found if r[name] is not None]
        best = (max if name.startswith("accuracy") else min)(seen, key=lambda x: x[1])
        assert summary["metrics"][name] == {"final": seen[-1][1], "best": best[1], "best_round": best[0]}


def test_state_and_events(world: World) -> None:
    state = json.loads((world.run / "state.json").read_text())
    assert (state["status"], state["round"], state["rounds"], state["run"]) == ("done", 2, 2, world.run.name)
    events = [json.loads(line) for line in (world.run / "events.jsonl").read_text().splitlines()]
    assert [e["kind"] for e in events] == ["created", "executor", "finished"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", e["time"]) for e in events)


def test_the_final_models_can_be_read(world: World) -> None:
    run = rayfed.load(world.run)
    assert sorted(p.name for p in (world.run / "model").iterdir()) == [
        "expert-0.safetensors", "expert-1.safetensors", "model.safetensors",
    ]  # fmt: skip
    for name in ("model", "expert-1"):
        shapes = {k: tuple(v.shape) for k, v in run.model(name).items()}
        assert sorted(shapes.values()) == sorted([(8, 8), (8,), (4, 8), (4,)])


def test_the_report_is_one_page_about_this_run(world: World) -> None:
    page = (world.run / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html") and "disue" in page and "accuracy/global" in page


def test_resume_makes_a_run_longer_with_the_rows_of_one_that_never_stopped(
    world: World, call: Call, no_pictures: None
) -> None:
    """Last of this folder's tests: it changes the folder."""
    before = rows(world.run / "metrics.parquet")
    said = shell("resume", f"out/{world.run.name}", "--local", "--json", "--set", "rounds=3", cwd=world.base)
    assert said.returncode == 0, said.stderr
    printed = json.loads(said.stdout)
    assert (printed["path"], printed["status"], printed["summary"]["rounds"]) == (f"out/{world.run.name}", "done", 3)
    after = rows(world.run / "metrics.parquet")
    assert steady(after[:2]) == steady(before) and len(after) == 3
    resolved = load_request(world.run / "config.yaml")
    assert isinstance(resolved, Config)
    assert resolved.with_resources(**dict.fromkeys(CHOSEN, "auto")) == load_request({**TINY, "rounds": 3})
    assert {p.name for p in (world.run / "snapshots").iterdir()} == {"round-000002", "round-000003"}  # keep: 2
    kinds = [json.loads(x)["kind"] for x in (world.run / "events.jsonl").read_text().splitlines()]
    assert kinds[:4] == ["created", "executor", "finished", "opened"] and kinds[-1] == "finished"
    assert {"settings", "resumed"} <= set(kinds)

    whole = call("run", str(world.base / "tiny.yaml"), "--local", "--json", "--set", "rounds=3", "--out", "whole")
    assert whole.code == 0, whole.err
    other = Path(json.loads(whole.out)["path"])
    assert other.parts[0] == "whole"  # --out overrides storage.path
    assert steady(rows(other / "metrics.parquet")) == steady(after)
    for part in ("model/model.safetensors", "model/expert-0.safetensors"):
        assert (other / part).read_bytes() == (world.run / part).read_bytes()
    assert steady(rows(other / "clients/round-000003.parquet")) == steady(
        rows(world.run / "clients/round-000003.parquet")
    )


def test_resume_refuses_what_would_change_the_past(world: World, call: Call) -> None:
    kept = (world.run / "config.yaml").read_bytes()
    for change in ("seed=4", "method.clusters=3", "federation.clients=5", "name=x"):
        said = call("resume", str(world.run), "--local", "--set", change)
        assert said.code == 2 and f"--set {change.partition('=')[0]}: a resumed run keeps its" in said.err
    said = call("resume", str(world.run), "--local", "--set", "rounds=0")
    assert said.code == 2 and "rounds: 0 found" in said.err
    assert (world.run / "config.yaml").read_bytes() == kept
    assert (world.run / "summary.json").exists()


# -- a study -------------------------------------------------------------------------------------------------------------

ARMS = {
    "rounds": 1,
    "evaluate": {"every": 1},
    "seeds": [0, 5],
    "arms": {"plain": {"method": "fedavg"}, "three": {"method": {"name": "ifca", "clusters": 3}}},
    "claim": {"metric": "accuracy/global", "at": 1, "better": "three", "than": "plain"},
}


def test_a_study(call: Call, no_pictures: None, tmp_path: Path) -> None:
    write(tmp_path / "study.yaml", {**TINY, **ARMS})
    said = call("run", "study.yaml", "--local")
    assert said.code == 0, said.err
    (path,) = (tmp_path / "out").iterdir()
    assert said.out.splitlines()[-1] == f"report: out/{path.name}/report.html"
    assert {p.name for p in path.iterdir()} - {"plots"} == {
        "study.yaml", "provenance.json", "results.parquet", "summary.json", "report.html", "plain", "three",
    }  # fmt: skip
    again = load_request(path / "study.yaml")
    assert isinstance(again, Study) and again == load_request({**TINY, **ARMS})

    found = {(a, s): path / a / f"seed-{s}" for a in ("plain", "three") for s in (0, 5)}
    finals = {k: rows(p / "metrics.parquet")[-1] for k, p in found.items()}
    for (arm, seed), where in found.items():
        assert {p.name for p in where.iterdir()} - {".lock", "lock.json"} == FOLDER - {"report.html", "plots"}
        config = load_request(where / "config.yaml")
        assert isinstance(config, Config)
        assert (config.seed, config.method.name) == (seed, {"plain": "fedavg", "three": "ifca"}[arm])
    split = {
        k: [(c["client"], c["group"], c["examples"]) for c in rows(p / "clients/round-000001.parquet")]
        for k, p in found.items()
    }
    assert split["plain", 0] == split["three", 0] != split["plain", 5] == split["three", 5]

    results = rows(path / "results.parquet")
    assert {(r["arm"], r["seed"], r["round"]) for r in results} == {(a, s, 1) for a, s in found}
    assert all(r["loss/global"] == finals[r["arm"], r["seed"]]["loss/global"] for r in results)

    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "done" and set(summary["arms"]) == {"plain", "three"}
    table = {line.split("│")[1].strip(): line for line in said.out.splitlines() if line.count("│") > 3}
    assert set(table) >= {"plain", "three"}
    for arm, about in summary["arms"].items():
        a, b = (finals[arm, s]["accuracy/global"] for s in (0, 5))
        mean, sd = (a + b) / 2, abs(a - b) / math.sqrt(2)
        assert about["accuracy/global"]["mean"] == pytest.approx(mean)
        assert about["accuracy/global"]["sd"] == pytest.approx(sd)
        assert f"{about['accuracy/global']['mean']:.3f} ± {about['accuracy/global']['sd']:.3f}" in table[arm]
    assert summary["claim"]["n"] == 2
    assert f"at round 1: {summary['claim']['verdict']}" in said.out

    stamps = {p: p.stat().st_mtime_ns for p in path.rglob("metrics.parquet")}
    listed = call("runs", "out").out.split()
    assert listed == [path.name, "study", "plain,", "three", "4/4", "done"]
    assert call("resume", str(path), "--local").code == 0  # nothing left to do
    assert {p: p.stat().st_mtime_ns for p in path.rglob("metrics.parquet")} == stamps


# -- stopped and broken --------------------------------------------------------------------------------------------------

OWN = """
import os, signal
from rayfed.methods.fedavg import FedAvg

class Stopped(FedAvg):
    def round(self, state, fed, task):
        if fed.round == 2 and not os.path.exists("asked"):
            open("asked", "w").close()
            os.kill(os.getpid(), signal.{signal})
        return super().round(state, fed, task)

class Broken(FedAvg):
    def round(self, state, fed, task):
        if fed.round == 2:
            raise ArithmeticError("seven is not eight")
        return super().round(state, fed, task)
"""


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped_by_a_signal_and_resumed(call: Call, no_pictures: None, tmp_path: Path, signal: str, code: int) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("{signal}", signal))
    write(tmp_path / "c.yaml", {**TINY, "method": "own.py:Stopped", "rounds": 3})
    said = call("run", "c.yaml", "--local")
    (path,) = (tmp_path / "out").iterdir()
    assert said.code == code and f"rayfed resume out/{path.name}" in said.err and "Traceback" not in said.err
    assert not (path / "summary.json").exists()
    assert rayfed.load(path).metrics()["round"].to_pylist() == [1, 2]  # the current round was committed
    listed = json.loads(call("runs", "out", "--json").out)[0]
    assert (listed["round"], listed["status"].split()[0]) == (2, "stopped")
    again = call("resume", str(path), "--local", "--json")
    assert again.code == 0 and json.loads(again.out)["summary"]["rounds"] == 3


def test_a_second_signal_is_no_failure_of_the_client_that_it_hits(
    call: Call, no_pictures: None, tmp_path: Path
) -> None:
    own = """
import os, signal
from rayfed import visit
from rayfed.methods.fedavg import FedAvg

class Twice(FedAvg):
    @visit
    def train(self, task):
        inner = super().train(task)
        def end(*given):
            if os.path.exists("go") and not os.path.exists("asked"):
                open("asked", "w").close()
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            return inner.end(*given)
        return inner._replace(end=end)

    def round(self, state, fed, task):
        if fed.round == 2:
            open("go", "w").close()
        return super().round(state, fed, task)
"""
    (tmp_path / "own.py").write_text(own)
    write(tmp_path / "c.yaml", {**TINY, "method": "own.py:Twice", "failures": {"client_error": "drop"}})
    said = call("run", "c.yaml", "--local")
    assert said.code == 143 and "interrupted at once" in said.err
    (path,) = (tmp_path / "out").iterdir()
    assert rayfed.load(path).metrics()["round"].to_pylist() == [1]
    assert call("resume", str(path), "--local").code == 0


def test_weights_that_sum_to_zero_end_the_run(call: Call, tmp_path: Path) -> None:
    own = """
import torch
from rayfed import PARAMS, SCALAR, Method, Part, Wire, mean, sgd_visit, visit

class ZeroWeights(Method):
    wire = Wire(down={"model": Part(PARAMS)}, up={"model": Part(PARAMS), "q": Part(SCALAR)}, server={"model": Part(PARAMS)})

    @visit
    def train(self, task):
        return sgd_visit(task.loss, self.local, end=lambda client, carry: ({"model": carry["model"], "q": torch.zeros(())}, client.own))

    def round(self, state, fed, task):
        got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("model", weight="q"))
        return {"model": got.folded["model"]}
"""
    (tmp_path / "own.py").write_text(own)
    write(tmp_path / "c.yaml", {**TINY, "method": "own.py:ZeroWeights"})
    said = call("run", "c.yaml", "--local")
    assert said.code == 4 and "the weights of part 'model' sum to 0 (weight: 'q')" in said.err
    assert "Traceback" not in said.err and "resume" not in said.err


def test_a_run_that_breaks_ends_with_4_and_says_how_to_go_on(call: Call, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("{signal}", "SIGINT"))
    write(tmp_path / "c.yaml", {**TINY, "method": "own.py:Broken"})
    said = call("run", "c.yaml", "--local")
    (path,) = (tmp_path / "out").iterdir()
    assert said.code == 4 and "seven is not eight" in said.err and "It would fail there again" in said.err
    assert f"out/{path.name}" in said.err and "resume" not in said.err + call("runs", "out").out
    assert rayfed.load(path).metrics()["round"].to_pylist() == [1]
    assert not (path / "summary.json").exists()


LEAVES = """
import sys
import rayfed
from rayfed import visit
from rayfed.methods.fedavg import FedAvg

def data(seed):
    sys.exit(0)

def net(classes, shape):
    raise KeyboardInterrupt

class Checks(FedAvg):
    def check(self, config):
        sys.exit(0)

class Fits(FedAvg):
    def fits(self, federation):
        raise KeyboardInterrupt

class Starts(FedAvg):
    def __init__(self, settings, config):
        sys.exit(0)

class Rounds(FedAvg):
    def round(self, state, fed, task):
        sys.exit(0)

class Visits(FedAvg):
    @visit
    def train(self, task):
        sys.exit(0)
"""


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (
            {"task": {**TINY["task"], "data": "own.py:data"}},
            2,
            "task.data: own.py:data raised SystemExit: 0 (own.py, line 8)",
        ),
        (
            {"task": {**TINY["task"], "model": "own.py:net"}},
            2,
            "task.model: own.py:net raised KeyboardInterrupt (own.py, line 11)",
        ),
        ({"method": "own.py:Checks"}, 2, "method.name: check of own.py:Checks raised SystemExit: 0 (own.py, line 15)"),
        ({"method": "own.py:Fits"}, 2, "method.name: fits of own.py:Fits raised KeyboardInterrupt (own.py, line 19)"),
        ({"method": "own.py:Starts"}, 2, "check of own.py:Starts raised SystemExit: 0 (own.py, line 23)"),
        ({"method": "own.py:Rounds"}, 4, "SystemExit: 0 (own.py, line 27)"),
        ({"method": "own.py:Visits"}, 4, "SystemExit: 0 (own.py, line 32)"),
        ({"method": "gone.py:Gone"}, 2, "method.name: gone.py cannot be imported: SystemExit: 0 (gone.py, line 2)"),
    ],
)
def test_an_exit_of_own_code_is_its_error(
    call: Call, no_pictures: None, tmp_path: Path, change: dict[str, object], code: int, named: str
) -> None:
    (tmp_path / "own.py").write_text(LEAVES)
    (tmp_path / "gone.py").write_text("import sys\nsys.exit(0)\n")
    write(tmp_path / "c.yaml", {**TINY, "method": "fedavg", **change})
    said = call("run", "c.yaml", "--local")
    assert said.code == code and named in said.err, said.err
    assert (tmp_path / "out").exists() == (code == 4)
