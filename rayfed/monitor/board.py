"""The board of the live page: all runs and sweeps under a folder. A folder that is damaged or foreign costs only its own line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayfed.metrics import SCOPES
from rayfed.monitor import details, processes
from rayfed.report.subject import read_run
from rayfed.storage import round_log
from rayfed.storage.events import read_events
from rayfed.storage.listing import started, status, sweep_entry
from rayfed.storage.provenance import read_settings
from rayfed.storage.saved_config import method_name
from rayfed.storage.sweep_folder import OUTCOME, ROWS
from rayfed.storage.text_files import read_json
from rayfed.track.prometheus import Series, labels_of, readings

DEPTH = 5  # levels of folders that are searched for runs: studies and sweeps nest
MAX_RUNS, MAX_FOLDERS = 2000, 20_000
EXPORT_AFTER_END = 300.0  # seconds that an ended run stays in /metrics
SPARK_POINTS = 40  # of a small curve in the list
EVENTS = 2000  # newest events of a run
CONFIG = 100_000  # characters of a config that are shown
PREFERRED = ("accuracy/global", "accuracy/personal")  # shown in the list if measured


class Board:
    """The runs under a folder. Runs are found only by walking the folder: no other name opens anything."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._entries: dict[str, tuple[Any, dict[str, Any]]] = {}  # run id -> (times of its files, entry)
        self._sweeps: dict[str, tuple[Any, dict[str, Any]]] = {}

    def paths(self) -> dict[str, Path]:
        """Return run id -> run folder; an id is the path below the board's folder, `.` for the folder itself.

        Links are not followed.
        """
        found = {}
        for path in _walk(self.folder):
            found[path.relative_to(self.folder).as_posix()] = path
            if len(found) >= MAX_RUNS:
                break
        return found

    def runs(self) -> list[dict[str, Any]]:
        """Return an entry per run, newest first: id, name, group (study or sweep), method, status, round, rounds, started,
        value, spark ...; of a folder that cannot be read its name, the status `unreadable` and the reason."""
        paths = self.paths()
        self._entries = {k: v for k, v in self._entries.items() if k in paths}
        entries = []
        for name, path in paths.items():
            try:
                entries.append(self._entry(name, path))
            except Exception as error:  # foreign files fail in any way
                unreadable = {"status": "unreadable", "note": _describe(error), "started": ""}
                entries.append({"id": name, "name": path.name, "group": "", **unreadable})
        return sorted(entries, key=lambda r: (str(r["started"]), r["id"]), reverse=True)

    def sweeps(self) -> list[dict[str, Any]]:
        """Return the sweeps that hold some of the runs: id (its folder below the board's), and its entry of `rayfed runs`."""
        inside = [name for name in self.paths() if "trials/" in name]
        entries = []
        for name in dict.fromkeys(n.rpartition("trials/")[0].rstrip("/") or "." for n in inside):
            path = self.folder / name
            if not (path / "sweep.yaml").is_file():
                continue
            files = [
                path / "summary.json",
                path / "driver.json",
                *sorted(p for p in (path / "trials").glob("*/*") if p.name in (ROWS, OUTCOME)),
            ]
            stamp = tuple(map(details.mtime, files))
            known = self._sweeps.get(name)
            try:
                if known is None or known[0] != stamp or known[1]["status"] == "running":
                    known = (stamp, sweep_entry(path))
                    self._sweeps[name] = known
            except Exception:  # its runs still have their entries
                continue
            entries.append({**known[1], "id": name, **_split_status(known[1]["status"])})
        return entries

    def _entry(self, name: str, path: Path) -> dict[str, Any]:
        """Return a run's entry, read again only when one of its files has changed."""
        stamp = tuple(details.mtime(path / f) for f in ("config.yaml", "state.json", "summary.json", "parts"))
        known = self._entries.get(name)
        if known is None or known[0] != stamp:
            known = (stamp, read_entry(name, path))
            self._entries[name] = known
        return {**known[1], **_split_status(status(path))}

    def run(self, name: str) -> dict[str, Any] | None:
        """Return everything about one run, None if there is none with this id. A part that cannot be read gives its reason."""
        path = self.paths().get(name)
        if path is None:
            return None
        try:
            run = read_run(path)
        except Exception as error:
            return {"id": name, "name": path.name, "problem": _describe(error)}
        state = read_json(path / "state.json")
        parts: dict[str, Callable[[], Any]] = {
            "about": partial(details.about, run.config, run.summary, path),
            "live": partial(_live, state),
            "curves": partial(details.curves, run.rows),
            "clusters": partial(details.clusters, path, run.rows),
            "spread": partial(details.spread, path, run.rows),
            "actors": partial(processes.actors, path, state, run.rows),
            "config": partial(_config_text, path),
            "report": (path / "report.html").is_file,
        }
        out: dict[str, Any] = {"id": name, "name": path.name, **_split_status(run.status)}
        for part, read in parts.items():
            try:
                out[part] = read()
            except Exception as error:
                out[part] = {"problem": _describe(error)}
        return out

    def log(self, name: str) -> dict[str, Any] | None:
        """Return a run's newest events, the latest first, as {"events": ...}; None if there is no such run."""
        path = self.paths().get(name)
        if path is None:
            return None
        try:
            return {"events": read_events(path)[-EVENTS:][::-1]}
        except Exception as error:
            return {"events": {"problem": _describe(error)}}

    def report(self, name: str) -> bytes | None:
        """Return a run's report.html, None if there is none."""
        path = self.paths().get(name)
        file = path / "report.html" if path is not None else None
        return file.read_bytes() if file is not None and file.is_file() else None

    def prometheus(self) -> str:
        """Return runs in Prometheus' text format: those that are running or ended a short while ago, except those that Ray's
        own metrics port exports."""
        series = Series()
        for entry in self.runs():
            path = self.folder / entry["id"]
            try:
                config = read_settings(path)
                if not _exported_by_ray(path, config) and _is_recent(path, entry["status"]):
                    _add_run(series, path, config, entry["status"])
            except Exception:  # its entry on the page gives the reason
                continue
        return series.text()


