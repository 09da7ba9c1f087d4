"""Sinks beside the run folder: each round's row, also to TensorBoard, MLflow, W&B or Prometheus. One file per sink.

A sink can fail (a full disk, a server that does not answer); the run goes on without it, and says so once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, float | int | None]

# name, its file -> the class in it
SINKS = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "WandB", "prometheus": "Prometheus"}
EXTRAS = ("mlflow", "wandb")  # optional dependencies, as in pyproject.toml
PREFIXES = ("MLFLOW_", "WANDB_")  # environment variables by which sinks are set


class Sink(Protocol):
    """Where rows go. Everything may raise; nothing may be changed in the run folder but files of the sink's own."""

    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Begin the run of this id, or continue it where an earlier process left it. Returns what to tell: where it is."""

    def row(self, round: int, metrics: Row) -> None:
        """A committed round; None where a metric was not measured. A round that was written before replaces or equals it."""

    def close(self, status: str) -> None:
        """done | stopped (it may be resumed) | failed."""


def missing(names: Sequence[str]) -> list[str]:
    """A sentence for each chosen sink whose package is not installed; nothing is imported."""
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
    return spec is not None and spec.origin is not None  # a folder of logs, as wandb/, is no package


def environment() -> dict[str, str]:
    """The variables that set sinks, for the process in which they run."""
    return {k: v for k, v in os.environ.items() if k.startswith(PREFIXES)}


class Sinks:
    """The chosen sinks of one run. `event(kind, **fields)` is told where each run is, and once of one that failed."""

    def __init__(self, names: Sequence[str], event: Callable[..., None]):
        self.names, self.event = names, event
        self.notes: list[str] = []
        self._open: dict[str, Sink] = {}

    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> None:
        """Begin or continue this run in every sink."""
        for name in dict.fromkeys(self.names):
            try:
                made: Sink = getattr(importlib.import_module(f"rayfed.track.{name}"), SINKS[name])()
                where = made.open(run, config, folder)
            except Exception as error:
                self._failed(name, error, "nothing was written to it")
                continue
            self._open[name] = made
            if where:
                self.event("tracking", sink=name, **where)

    def row(self, round: int, metrics: Row) -> None:
        """A committed round, to every sink that still works."""
        for name, sink in list(self._open.items()):
            try:
                sink.row(round, metrics)
            except Exception as error:
                self._failed(name, error, f"it ends before round {round}")
                del self._open[name]
                with contextlib.suppress(Exception):  # it has failed already
                    sink.close("failed")

    def close(self, status: str) -> None:
        """The run ends here: done | stopped | failed. Repeatable."""
        for name, sink in self._open.items():
            try:
                sink.close(status)
            except Exception as error:
                self._failed(name, error, "its end is not marked there")
        self._open = {}

    def _failed(self, name: str, error: Exception, so: str) -> None:
        text = f"{type(error).__name__}: {error}"
        self.notes.append(f"track: {name} failed ({text.splitlines()[0][:300]}); {so}, the run folder has everything")
        with contextlib.suppress(Exception):  # a folder that cannot be written to ends the run when a round is
            self.event("tracking failed", sink=name, error=text, note=self.notes[-1])
