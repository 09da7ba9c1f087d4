"""The parts of one run's page that come from its rows: settings, curves, clusters and how clients spread."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rayfed.metrics import OF_FAMILY, SCOPES, lower_is_better, meaning
from rayfed.report.statistics import worst_decile
from rayfed.storage import round_log
from rayfed.storage.listing import started
from rayfed.storage.saved_config import method_name, section
from rayfed.storage.text_files import to_plain

CURVE_POINTS = 400
COLUMNS = 32  # evaluated rounds in a picture
BINS, WORST = 20, 8  # of the histogram of clients; clients listed as the worst
NO_MEASURES = ("client", "name", "unseen", "group", "cluster", "examples", "test_examples", "seconds", "round")

Rows = Sequence[Mapping[str, Any]]


def mtime(path: Path) -> int:
    """Return a file's time of change in nanoseconds, 0 if there is no file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


# -- settings and curves -----------------------------------------------------------------------------------------------


def about(config: Mapping[str, Any], summary: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings that describe a run, without those that are not set."""

    def name_of(value: Any) -> Any:
        return value.get("name", value.get("kind")) or " + ".join(value) if isinstance(value, Mapping) else value

    task, federation = section(config, "task"), section(config, "federation")
    settings = {
        "method": method_name(config),
        "data": name_of(task.get("data")),
        "model": name_of(task.get("model")),
        "clients": federation.get("clients"),
        "per round": federation.get("per_round"),
        "split": name_of(federation.get("partition")),
        "groups": name_of(federation.get("groups")),
        "seed": config.get("seed"),
        "executor": section(config, "resources").get("executor"),
        "started": started(path).replace("T", " "),
        "folder": str(path.resolve()),
        "wall time": summary.get("wall_s"),
    }
    return {k: v for k, v in settings.items() if v not in (None, "none")}


def measured(rows: Rows) -> list[str]:
    """Return the names of measured metrics in the order of the scopes, without means over examples."""
    names = dict.fromkeys(k for row in rows for k, v in row.items() if k != "round" and isinstance(v, int | float))
    order = list(SCOPES)

    def rank(name: str) -> int:
        scope = name.partition("/")[2]
        return order.index(scope) if scope in order else len(order)

    return sorted((n for n in names if not n.endswith("_ex")), key=rank)


def curve(rows: Rows, metric: str, max_points: int) -> list[list[float]]:
    """Return [round, value] where the metric is finite, thinned evenly to about `max_points`; first and last stay."""
    points = [[row["round"], row[metric]] for row in rows if _finite(row.get(metric))]
    return [points[i] for i in thin(len(points), max_points)]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def thin(n: int, max_count: int) -> list[int]:
    """Return about `max_count` of the indices 0..n-1, first and last among them, mostly the same ones while n grows."""
    step = 1
    while n / step > max_count:
        step *= 2
    return sorted({*range(0, n, step), n - 1} if n else ())


def curves(rows: Rows) -> list[dict[str, Any]]:
    """Return a panel per family of metrics: {"name", "unit", "lower", "scoped", "lines": {scope: [[round, value], ...]},
    "abouts": {scope: a sentence}}."""
    panels: dict[str, dict[str, Any]] = {}
    for metric in measured(rows):
        family, _, scope = metric.partition("/")
        scoped = scope in SCOPES or scope.startswith(OF_FAMILY)
        key = family if scoped or family in ("bytes", "time", "ray") else metric
        known = meaning(metric)
        if key not in panels:
            panels[key] = {
                "name": key,
                "unit": known.unit if known else "",
                "scoped": scoped,
                "lines": {},
                "abouts": {},
            }
        panels[key]["lower"] = lower_is_better(metric)
        line = scope if key == family and scope else metric
        panels[key]["lines"][line] = curve(rows, metric, CURVE_POINTS)
        if known:
            panels[key]["abouts"][line] = known.text
    last = ("ray", "actors/", "clients/")
    return sorted(panels.values(), key=lambda p: (not p["scoped"], p["name"] != "accuracy", p["name"].startswith(last)))


# -- clients -----------------------------------------------------------------------------------------------------------


def _evaluated(path: Path, rows: Rows) -> list[tuple[int, Path]]:
    """Return (round, file of client rows) of committed evaluated rounds, thinned."""
    committed = {row["round"] for row in rows}
    files = [(r, p) for r, p in round_log.client_files(path).items() if r in committed]
    return [files[i] for i in thin(len(files), COLUMNS)]


@functools.lru_cache(maxsize=4096)
def _digest(file: Path, stamp: int) -> dict[str, Any]:
    """Summarise a file of client rows: clients per cluster, each client's cluster, and the worst tenth of each measure over
    the clients that take part. stamp: the file's time of change, so that a changed file is read again."""
    taking_part = [r for r in _read_clients(file) if not r.get("unseen")]
    sizes: dict[int, int] = {}
    for row in taking_part:
        if row.get("cluster") is not None:
            sizes[int(row["cluster"])] = sizes.get(int(row["cluster"]), 0) + 1
    return {
        "sizes": sizes,
        "member": {r["client"]: r.get("cluster") for r in taking_part},
        "worst": {m: worst_decile(_values(taking_part, m), lower_is_better(m)) for m in _measures(taking_part)},
    }


def _read_clients(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pylist()


def _measures(clients: Rows) -> list[str]:
    """Return the columns of client rows that are measures, accuracy and loss first."""
    names = dict.fromkeys(k for row in clients for k, v in row.items() if k not in NO_MEASURES and _finite(v))
    return sorted(names, key=lambda n: (n != "accuracy", n != "loss"))


def _values(clients: Rows, measure: str) -> list[float]:
    return [float(r[measure]) for r in clients if _finite(r.get(measure))]


def clusters(path: Path, rows: Rows) -> dict[str, Any] | None:
    """Return {"rounds": (T,), "names": (K,), "sizes": (K, T) clients, "moved": (T,) clients whose cluster changed since the
    column before}; None without clusters."""
    columns = [(r, _digest(file, mtime(file))) for r, file in _evaluated(path, rows)]
    columns = [(r, d) for r, d in columns if d["sizes"]]
    if not columns:
        return None
    names = sorted({k for _, d in columns for k in d["sizes"]})
    moved = [0]
    for (_, before), (_, after) in pairwise(columns):
        known = before["member"]
        moved.append(sum(known[c] != k for c, k in after["member"].items() if c in known))
    sizes = [[d["sizes"].get(k, 0) for _, d in columns] for k in names]
    return {"rounds": [r for r, _ in columns], "names": names, "sizes": sizes, "moved": moved}


def spread(path: Path, rows: Rows) -> dict[str, Any] | None:
    """Return how clients spread in the newest evaluated round, and their worst tenth over rounds; None before the first."""
    files = _evaluated(path, rows)
    if not files:
        return None
    latest, file = files[-1]
    clients = _read_clients(file)
    taking_part = [r for r in clients if not r.get("unseen")]
    measures = [_measure(name, taking_part, files) for name in _measures(taking_part)]
    if not measures:
        return None
    first, lower = measures[0]["name"], bool(measures[0]["lower"])
    ranked = sorted((r for r in taking_part if _finite(r.get(first))), key=lambda r: float(r[first]), reverse=lower)
    columns = ["name", "group", "cluster", "examples", *(m["name"] for m in measures)]
    return {
        "round": latest,
        "clients": len(taking_part),
        "unseen": len(clients) - len(taking_part),
        "measures": measures,
        "columns": columns,
        "worst": [[to_plain(r.get(c)) for c in columns] for r in ranked[:WORST]],
    }


def _measure(name: str, clients: Rows, files: Sequence[tuple[int, Path]]) -> dict[str, Any]:
    """Return a measure's histogram and quantiles over clients, and its worst tenth in each evaluated round."""
    import numpy as np

    values, lower = _values(clients, name), lower_is_better(name)
    counts, edges = np.histogram(values, bins=BINS, range=(0, 1) if name == "accuracy" else None)
    least, p10, median, p90, greatest = np.percentile(values, [0, 10, 50, 90, 100]).tolist()
    worst = [(r, _digest(f, mtime(f))["worst"].get(name)) for r, f in files]
    return {
        "name": name,
        "lower": lower,
        "counts": counts.tolist(),
        "edges": edges.tolist(),
        "mean": float(np.mean(values)),
        "worst decile": worst_decile(values, lower),
        "least": least,
        "10 %": p10,
        "median": median,
        "90 %": p90,
        "greatest": greatest,
        "worst": [[r, v] for r, v in worst if v is not None],
    }
