"""Prometheus: on Ray metrics leave through Ray's own metrics port, else through a text file.

`set_exporter` replaces the file (`actors.pool` calls it). The file is the run folder's `metrics.prom` in Prometheus' text
format, for a textfile collector; `rayfed monitor --serve` shows all runs at /metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rayfed.metrics import SCOPES
from rayfed.storage import round_log
from rayfed.storage.atomic import durable_write
from rayfed.storage.saved_config import method_name
from rayfed.track import Row

FILE = "metrics.prom"
LABELS = ("run", "trial", "method")  # of every series
BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)  # upper bounds of the histogram, seconds
NO_SCORES = ("time", "bytes", "ray", "clients", "actors")  # families of metrics that have exported names of their own


class Metric(NamedTuple):
    """An exported metric: kind (gauge | counter | histogram), help text, and labels in addition to `LABELS`. None is per client."""

    kind: str
    text: str
    labels: tuple[str, ...] = ()


METRICS = {
    "rayfed_round": Metric("gauge", "Rounds committed"),
    "rayfed_rounds": Metric("gauge", "Rounds asked for"),
    "rayfed_running": Metric("gauge", "1 while the run is running, 0 once it has ended"),
    "rayfed_accuracy": Metric("gauge", "Share of correct predictions", ("scope",)),
    "rayfed_loss": Metric("gauge", "Loss", ("scope",)),
    "rayfed_score": Metric("gauge", "Any other measure of a round, by name", ("name", "scope")),
    "rayfed_clients_per_second": Metric("gauge", "Client visits per second of wall time"),
    "rayfed_bytes_total": Metric("counter", "Bytes between clients and server, as in a deployment", ("direction",)),
    "rayfed_queue_depth": Metric("gauge", "Calls that wait for an actor or are under way"),
    "rayfed_actor_restarts_total": Metric("counter", "Actors replaced"),
    "rayfed_memory_bytes": Metric("gauge", "Memory in use: server, actors, gpu (of the actors)", ("part",)),
    "rayfed_round_seconds": Metric("histogram", "Wall time of a round without evaluation"),
}


class Exporter(Protocol):
    """A receiver of values, each with a name of METRICS and its additional labels."""

    restarts: int  # actors that were replaced before this run began

    def put(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge, add to a counter, observe into a histogram."""

    def publish(self) -> None:
        """Make the values of a complete round visible."""

    def close(self) -> None:
        """End the export of this run."""


_exporter: Callable[[dict[str, str]], Exporter] | None = None


def set_exporter(create: Callable[[dict[str, str]], Exporter] | None) -> None:
    """Export this process's runs through `create(labels of a run)` instead of the text file; None: through the file again."""
    global _exporter
    _exporter = create


class Prometheus:
    """Exports a run to Prometheus."""

    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Start exporting. With the text file, counters continue from the rows of the run folder."""
        labels = labels_of(run, config, folder)
        self.exporter: Exporter = _exporter(labels) if _exporter else TextFile(labels, folder / FILE)
        self._restarts = self.exporter.restarts
        self._rounds = float(config["rounds"])
        if isinstance(self.exporter, TextFile):
            for row in round_log.read(folder).values():
                self._export(row)
        self.exporter.put("rayfed_running", 1.0)
        self.exporter.put("rayfed_rounds", self._rounds)
        self.exporter.publish()
        return (
            {"file": str(folder / FILE)} if isinstance(self.exporter, TextFile) else {"metrics": "the node's Ray port"}
        )

    def row(self, round: int, metrics: Row) -> None:
        """Export one round; a metric that was not measured keeps its last value."""
        self._export({**metrics, "round": round})
        self.exporter.publish()

    def _export(self, row: Row) -> None:
        for name, value, labels in readings(row, self._restarts):
            self.exporter.put(name, value, **labels)
        self._restarts = max(self._restarts, int(row.get("actors/restarts") or 0))

    def close(self, status: str) -> None:
        """Set `rayfed_running` to 0."""
        self.exporter.put("rayfed_running", 0.0)
        self.exporter.put("rayfed_queue_depth", 0.0)
        self.exporter.publish()
        self.exporter.close()


def labels_of(run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return the `LABELS` of a run; trial is empty for a run outside of studies and sweeps."""
    return {"run": run, "trial": trial_name(folder), "method": method_name(config)}


