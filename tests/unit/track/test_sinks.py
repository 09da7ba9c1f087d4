"""Sinks: what each is told, what happens when one fails, and what a missing package says. MLflow and W&B are played by
modules of this file, so that every call is seen; where the real ones are installed, they are asked too."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from rayfed import track
from rayfed.config.schema import load_config
from rayfed.errors import ConfigError
from rayfed.track import Sinks
from tests import toy

ROWS = {"round": 1, "loss/global": 0.5, "accuracy/global": None, "time/round": 0.1, "bytes/up": 7}


def installed(monkeypatch: pytest.MonkeyPatch, **modules: types.ModuleType) -> None:
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="here")
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)


class FakeMLflow:
    """One store, as a server keeps it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, uri: str | None = None):
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.stores: list[str] = []
        self.broken = False
        self.retries: set[str | None] = set()
        mlflow, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
        mlflow.is_tracking_uri_set = lambda: uri is not None  # type: ignore[attr-defined]
        mlflow.get_tracking_uri = lambda: uri  # type: ignore[attr-defined]
        mlflow.MlflowClient = self.client  # type: ignore[attr-defined]
        entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
        entities.Metric = lambda key, value, timestamp, step: (key, value, step)  # type: ignore[attr-defined]
        installed(monkeypatch, mlflow=mlflow, mlflow__entities=entities, sqlalchemy=types.ModuleType("sqlalchemy"))

    def client(self, tracking_uri: str) -> FakeMLflow:
        self.stores.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        self.experiments[name] = f"e{len(self.experiments)}"
        return self.experiments[name]

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        made = f"r{len(self.runs)}"
        self.runs[made] = {"name": run_name, "in": experiment_id, "params": {}, "metrics": [], "status": ["RUNNING"]}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=made))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"].append(status)

    set_terminated = update_run

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [types.SimpleNamespace(step=s) for k, _, s in self.runs[run_id]["metrics"] if k == key]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.retries.add(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))
        if self.broken:
            raise ConnectionError("no route to host\nsecond line")
        assert len(params) <= 100
        known = self.runs[run_id]["params"]
        assert not known.keys() & {k for k, _ in params}  # MLflow refuses to change one
        known.update(params)
        self.runs[run_id]["metrics"] += metrics


class FakeWandB:
    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exits: list[int] = []
        self.summary: dict[str, Any] = {}
        self.url, self.dir = None, "there"
        wandb = types.ModuleType("wandb")
        wandb.init = self.init  # type: ignore[attr-defined]
        wandb.Settings = lambda **k: k  # type: ignore[attr-defined]
        installed(monkeypatch, wandb=wandb)

    def init(self, **arguments: Any) -> FakeWandB:
        self.inits.append(arguments)
        self.id = arguments["id"]
        return self

    def log(self, row: dict[str, float], step: int) -> None:
        self.logged.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.exits.append(exit_code)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e for e in found if e["kind"] == kind]


# -- before the start ----------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    absent = ("mlflow", "wandb", "sqlalchemy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in absent else real(n, *a))


@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_package_is_told_with_its_extra() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({**toy.TOY, "method": "fedavg", "track": ["tensorboard", "mlflow", "wandb"]})
    assert caught.value.problems == [
        "track.1: 'mlflow' needs the package mlflow, which is not installed; pip install 'rayfed-engine[mlflow]'",
        "track.2: 'wandb' needs the package wandb, which is not installed; pip install 'rayfed-engine[wandb]'",
    ]


def test_the_extras_are_the_projects() -> None:
    from tests.conftest import ROOT

    project = (ROOT / "pyproject.toml").read_text()
    assert 'name = "rayfed-engine"' in project
    for extra in track.EXTRAS:
        assert f'\n{extra} = ["{extra}>=' in project and extra in track.SINKS


def test_a_folder_of_logs_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B itself makes a folder wandb/ where it is run."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    assert "needs the package wandb" in track.missing(["wandb"])[0]


