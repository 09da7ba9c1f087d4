"""Prometheus: what a run shows to a monitoring system. On Ray through Ray's own metrics port, else a text file.

Who has a better way than the file says so with `use` (`actors.pool` does). The file is the run folder's
`metrics.prom` in Prometheus' text format, for a textfile collector; `rayfed monitor --serve` has all runs at /metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rayfed.metrics import SCOPES
from rayfed.storage import round_log
from rayfed.storage.atomic import durable_write
from rayfed.storage.listing import method_name
from rayfed.track import Row

FILE = "metrics.prom"
LABELS = ("run", "trial", "method")  # of every series
SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)  # upper bounds of the histogram
APART = ("time", "bytes", "ray", "clients", "actors")  # families of a row that are no scores


class Metric(NamedTuple):
    """kind: gauge | counter | histogram; labels beside `LABELS`. None has one per client."""

    kind: str
    text: str
    labels: tuple[str, ...] = ()


METRICS = {
    "rayfed_round": Metric("gauge", "Rounds committed"),
    "rayfed_rounds": Metric("gauge", "Rounds asked for"),
    "rayfed_running": Metric("gauge", "1 while the run goes on, 0 once it has ended"),
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
    """Where values go; a name of METRICS, and its further labels."""

    restarts: int  # actors that were replaced before this run began

    def put(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge, add to a counter, observe into a histogram."""

    def publish(self) -> None:
        """A round is complete."""

    def close(self) -> None: ...


_exporter: Callable[[dict[str, str]], Exporter] | None = None


def use(make: Callable[[dict[str, str]], Exporter] | None) -> None:
    """Let `make(labels of a run)` export this process's runs in place of the text file."""
    global _exporter
    _exporter = make


class Prometheus:
    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Begin, or go on: a counter of the file continues from the rows that are there."""
        labels = labels_of(run, config, folder)
        self.to: Exporter = _exporter(labels) if _exporter else TextFile(labels, folder / FILE)
        self._restarts = self.to.restarts
        self._rounds = float(config["rounds"])
        if isinstance(self.to, TextFile):
            for row in round_log.read(folder).values():
                self._put(row)
        self.to.put("rayfed_running", 1.0)
        self.to.put("rayfed_rounds", self._rounds)
        self.to.publish()
        return {"file": str(folder / FILE)} if isinstance(self.to, TextFile) else {"metrics": "the node's Ray port"}

    def row(self, round: int, metrics: Row) -> None:
        """One round; what was not measured keeps its last value."""
        self._put({**metrics, "round": round})
        self.to.publish()

    def _put(self, row: Row) -> None:
        for name, value, labels in readings(row, self._restarts):
            self.to.put(name, value, **labels)
        self._restarts = max(self._restarts, int(row.get("actors/restarts") or 0))

    def close(self, status: str) -> None:
        """The run does not go on: `rayfed_running` is 0."""
        self.to.put("rayfed_running", 0.0)
        self.to.put("rayfed_queue_depth", 0.0)
        self.to.publish()
        self.to.close()


def labels_of(run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """`LABELS` of a run; trial is empty for a run of its own."""
    return {"run": run, "trial": trial(folder), "method": method_name(config)}


def trial(folder: Path) -> str:
    """Where the run is in its study or sweep, as ARM/seed-S or TRIAL/seed-S; empty for a run of its own."""
    folder = folder.resolve()
    if folder.name.startswith("seed-"):
        for home in folder.parents[1:4]:
            if (home / "study.yaml").is_file() or (home / "sweep.yaml").is_file():
                return folder.relative_to(home).as_posix()
    return ""


def readings(row: Row, restarts: int = 0) -> Iterator[tuple[str, float, dict[str, str]]]:
    """(metric, value, labels) of a round's row; counters as what this round adds. `restarts`: before this round."""
    yield "rayfed_round", float(row["round"] or 0), {}
    plain = {"clients/per_second": "rayfed_clients_per_second", "time/round": "rayfed_round_seconds"}
    for column, name in plain.items():
        if _there(row.get(column)):
            yield name, float(row[column] or 0), {}
    for way in ("up", "down"):
        yield "rayfed_bytes_total", float(row.get(f"bytes/{way}") or 0), {"direction": way}
    yield "rayfed_actor_restarts_total", float(max(0, int(row.get("actors/restarts") or 0) - restarts)), {}
    for column, value in row.items():
        kind, _, where = column.partition("/")
        if column == "round" or kind in APART or where.endswith("_ex") or not _there(value):
            continue
        if kind in ("accuracy", "loss") and where in SCOPES:
            yield f"rayfed_{kind}", float(value or 0), {"scope": where}
        else:
            scope = where if where in SCOPES else ""
            yield "rayfed_score", float(value or 0), {"name": kind if scope else column, "scope": scope}


def _there(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value)


# -- text --------------------------------------------------------------------------------------------------------------


class Series:
    """Values in Prometheus' text format, of one run or of many."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self._seen: dict[tuple[tuple[str, str], ...], list[float]] = {}  # what the histogram was given

    def put(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge, add to a counter, observe into a histogram."""
        key, kind = tuple(labels.items()), METRICS[name].kind
        if kind == "histogram":
            self._values.setdefault(name, {})[key] = 0.0
            self._seen.setdefault(key, []).append(value)
        else:
            known = self._values.setdefault(name, {})
            known[key] = value + (known.get(key, 0.0) if kind == "counter" else 0.0)

    def text(self) -> str:
        """The exposition, version 0.0.4."""
        out = []
        for name, metric in METRICS.items():
            if name not in self._values:
                continue
            out += [f"# HELP {name} {metric.text}", f"# TYPE {name} {metric.kind}"]
            for key, value in self._values[name].items():
                if metric.kind != "histogram":
                    out.append(f"{name}{_labels(key)} {value!r}")
                    continue
                seen = self._seen[key]
                for bound in (*SECONDS, math.inf):
                    le = "+Inf" if math.isinf(bound) else repr(bound)
                    out.append(f"{name}_bucket{_labels((*key, ('le', le)))} {sum(s <= bound for s in seen)}")
                out += [f"{name}_sum{_labels(key)} {math.fsum(seen)!r}", f"{name}_count{_labels(key)} {len(seen)}"]
        return "\n".join(out) + "\n" if out else ""


def _labels(key: tuple[tuple[str, str], ...]) -> str:
    def quoted(v: str) -> str:
        return v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{k}="{quoted(v)}"' for k, v in key) + "}"


class TextFile:
    """A run's values in a file that is replaced in one step."""

    restarts = 0

    def __init__(self, labels: dict[str, str], path: Path):
        self.labels, self.path, self.series = labels, path, Series()

    def put(self, name: str, value: float, /, **labels: str) -> None:
        self.series.put(name, value, {**self.labels, **labels})

    def publish(self) -> None:
        """Write the file. OSError if the disk refuses."""
        durable_write(self.path, self.series.text().encode(), sync=False)

    def close(self) -> None: ...
