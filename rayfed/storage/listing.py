"""What lies in a folder of runs: `rayfed runs`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from rayfed.storage import round_log
from rayfed.storage.atomic import read_json, read_yaml
from rayfed.storage.owner import Owner
from rayfed.storage.study_folder import study_base, study_runs
from rayfed.storage.sweep_folder import counts, load_sweep

ENDED = ("done", "stopped", "failed")


def runs(dir: Path | str) -> list[dict[str, Any]]:
    """Runs, studies and sweeps directly in a folder, oldest first.

    Each: name, kind (run | study | sweep), method, status, round, rounds, started (local time, ISO), path. A study's rounds
    are the sum over its arms and seeds, a sweep's over its trials and seeds; a sweep also has trials ({planned, begun, complete}),
    metric and best (that of its best trial). A run counts as running only if its owner lives.
    """
    found = []
    for path in sorted(Path(dir).iterdir()) if Path(dir).is_dir() else ():
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            if (path / "study.yaml").is_file():
                found.append(_study(path))
            elif (path / "sweep.yaml").is_file():
                found.append(sweep(path))
            elif (path / "config.yaml").is_file() and (path / "lock.json").is_file():
                found.append(_run(path))
        except (OSError, ValueError, KeyError, TypeError) as error:  # one damaged folder must not hide the others
            about = {"method": None, "round": None, "rounds": None, "started": started(path), "path": str(path)}
            found.append({"name": path.name, "kind": "run", "status": f"unreadable: {error}", **about})
    return sorted(found, key=lambda r: r["started"])


def method_name(config: Mapping[str, Any]) -> str:
    """The method of a config, whether written as a name or as a section."""
    method = config.get("method")
    return str(method.get("name", "?")) if isinstance(method, Mapping) else str(method or "?")


def status(path: Path) -> str:
    """A run's status: as its summary or state says, but `interrupted (...)` if nobody is at work on it."""
    again = f"(resume with: rayfed resume {path})"
    said = read_json(path / "summary.json").get("status") or read_json(path / "state.json").get("status", "starting")
    if said == "done":
        return said
    if said in ENDED:
        return f"{said} {again}"
    owner = read_json(path / "lock.json").get("owner")
    if not owner or not Owner(**owner).alive():
        return f"interrupted {again}"
    return said if Owner(**owner).here() else f"{said} (owner on {owner['host']}, not checked)"


def started(path: Path) -> str:
    """From the name's id; the folder's time if it was renamed."""
    parts = path.name.rsplit("-", 3)
    try:
        when = datetime.strptime("-".join(parts[1:3]), "%Y%m%d-%H%M%S")
    except ValueError:
        when = datetime.fromtimestamp(path.stat().st_mtime)
    return when.isoformat(timespec="seconds")


def _run(path: Path) -> dict[str, Any]:
    config = read_yaml(path / "config.yaml")
    return {
        "name": path.name,
        "kind": "run",
        "method": method_name(config),
        "status": status(path),
        "round": _round(path),
        "rounds": config.get("rounds"),
        "started": started(path),
        "path": str(path),
    }


def _round(path: Path) -> int:
    known = read_json(path / "summary.json").get("rounds", read_json(path / "state.json").get("round"))
    return int(known) if known is not None else max(round_log.read(path), default=0)


def _study(path: Path) -> dict[str, Any]:
    study = read_yaml(path / "study.yaml")
    planned = list(study_runs(path, study))
    begun = [where for _, _, where in planned if (where / "config.yaml").is_file()]
    known = {where: int(read_yaml(where / "config.yaml").get("rounds", 0)) for where in begun}
    default = study_base(study).get("rounds") or next(iter(known.values()), 0)
    arms = study.get("arms") or {}
    rounds = sum(known.get(where, int((arms.get(arm) or {}).get("rounds", default))) for arm, _, where in planned)
    states = [status(where) for where in begun]
    again = f"(resume with: rayfed resume {path})"
    if (path / "summary.json").is_file() and all(s == "done" for s in states):
        said = read_json(path / "summary.json").get("status", "done")
    elif any(s.split()[0] not in (*ENDED, "interrupted") for s in states):
        said = "running"
    else:
        said = f"failed {again}" if any(s.startswith("failed") for s in states) else f"interrupted {again}"
    return {
        "name": path.name,
        "kind": "study",
        "method": ", ".join(dict.fromkeys(arm for arm, _, _ in planned)),
        "status": said,
        "round": sum(_round(where) for where in begun),
        "rounds": rounds,
        "started": started(path),
        "path": str(path),
    }


def sweep(path: Path) -> dict[str, Any]:
    """A sweep's line in the list of runs."""
    found, summary = load_sweep(path), read_json(path / "summary.json")
    values = list(found.ranked[0].by_seed(found.metric).values()) if found.trials else []
    driver = read_json(path / "driver.json")  # {} once it has let go
    again = f"(resume with: rayfed sweep --resume {path})"
    if driver and Owner(**driver).alive():
        said = "running" if Owner(**driver).here() else f"running (owner on {driver['host']}, not checked)"
    elif not driver and summary.get("status") == "done":
        said = "done"
    else:
        said = f"failed {again}" if summary.get("failed") else f"interrupted {again}"
    return {
        "name": path.name,
        "kind": "sweep",
        "method": method_name(found.about["config"]),
        "status": said,
        "round": sum(max(t.rows) * len(t.last["seeds"]) for t in found.trials),
        "rounds": int(found.about["trials"]) * len(found.about["options"]["seeds"]) * int(found.about["rounds"]),
        "started": started(path),
        "path": str(path),
        "trials": counts(found),
        "metric": found.metric,
        "best": fmean(values) if values else None,
    }
