"""MLflow: the server of MLFLOW_TRACKING_URI, or else `mlflow.db` beside the run folders (`mlflow ui` reads it).

Settings are parameters, metrics have rounds as steps. Experiment: MLFLOW_EXPERIMENT_NAME, or `rayfed`. The id of the MLflow
run stays in the run folder's `mlflow.json`; a resumed run continues it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayfed.storage.atomic import durable_write, json_bytes, read_json
from rayfed.track import Row

PARAMS = 100  # in one call, MLflow's limit
LONGEST = 500  # characters of a parameter, likewise
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # its default holds a run up for four minutes
ENDS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@contextmanager
def _impatient() -> Iterator[None]:
    """A server that does not answer is given up after some 15 s, unless the user has said otherwise."""
    if RETRIES in os.environ:
        yield
        return
    os.environ[RETRIES] = "3"
    try:
        yield
    finally:
        del os.environ[RETRIES]


class MLflow:
    @_impatient()
    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Of a resumed run, rounds that are there already are not written twice: they have the same numbers."""
        import mlflow

        store = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else _beside(folder)
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
                "rayfed.storage.run_folder": str(folder.resolve()),
            }
            self.id = self.client.create_run(self._experiment(store, folder), run_name=run, tags=tags).info.run_id
            durable_write(file, json_bytes({"store": store, "run": self.id}))
            self._params(config)
        return {"id": self.id, "store": store}

    def _experiment(self, store: str, folder: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "rayfed"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = None if store != _beside(folder) else (_home(folder) / "mlartifacts").as_uri()
            try:
                return self.client.create_experiment(name, artifact_location=place)
            except Exception:  # another run may have made it in the meantime
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def _params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        from rayfed.report.data import flat

        settings = [Param(k, v[:LONGEST]) for k, v in flat(config).items()]
        for at in range(0, len(settings), PARAMS):
            self.client.log_batch(self.id, params=settings[at : at + PARAMS])

    @_impatient()
    def row(self, round: int, metrics: Row) -> None:
        """One step of every metric that was measured."""
        from mlflow.entities import Metric

        if round <= self.last:
            return
        now = int(time.time() * 1000)
        found = [Metric(k, float(v), now, round) for k, v in metrics.items() if k != "round" and v is not None]
        self.client.log_batch(self.id, metrics=found)

    @_impatient()
    def close(self, status: str) -> None:
        """FINISHED, KILLED (stopped) or FAILED."""
        self.client.set_terminated(self.id, ENDS.get(status, "FAILED"))


def _home(folder: Path) -> Path:
    """The folder of run folders, also for an arm of a study."""
    folder = folder.resolve()
    study = folder.parents[1]
    of_study = folder.name.startswith("seed-") and (study / "study.yaml").is_file()
    return study.parent if of_study else folder.parent


def _beside(folder: Path) -> str:
    return f"sqlite:///{_home(folder) / 'mlflow.db'}"
