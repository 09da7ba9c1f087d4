"""MLflow and W&B as modules of this file, which keep every call; and the events of a run."""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

ROW = {"round": 1, "loss/global": 0.5, "accuracy/global": None, "time/round": 0.1, "bytes/up": 7}


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
