"""MLflow: the server of MLFLOW_TRACKING_URI, or else `mlflow.db` in the folder of run folders (`mlflow ui` reads it).

Settings become parameters, and a metric's steps are rounds. The experiment is MLFLOW_EXPERIMENT_NAME, by default `rayfed`.
The run folder's `mlflow.json` keeps the id of the MLflow run, so that a resumed run continues it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayfed.storage.atomic import durable_write
from rayfed.storage.saved_config import flatten
from rayfed.storage.text_files import json_bytes, read_json
from rayfed.track import Row

PARAMS = 100  # in one call, MLflow's limit
LONGEST = 500  # characters of a parameter, also MLflow's limit
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # its default delays a run by four minutes
END_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@contextmanager
def _few_retries() -> Iterator[None]:
    """Give up a server that does not answer after about 15 s, unless the user has set the number of retries."""
    if RETRIES in os.environ:
        yield
        return
    os.environ[RETRIES] = "3"
    try:
        yield
    finally:
        del os.environ[RETRIES]


class MLflow:
    """Logs a run to MLflow."""

    @_few_retries()
    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Create the MLflow run, or continue that of `mlflow.json`: rounds that it has already are not written again."""
        import mlflow

        store = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else _local_store(folder)
        self.client = mlflow.MlflowClient(tracking_uri=store)
        self.last = 0
        file = folder / "mlflow.json"
        known = read_json(file)
        if known.get("store") == store and known.get("run"):
            self.id = str(known["run"])
            self.client.update_run(self.id, status="RUNNING")
            steps = [m.step for m in self.client.get_metric_history(self.id, "time/round")]
            self.last = max(steps, default=0)
        else:
            tags = {
                "mlflow.source.name": "rayfed",
                "rayfed.run": run,
                "rayfed.folder": str(folder.resolve()),
            }
            self.id = self.client.create_run(self._experiment(store, folder), run_name=run, tags=tags).info.run_id
            durable_write(file, json_bytes({"store": store, "run": self.id}))
            self._log_settings(config)
        return {"id": self.id, "store": store}

    def _experiment(self, store: str, folder: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "rayfed"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            artifacts = None if store != _local_store(folder) else (_runs_folder(folder) / "mlartifacts").as_uri()
            try:
                return self.client.create_experiment(name, artifact_location=artifacts)
            except Exception:  # another run may have created it in the meantime
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def _log_settings(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        settings = [Param(k, v[:LONGEST]) for k, v in flatten(config).items()]
        for at in range(0, len(settings), PARAMS):
            self.client.log_batch(self.id, params=settings[at : at + PARAMS])

    @_few_retries()
    def row(self, round: int, metrics: Row) -> None:
        """Log one step of every metric that was measured."""
        from mlflow.entities import Metric

        if round <= self.last:
            return
        now = int(time.time() * 1000)
        found = [Metric(k, float(v), now, round) for k, v in metrics.items() if k != "round" and v is not None]
        self.client.log_batch(self.id, metrics=found)

    @_few_retries()
    def close(self, status: str) -> None:
        """Set the MLflow run to FINISHED, KILLED (stopped) or FAILED."""
        self.client.set_terminated(self.id, END_STATUS.get(status, "FAILED"))


def _runs_folder(folder: Path) -> Path:
    """Return the folder of run folders, also for an arm of a study."""
    folder = folder.resolve()
    study = folder.parents[1]
    in_study = folder.name.startswith("seed-") and (study / "study.yaml").is_file()
    return study.parent if in_study else folder.parent


def _local_store(folder: Path) -> str:
    """Return the URI of the database for runs without a server."""
    return f"sqlite:///{_runs_folder(folder) / 'mlflow.db'}"
