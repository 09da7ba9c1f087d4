"""What the live page shows, read from run folders. A folder that is torn or not ours costs its own line, never the page."""

from __future__ import annotations

import functools
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rayfed.metrics import SCOPES, lower_is_better, meaning
from rayfed.report.data import read_run, worst_decile
from rayfed.storage import round_log
from rayfed.storage.atomic import plain, read_json, read_yaml
from rayfed.storage.listing import method_name, started, status, sweep
from rayfed.track.prometheus import Series, labels_of, readings

DEPTH = 5  # folders below the given one in which runs are looked for: studies and sweeps nest
MOST_RUNS, MOST_FOLDERS = 2000, 20_000
LINGER = 300.0  # seconds that an ended run stays in /metrics
POINTS, COLUMNS, SPARK = 400, 32, 40  # of a curve, of pictures over evaluated rounds, of the list's small curves
BINS, WORST, EVENTS = 20, 8, 40
FIRST = ("accuracy/global", "accuracy/personal")  # what the list shows, if it is there
ABOUT = ("client", "name", "unseen", "group", "cluster", "examples", "test_examples", "seconds", "round")


class Board:
    """The runs under a folder. Runs are only found by walking it: a name that was not found so opens nothing."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._known: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._sweeps: dict[str, tuple[Any, dict[str, Any]]] = {}

    def paths(self) -> dict[str, Path]:
        """Run id (its path below the folder; `.` for the folder itself) -> folder. Links are not followed."""
        found = {}
        for path in _walk(self.folder):
            found[path.relative_to(self.folder).as_posix()] = path
            if len(found) >= MOST_RUNS:
                break
        return found

    def runs(self) -> list[dict[str, Any]]:
        """Newest first: id, name, group (study or sweep), method, status, round, rounds, started, value, spark ..."""
        paths = self.paths()
        self._known = {k: v for k, v in self._known.items() if k in paths}
        out = []
        for name, path in paths.items():
            try:
                out.append(self._line(name, path))
            except Exception as error:  # foreign files fail in any way
                out.append(
                    {
                        "id": name,
                        "name": path.name,
                        "group": "",
                        "status": "unreadable",
                        "note": _said(error),
                        "started": "",
                    }
                )
        return sorted(out, key=lambda r: (str(r["started"]), r["id"]), reverse=True)

    def sweeps(self) -> list[dict[str, Any]]:
        """Sweeps that hold some of the runs: id (its folder below this one), and what `rayfed runs` says of them."""
        out = []
        for name in dict.fromkeys(
            n.rpartition("trials/")[0].rstrip("/") or "." for n in self.paths() if "trials/" in n
        ):
            path = self.folder / name
            if not (path / "sweep.yaml").is_file():
                continue
            files = [path / "summary.json", path / "driver.json", *sorted((path / "trials").glob("*/rows.jsonl"))]
            stamp = tuple(map(_mtime, files))
            known = self._sweeps.get(name)
            try:
                if known is None or known[0] != stamp or known[1]["status"] == "running":
                    known = (stamp, sweep(path))
                    self._sweeps[name] = known
            except Exception:  # its runs have their lines
                continue
            word, _, note = known[1]["status"].partition(" ")
            out.append({**known[1], "id": name, "status": word, "note": note.strip("()")})
        return out

    def _line(self, name: str, path: Path) -> dict[str, Any]:
        stamp = tuple(_mtime(path / f) for f in ("config.yaml", "state.json", "summary.json", "parts"))
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            known = (stamp, _line(name, path))
            self._known[name] = known
        word, _, note = status(path).partition(" ")
        return {**known[1], "status": word, "note": note.strip("()")}

    def run(self, name: str) -> dict[str, Any] | None:
        """Everything about one run; None if there is none of this name. A part that cannot be read says why."""
        path = self.paths().get(name)
        if path is None:
            return None
        try:
            run = read_run(path)
        except Exception as error:
            return {"id": name, "name": path.name, "problem": _said(error)}
        word, _, note = run.status.partition(" ")
        state = read_json(path / "state.json")
        parts: dict[str, Callable[[], Any]] = {
            "about": lambda: _about(run.config, run.summary, path),
            "live": lambda: {k: state.get(k) for k in ("round", "rounds", "clients_per_s", "bytes", "eta_s", "time")},
            "curves": lambda: _curves(run.rows),
            "clusters": lambda: _clusters(path, run.rows),
            "spread": lambda: _spread(path, run.rows),
            "actors": lambda: _actors(path, state, run.rows),
            "events": lambda: events(path)[-EVENTS:][::-1],
        }
        out: dict[str, Any] = {"id": name, "name": path.name, "status": word, "note": note.strip("()")}
        for part, make in parts.items():
            try:
                out[part] = make()
            except Exception as error:
                out[part] = {"problem": _said(error)}
        return out

    def prometheus(self) -> str:
        """Runs in Prometheus' text format: those that go on, and a while longer; not those that Ray's own port has."""
        series = Series()
        for line in self.runs():
            path = self.folder / line["id"]
            try:
                config = read_yaml(path / "config.yaml")
                on_ray = any(e["kind"] == "placed" for e in events(path))
                if (on_ray and "prometheus" in (config.get("track") or ())) or not _recent(path, line["status"]):
                    continue
                found = round_log.read(path)
                labels = labels_of(str(read_json(path / "lock.json")["run"]), config, path)
                series.put("rayfed_running", float(line["status"] in ("running", "starting")), labels)
                series.put("rayfed_rounds", float(config["rounds"]), labels)
                restarts = 0
                for row in found.values():
                    for name, value, more in readings(row, restarts):
                        series.put(name, value, {**labels, **more})
                    restarts = max(restarts, int(row.get("actors/restarts") or 0))
            except Exception:  # its line on the page says what is wrong
                continue
        return series.text()


def _walk(folder: Path) -> Iterator[Path]:
    """Run folders, not below other ones."""
    level, looked = [folder], 0
    for depth in range(DEPTH + 1):
        below: list[Path] = []
        for path in level:
            if (path / "config.yaml").is_file() and (path / "lock.json").is_file():
                yield path
                continue
            if depth == DEPTH or looked > MOST_FOLDERS:
                continue
            try:
                with os.scandir(path) as entries:
                    found = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
            except OSError:
                continue
            looked += len(found)
            below += [path / name for name in sorted(found)]
        level = below


def _recent(path: Path, status: str) -> bool:
    return status in ("running", "starting") or time.time() - _mtime(path / "state.json") / 1e9 < LINGER


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _line(name: str, path: Path) -> dict[str, Any]:
    config, state, summary = (
        read_yaml(path / "config.yaml"),
        read_json(path / "state.json"),
        read_json(path / "summary.json"),
    )
    found = list(round_log.read(path).values())
    names = [m for m in _metrics(found) if m.partition("/")[2] in SCOPES]
    shown = next((m for m in (*FIRST, *names) if m in names), None)
    curve = _curve(found, shown, SPARK) if shown else []
    parent = Path(name).parent.as_posix()
    return {
        "id": name,
        "name": path.name,
        "group": "" if parent == "." else parent,
        "method": method_name(config),
        "seed": config.get("seed"),
        "round": found[-1]["round"] if found else 0,
        "rounds": config.get("rounds"),
        "started": started(path),
        "seconds": summary.get("wall_s"),
        "eta_s": state.get("eta_s"),
        "clients_per_s": state.get("clients_per_s"),
        "metric": shown,
        "value": curve[-1][1] if curve else None,
        "spark": curve,
    }


def _metrics(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Measured names, in the order of the scopes, without those over examples."""
    names = dict.fromkeys(k for row in found for k, v in row.items() if k != "round" and isinstance(v, int | float))
    order = list(SCOPES)

    def rank(name: str) -> int:
        where = name.partition("/")[2]
        return order.index(where) if where in order else len(order)

    return sorted((n for n in names if not n.endswith("_ex")), key=rank)