def trial_name(folder: Path) -> str:
    """Return the run's place in its study or sweep, ARM/seed-S or TRIAL/seed-S; empty for a run outside of them."""
    folder = folder.resolve()
    if folder.name.startswith("seed-"):
        for home in folder.parents[1:4]:
            if (home / "study.yaml").is_file() or (home / "sweep.yaml").is_file():
                return folder.relative_to(home).as_posix()
    return ""


def readings(row: Row, restarts: int = 0) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Yield (metric, value, labels) of a round's row; counters as the increments of this round.

    restarts: actors replaced before this round.
    """
    yield "rayfed_round", float(row["round"] or 0), {}
    gauges = {"clients/per_second": "rayfed_clients_per_second", "time/round": "rayfed_round_seconds"}
    for column, name in gauges.items():
        if _measured(row.get(column)):
            yield name, float(row[column] or 0), {}
    for direction in ("up", "down"):
        yield "rayfed_bytes_total", float(row.get(f"bytes/{direction}") or 0), {"direction": direction}
    yield "rayfed_actor_restarts_total", float(max(0, int(row.get("actors/restarts") or 0) - restarts)), {}
    for column, value in row.items():
        kind, _, where = column.partition("/")
        if column == "round" or kind in NO_SCORES or where.endswith("_ex") or not _measured(value):
            continue
        if kind in ("accuracy", "loss") and where in SCOPES:
            yield f"rayfed_{kind}", float(value or 0), {"scope": where}
        else:
            scope = where if where in SCOPES else ""
            yield "rayfed_score", float(value or 0), {"name": kind if scope else column, "scope": scope}


def _measured(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value)


# -- text --------------------------------------------------------------------------------------------------------------


class Series:
    """Collects values of one run or of many, and writes them in Prometheus' text format."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self._observed: dict[tuple[tuple[str, str], ...], list[float]] = {}  # observations of the histogram

    def put(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge, add to a counter, observe into a histogram."""
        key, kind = tuple(labels.items()), METRICS[name].kind
        if kind == "histogram":
            self._values.setdefault(name, {})[key] = 0.0
            self._observed.setdefault(key, []).append(value)
        else:
            known = self._values.setdefault(name, {})
            known[key] = value + (known.get(key, 0.0) if kind == "counter" else 0.0)

    def text(self) -> str:
        """Return the values in Prometheus' exposition format 0.0.4."""
        out = []
        for name, metric in METRICS.items():
            if name not in self._values:
                continue
            out += [f"# HELP {name} {metric.text}", f"# TYPE {name} {metric.kind}"]
            for key, value in self._values[name].items():
                if metric.kind != "histogram":
                    out.append(f"{name}{_labels(key)} {value!r}")
                    continue
                observed = self._observed[key]
                for bound in (*BUCKETS, math.inf):
                    le = "+Inf" if math.isinf(bound) else repr(bound)
                    out.append(f"{name}_bucket{_labels((*key, ('le', le)))} {sum(s <= bound for s in observed)}")
                out += [
                    f"{name}_sum{_labels(key)} {math.fsum(observed)!r}",
                    f"{name}_count{_labels(key)} {len(observed)}",
                ]
        return "\n".join(out) + "\n" if out else ""


def _labels(key: tuple[tuple[str, str], ...]) -> str:
    def quoted(v: str) -> str:
        return v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{k}="{quoted(v)}"' for k, v in key) + "}"


class TextFile:
    """Exports a run's values to a file that is replaced atomically."""

    restarts = 0

    def __init__(self, labels: dict[str, str], path: Path):
        self.labels, self.path, self.series = labels, path, Series()

    def put(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge, add to a counter, observe into a histogram."""
        self.series.put(name, value, {**self.labels, **labels})

    def publish(self) -> None:
        """Write the file. OSError if that fails."""
        durable_write(self.path, self.series.text().encode(), sync=False)

    def close(self) -> None:
        """Do nothing: the file stays."""
