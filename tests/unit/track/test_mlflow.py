"""The MLflow sink: one MLflow run per rayfed run, in a local store or on a server."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from rayfed import track
from rayfed.track import Sinks
from tests import toy
from tests.unit.track.fakes import ROW, FakeMLflow, events


def test_mlflow_needs_a_database_only_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    FakeMLflow(monkeypatch)
    assert track.missing(["mlflow"]) == []
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "sqlalchemy" else real(n, *a))
    assert "needs the package sqlalchemy" in track.missing(["mlflow"])[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example")
    assert track.missing(["mlflow"]) == []


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
            sinks.row(r, ROW)
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
        sinks.row(1, ROW)
        assert fake.retries == {used} and os.environ.get(name) == said


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
        sinks.row(r, ROW)
    sinks.close("done")
    (run,) = client.search_runs([client.get_experiment_by_name("rayfed").experiment_id])
    assert not sinks.notes and run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "time/round")] == [1, 2, 3]