def _curve(found: Sequence[Mapping[str, Any]], metric: str, most: int) -> list[list[float]]:
    """[round, value] where measured and finite, thinned evenly; first and last stay."""
    seen = [[row["round"], row[metric]] for row in found if _finite(row.get(metric))]
    return [seen[i] for i in _some(len(seen), most)]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _some(n: int, most: int) -> list[int]:
    """Indices of at most about `most` of n, first and last among them; the same ones while n grows, if it can be."""
    step = 1
    while n / step > most:
        step *= 2
    return sorted({*range(0, n, step), n - 1} if n else ())


def _about(config: Mapping[str, Any], summary: Mapping[str, Any], path: Path) -> dict[str, Any]:
    def section(name: str) -> Mapping[str, Any]:
        found = config.get(name)
        return found if isinstance(found, Mapping) else {}

    def named(value: Any) -> Any:
        return value.get("name", value.get("kind")) if isinstance(value, Mapping) else value

    task, federation, resources = section("task"), section("federation"), section("resources")
    about = {
        "method": method_name(config),
        "data": named(task.get("data")),
        "model": named(task.get("model")),
        "clients": federation.get("clients"),
        "per round": federation.get("per_round"),
        "split": named(federation.get("partition")),
        "groups": named(federation.get("groups")),
        "seed": config.get("seed"),
        "executor": resources.get("executor"),
        "started": started(path).replace("T", " "),
        "folder": str(path.resolve()),
        "wall time": summary.get("wall_s"),
    }
    return {k: v for k, v in about.items() if v not in (None, "none")}


