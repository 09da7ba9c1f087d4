"""Sinks: each round's row goes also to TensorBoard, MLflow, W&B or Prometheus. One file per sink.

A sink may fail (a full disk, a server that does not answer): the run continues without it and records that once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, float | int | None]

SINKS = {
    "tensorboard": "TensorBoard",
    "mlflow": "MLflow",
    "wandb": "WandB",
    "prometheus": "Prometheus",
}  # module -> its class
EXTRAS = ("mlflow", "wandb")  # optional dependencies, as in pyproject.toml
PREFIXES = ("MLFLOW_", "WANDB_")  # of environment variables that configure sinks


class Sink(Protocol):
    """A receiver of rows. Each method may raise; in the run folder a sink changes only its own files."""

    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Start the run with this id, or continue it after an earlier process. Returns where its rows can be found."""

    def row(self, round: int, metrics: Row) -> None:
        """Write a committed round; None where a metric was not measured. A repeated round has the same numbers."""

    def close(self, status: str) -> None:
        """Mark the end: done | stopped (it may be resumed) | failed."""


def missing(names: Sequence[str]) -> list[str]:
    """Return a sentence for each chosen sink whose package is not installed. Imports nothing."""
    out = []
    for i, name in enumerate(names):
        absent = [p for p in _packages(name) if not _installed(p)] if name in EXTRAS else []
        if absent:
            out.append(
                f"track.{i}: {name!r} needs the package {absent[0]}, which is not installed; pip install 'rayfed-engine[{name}]'"
            )
    return out


def _packages(name: str) -> tuple[str, ...]:
    local = name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI")
    return (name, "sqlalchemy") if local else (name,)  # mlflow-skinny reaches servers, but has no local store


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of logs such as wandb/ is no package


def environment() -> dict[str, str]:
    """Return the environment variables that configure sinks, for the process in which the sinks run."""
    return {k: v for k, v in os.environ.items() if k.startswith(PREFIXES)}


class Sinks:
    """The chosen sinks of one run.

    event: called as `event(kind, **fields)` with the place of each sink's rows, and once for a sink that failed.
    """

    def __init__(self, names: Sequence[str], event: Callable[..., None]):
        self.names, self.event = names, event
        self.notes: list[str] = []
        self._open: dict[str, Sink] = {}

    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> None:
        """Start or continue this run in every sink."""
        for name in dict.fromkeys(self.names):
            try:
                sink: Sink = getattr(importlib.import_module(f"rayfed.track.{name}"), SINKS[name])()
                where = sink.open(run, config, folder)
            except Exception as error:
                self._failed(name, error, "nothing was written to it")
                continue
            self._open[name] = sink
            if where:
                self.event("tracking", sink=name, **where)

    def row(self, round: int, metrics: Row) -> None:
        """Write a committed round to every sink that still works."""
        for name, sink in list(self._open.items()):
            try:
                sink.row(round, metrics)
            except Exception as error:
                self._failed(name, error, f"it ends before round {round}")
                del self._open[name]
                with contextlib.suppress(Exception):  # it has failed already
                    sink.close("failed")

    def close(self, status: str) -> None:
        """Mark the end of the run: done | stopped | failed. May be called again."""
        for name, sink in self._open.items():
            try:
                sink.close(status)
            except Exception as error:
                self._failed(name, error, "its end is not marked there")
        self._open = {}

    def _failed(self, name: str, error: Exception, consequence: str) -> None:
        text = f"{type(error).__name__}: {error}"
        self.notes.append(
            f"track: {name} failed ({text.splitlines()[0][:300]}); {consequence}, the run folder has everything"
        )
        with contextlib.suppress(Exception):  # if the folder cannot be written to, the next commit fails anyway
            self.event("tracking failed", sink=name, error=text, note=self.notes[-1])