def test_mlflow_needs_a_database_only_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    FakeMLflow(monkeypatch)
    assert track.missing(["mlflow"]) == []
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "sqlalchemy" else real(n, *a))
    assert "needs the package sqlalchemy" in track.missing(["mlflow"])[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example")
    assert track.missing(["mlflow"]) == []


# -- runs ----------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_one_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    fake = FakeMLflow(monkeypatch)
    first = toy.run_folder("fedavg", tmp_path, rounds=4, stop_after=3, track=["mlflow"])
    assert first.ending.status == "stopped"
    (run,) = fake.runs.values()
    assert run["status"] == ["RUNNING", "KILLED"]
    toy.run_folder("fedavg", tmp_path, rounds=4, resume=True, track=["mlflow"])
    (run,) = fake.runs.values()
    assert run["status"][1:] == ["KILLED", "RUNNING", "FINISHED"]
    assert [s for k, _, s in run["metrics"] if k == "bytes/up"] == [1, 2, 3, 4]
    assert [(s, v) for k, v, s in run["metrics"] if k == "loss/global"] == [
        (r["round"], r["loss/global"]) for r in first.folder.metrics().to_pylist()
    ]
    assert run["params"]["method.name"] == "fedavg" and run["params"]["federation.partition.alpha"] == "0.5"
    assert fake.experiments == {"rayfed": run["in"]} and run["name"] == first.folder.run_id
    assert fake.stores == [f"sqlite:///{tmp_path / 'mlflow.db'}"] * 2
    assert [e["id"] for e in events(first.folder.path, "tracking")] == ["r0", "r0"]


def test_a_round_that_mlflow_has_is_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow(monkeypatch)
    for rounds in ((1, 2, 3), (2, 3, 4)):
        sinks = Sinks(["mlflow"], lambda kind, **fields: None)
        sinks.open("run", {"name": "x"}, tmp_path)
        for r in rounds:
            sinks.row(r, ROWS)
        sinks.close("stopped")
        assert not sinks.notes
    assert [s for k, _, s in fake.runs["r0"]["metrics"] if k == "time/round"] == [1, 2, 3, 4]
    assert {k for k, _, _ in fake.runs["r0"]["metrics"]} == {"loss/global", "time/round", "bytes/up"}


def test_arms_of_a_study_share_a_store_and_a_server_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = tmp_path / "runs" / "study-1" / "a" / "seed-0"
    arm.mkdir(parents=True)
    (arm.parents[1] / "study.yaml").write_text("")
    for uri, store in ((None, f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"), ("https://there", "https://there")):
        fake = FakeMLflow(monkeypatch, uri)
        Sinks(["mlflow"], lambda kind, **fields: None).open("run", {"name": "x"}, arm)
        assert fake.stores == [store] and len(fake.runs) == 1  # another store has no run of that id


def test_a_server_that_is_away_does_not_hold_the_run_up_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    for said, used in ((None, "3"), ("9", "9")):
        monkeypatch.setenv(name, said) if said else monkeypatch.delenv(name, raising=False)
        fake = FakeMLflow(monkeypatch, f"https://{used}")
        sinks = Sinks(["mlflow"], lambda kind, **fields: None)
        sinks.open("run", {"name": "x"}, tmp_path)
        sinks.row(1, ROWS)
        assert fake.retries == {used} and os.environ.get(name) == said


def test_wandb_continues_the_run_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    fake = FakeWandB(monkeypatch)
    first = toy.run_folder("fedavg", tmp_path, rounds=3, stop_after=2, track=["wandb"])
    toy.run_folder("fedavg", tmp_path, rounds=3, resume=True, track=["wandb"])
    assert [i["id"] for i in fake.inits] == [first.folder.run_id] * 2
    assert all(i["resume"] == "allow" and i["project"] == "rayfed" for i in fake.inits)
    assert fake.inits[0]["config"]["method"] == {"name": "fedavg"} and fake.inits[0]["dir"] == first.folder.path
    assert [s for s, _ in fake.logged] == [1, 2, 3] and fake.exits == [0, 0] and fake.summary == {"status": "done"}
    assert all(None not in row.values() and "round" not in row for _, row in fake.logged)


# -- failures ------------------------------------------------------------------------------------------------------------


def test_a_sink_that_fails_does_not_end_the_run_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMLflow(monkeypatch)
    wandb = FakeWandB(monkeypatch)
    log = wandb.log

    def fails_after_one(row: dict[str, float], step: int) -> None:
        log(row, step)
        fake.broken = True

    wandb.log = fails_after_one  # type: ignore[method-assign]
    ran = toy.run_folder("fedavg", tmp_path, rounds=3, track=["mlflow", "wandb", "tensorboard"])
    assert ran.ending.status == "done" and [r["round"] for r in ran.rows] == [1, 2, 3]
    (told,) = events(ran.folder.path, "tracking failed")
    assert told["sink"] == "mlflow" and "second line" in told["error"]
    notes = json.loads((ran.folder.path / "summary.json").read_text())["notes"]
    about = "track: mlflow failed (ConnectionError: no route to host); it ends before round 2, the run folder has everything"
    assert [n for n in notes if n.startswith("track")] == [about]
    assert [s for s, _ in wandb.logged] == [1, 2, 3]  # the others go on
    assert any((ran.folder.path / "tensorboard").iterdir())
    assert fake.runs["r0"]["status"] == ["RUNNING", "FAILED"]


def test_a_sink_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandB(monkeypatch)

    def refuse(**arguments: Any) -> Any:
        raise RuntimeError("api key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    ran = toy.run_folder("fedavg", tmp_path, rounds=1, track=["wandb"])
    assert ran.ending.status == "done" and not fake.logged
    (told,) = events(ran.folder.path, "tracking failed")
    assert "api key not configured" in told["note"] and "nothing was written to it" in told["note"]


def test_a_run_that_fails_is_marked_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, wandb = FakeMLflow(monkeypatch), FakeWandB(monkeypatch)
    monkeypatch.setattr("rayfed.engine.runner.Runner.evaluate", lambda *a: 1 / 0)
    with pytest.raises(Exception, match="division by zero"):
        toy.run_folder("fedavg", tmp_path, track=["mlflow", "wandb"])
    assert fake.runs["r0"]["status"][-1] == "FAILED" and wandb.exits == [1]


# -- for real ------------------------------------------------------------------------------------------------------------


def test_real_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = toy.run_folder("fedavg", tmp_path, rounds=3, stop_after=2, track=["mlflow"])
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("rayfed").experiment_id])
    assert run.info.status == "KILLED" and run.data.params["rounds"] == "3"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "ray/bytes/up")] == [1, 2]
    sinks = Sinks(["mlflow"], lambda kind, **fields: None)
    sinks.open(first.folder.run_id, {"name": "toy"}, first.folder.path)
    for r in (2, 3):
        sinks.row(r, ROWS)
    sinks.close("done")
    (run,) = client.search_runs([client.get_experiment_by_name("rayfed").experiment_id])
    assert not sinks.notes and run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "time/round")] == [1, 2, 3]


def test_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ran = toy.run_folder("fedavg", tmp_path, rounds=2, track=["wandb"])
    assert not events(ran.folder.path, "tracking failed")
    (where,) = (ran.folder.path / "wandb").glob(f"offline-run-*-{ran.folder.run_id}")
    stored = (where / f"run-{ran.folder.run_id}.wandb").read_bytes()
    assert repr(ran.rows[-1]["loss/global"]).encode() in stored