def read_entry(name: str, path: Path) -> dict[str, Any]:
    """Return a run's entry in the list, without its status."""
    config, state = read_settings(path), read_json(path / "state.json")
    rows = list(round_log.read(path).values())
    scoped = [m for m in details.measured(rows) if m.partition("/")[2] in SCOPES]
    metric = next((m for m in (*PREFERRED, *scoped) if m in scoped), None)
    curve = details.curve(rows, metric, SPARK_POINTS) if metric else []
    parent = Path(name).parent.as_posix()
    return {
        "id": name,
        "name": path.name,
        "group": "" if parent == "." else parent,
        "method": method_name(config),
        "seed": config.get("seed"),
        "round": rows[-1]["round"] if rows else 0,
        "rounds": config.get("rounds"),
        "started": started(path),
        "seconds": read_json(path / "summary.json").get("wall_s"),
        "eta_s": state.get("eta_s"),
        "clients_per_s": state.get("clients_per_s"),
        "metric": metric,
        "value": curve[-1][1] if curve else None,
        "spark": curve,
    }


def _walk(folder: Path) -> Iterator[Path]:
    """Yield run folders, breadth first; a run folder is not searched for others."""
    level, searched = [folder], 0
    for depth in range(DEPTH + 1):
        below: list[Path] = []
        for path in level:
            if (path / "config.yaml").is_file() and (path / "lock.json").is_file():
                yield path
                continue
            if depth == DEPTH or searched > MAX_FOLDERS:
                continue
            try:
                with os.scandir(path) as entries:
                    names = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
            except OSError:
                continue
            searched += len(names)
            below += [path / name for name in sorted(names)]
        level = below


def _split_status(text: str) -> dict[str, str]:
    """`interrupted (resume with ...)` -> status and note."""
    word, _, note = text.partition(" ")
    return {"status": word, "note": note.strip("()")}


def _live(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: state.get(k) for k in ("round", "rounds", "clients_per_s", "bytes", "eta_s", "time")}


def _config_text(path: Path) -> str:
    return (path / "config.yaml").read_text(encoding="utf-8", errors="replace")[:CONFIG]


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _is_recent(path: Path, status: str) -> bool:
    ended = time.time() - details.mtime(path / "state.json") / 1e9
    return status in ("running", "starting") or ended < EXPORT_AFTER_END


def _exported_by_ray(path: Path, config: Mapping[str, Any]) -> bool:
    on_ray = any(e["kind"] == "placed" for e in read_events(path))
    return on_ray and "prometheus" in (config.get("track") or ())


def _add_run(series: Series, path: Path, config: Mapping[str, Any], status: str) -> None:
    """Add a run's values to `series`."""
    rows = round_log.read(path)
    labels = labels_of(str(read_json(path / "lock.json").get("run", path.name)), config, path)
    series.put("rayfed_running", float(status in ("running", "starting")), labels)
    series.put("rayfed_rounds", float(config["rounds"]), labels)
    restarts = 0
    for row in rows.values():
        for name, value, more in readings(row, restarts):
            series.put(name, value, {**labels, **more})
        restarts = max(restarts, int(row.get("actors/restarts") or 0))