def _curves(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A panel per family: {"name", "unit", "lower", "lines": {scope: [[round, value], ...]}}."""
    panels: dict[str, dict[str, Any]] = {}
    for metric in _metrics(found):
        kind, _, where = metric.partition("/")
        scoped = where in SCOPES
        key = kind if scoped or kind in ("bytes", "time", "ray") else metric
        about = meaning(metric)
        made = panels.setdefault(key, {"name": key, "unit": about.unit if about else "", "scoped": scoped, "lines": {}})
        made["lower"] = lower_is_better(metric)
        made["lines"][where if key == kind and where else metric] = _curve(found, metric, POINTS)
    last = ("ray", "actors/", "clients/")
    return sorted(panels.values(), key=lambda p: (not p["scoped"], p["name"] != "accuracy", p["name"].startswith(last)))


# -- clients -----------------------------------------------------------------------------------------------------------


def _evaluated(path: Path, found: Sequence[Mapping[str, Any]]) -> list[tuple[int, Path]]:
    """(round, file of client rows) of committed evaluated rounds, thinned."""
    there = {row["round"] for row in found}
    files = [(r, p) for r, p in round_log.client_files(path).items() if r in there]
    return [files[i] for i in _some(len(files), COLUMNS)]


@functools.lru_cache(maxsize=4096)
def _digest(file: Path, stamp: int) -> dict[str, Any]:
    """Of a file of client rows: clients per cluster, and mean and worst tenth of each measure over those that take part."""
    people = [r for r in _clients(file) if not r.get("unseen")]
    sizes: dict[int, int] = {}
    for row in people:
        if row.get("cluster") is not None:
            sizes[int(row["cluster"])] = sizes.get(int(row["cluster"]), 0) + 1
    member = {r["client"]: r.get("cluster") for r in people}
    return {
        "sizes": sizes,
        "member": member,
        "worst": {m: worst_decile(_of(people, m), lower_is_better(m)) for m in _measures(people)},
    }


def _clients(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pylist()


def _measures(people: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(k for row in people for k, v in row.items() if k not in ABOUT and _finite(v))
    return sorted(names, key=lambda n: (n != "accuracy", n != "loss"))


def _of(people: Sequence[Mapping[str, Any]], measure: str) -> list[float]:
    return [float(r[measure]) for r in people if _finite(r.get(measure))]


def _clusters(path: Path, found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """{"rounds": (T,), "names": (K,), "sizes": (K, T) clients, "moved": (T,) clients that changed since the column before}."""
    columns = [(r, _digest(file, _mtime(file))) for r, file in _evaluated(path, found)]
    columns = [(r, d) for r, d in columns if d["sizes"]]
    if not columns:
        return None
    names = sorted({k for _, d in columns for k in d["sizes"]})
    moved = [0] + [
        sum(was["member"].get(c) != k for c, k in now["member"].items() if c in was["member"])
        for (_, was), (_, now) in pairwise(columns)
    ]
    sizes = [[d["sizes"].get(k, 0) for _, d in columns] for k in names]
    return {"rounds": [r for r, _ in columns], "names": names, "sizes": sizes, "moved": moved}


def _spread(path: Path, found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The newest evaluated round by client, and the worst tenth over rounds; None before the first one."""
    import numpy as np

    files = _evaluated(path, found)
    if not files:
        return None
    latest, file = files[-1]
    every = _clients(file)
    people = [r for r in every if not r.get("unseen")]
    measures = []
    for name in _measures(people):
        values, lower = _of(people, name), lower_is_better(name)
        counts, edges = np.histogram(values, bins=BINS, range=(0, 1) if name == "accuracy" else None)
        low, p10, median, p90, high = np.percentile(values, [0, 10, 50, 90, 100]).tolist()
        worst = [[r, d["worst"][name]] for r, f in files if name in (d := _digest(f, _mtime(f)))["worst"]]
        measures.append(
            {
                "name": name,
                "lower": lower,
                "counts": counts.tolist(),
                "edges": edges.tolist(),
                "mean": float(np.mean(values)),
                "worst decile": worst_decile(values, lower),
                "least": low,
                "10 %": p10,
                "median": median,
                "90 %": p90,
                "greatest": high,
                "worst": worst,
            }
        )
    if not measures:
        return None
    first, lower = measures[0]["name"], bool(measures[0]["lower"])
    ranked = sorted((r for r in people if _finite(r.get(first))), key=lambda r: float(r[first]), reverse=lower)
    columns = ["name", "group", "cluster", "examples", *(m["name"] for m in measures)]
    return {
        "round": latest,
        "clients": len(people),
        "unseen": len(every) - len(people),
        "measures": measures,
        "columns": columns,
        "worst": [[plain(r.get(c)) for c in columns] for r in ranked[:WORST]],
    }


# -- actors ------------------------------------------------------------------------------------------------------------


def events(path: Path) -> list[dict[str, Any]]:
    """`events.jsonl`, torn lines left out."""
    out = []
    try:
        lines = (path / "events.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("kind"):
            out.append(event)
    return out


def _actors(path: Path, state: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Who computes where: {"host", "here", "restarts", "processes": [{"what", "pid", "node", "device", "alive", "rss"}]}."""
    said = events(path)
    placed = [i for i, e in enumerate(said) if e["kind"] == "placed"]
    here = state.get("host") == socket.gethostname()
    processes: list[dict[str, Any]] = []
    if placed:
        event = said[placed[-1]]
        since = [e.get("actor") for e in said[placed[-1] :] if e["kind"] == "actor restarted"]
        processes.append({"what": "server", "pid": event.get("server")})
        home = (event.get("clients") or [{}])[0].get("node")
        for i, about in enumerate(event.get("clients") or []):
            one = {"what": f"client actor {i}", "replaced": since.count(i)}
            processes.append({**one, **{k: about.get(k) for k in ("pid", "node", "device", "threads")}})
        for p in processes:  # a pid of another node says nothing here
            p.update(
                _process(p["pid"], event["time"])
                if here and p.get("node", home) == home and not p.get("replaced")
                else {}
            )
    elif state.get("pid"):
        alive = _process(state["pid"], None) if here else {}
        processes.append({"what": "the run's own process (no Ray)", "pid": state["pid"], **alive})
    restarts = max((int(r.get("actors/restarts") or 0) for r in found[-1:]), default=0)
    return {"host": state.get("host"), "here": here, "restarts": restarts, "processes": processes}


def _process(pid: Any, before: str | None) -> dict[str, Any]:
    """alive, and resident bytes; a process that began after `before` (ISO time) only has the same number."""
    from datetime import datetime

    import psutil

    try:
        process = psutil.Process(int(pid))
        with process.oneshot():
            later = (
                before is not None
                and process.create_time() > datetime.fromisoformat(before.replace("Z", "+00:00")).timestamp() + 2
            )
            alive = process.status() != psutil.STATUS_ZOMBIE and not later
            return {"alive": alive, "rss": process.memory_info().rss if alive else None}
    except (psutil.Error, ValueError, TypeError):
        return {"alive": False, "rss": None}
