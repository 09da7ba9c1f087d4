"""The list of a folder's runs, studies and sweeps, and their statuses: `rayfed runs`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from rayfed.storage import round_log
from rayfed.storage.owner import Owner
from rayfed.storage.provenance import FILE, read_settings, settings_file
from rayfed.storage.run_status import RunStatus
from rayfed.storage.saved_config import method_name
from rayfed.storage.study_folder import study_base, study_runs
from rayfed.storage.sweep_folder import counts, load_sweep
from rayfed.storage.text_files import read_json

ENDED = tuple(s for s in RunStatus if s.ended)


def list_runs(folder: Path | str) -> list[dict[str, Any]]:
    """Return the runs, studies and sweeps directly in a folder, oldest first.

    Each has name, kind (run | study | sweep), method, status, round, rounds, started (local time, ISO) and path. A study's
    rounds are the sum over its arms and seeds, a sweep's over its trials and seeds; a sweep also has trials ({planned, begun,
    complete, diverged, failed}), metric and best (that of its best trial). A run counts as running only if its owner is alive.
    collapsed: of runs and studies, how many runs fell to chance.
    """
    found = []
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else ():
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            kind = settings_file(path)
            if kind == "study.yaml":
                found.append(study_entry(path))
            elif kind == "sweep.yaml":
                found.append(sweep_entry(path))
            elif kind and ((path / "lock.json").is_file() or (path / FILE).is_file()):
                found.append(run_entry(path))
        except Exception as error:  # one damaged folder must not hide the others
            unknown = {"method": None, "round": None, "rounds": None}
            found.append(_entry(path, "run", status=f"unreadable: {error}", **unknown))
    return sorted(found, key=lambda r: r["started"])


def status(path: Path) -> str:
    """Return a run's status from its summary or state, or `interrupted (...)` if no process works on it."""
    hint, state = f"(resume with: rayfed resume {path})", read_json(path / "state.json")
    if read_json(path / "summary.json").get("status") == RunStatus.DONE:
        return "done"
    known = str(state.get("status", "starting"))
    if known == RunStatus.FAILED and state.get("certain"):
        return f"{known} (would fail there again: its code or settings have to change)"
    if known in (RunStatus.STOPPED, RunStatus.FAILED):
        return f"{known} {hint}"
    return _owned_status(known, read_json(path / "lock.json").get("owner")) or f"interrupted {hint}"


def _owned_status(known: str, about: Any) -> str | None:
    """Return the status of what an owner, as its file names it, works on; None if it does not run any more."""
    owner = Owner.read(about)
    if owner is None or not owner.alive():
        return None
    return known if owner.here() else f"{known} (owner on {owner.host}, not checked)"


def started(path: Path) -> str:
    """Return the start from the folder's name, or the folder's time if it was renamed: local time, ISO."""
    parts = path.name.rsplit("-", 3)
    try:
        when = datetime.strptime("-".join(parts[1:3]), "%Y%m%d-%H%M%S")
    except ValueError:
        when = datetime.fromtimestamp(path.stat().st_mtime)
    return when.isoformat(timespec="seconds")


def _entry(path: Path, kind: str, **about: Any) -> dict[str, Any]:
    return {"name": path.name, "kind": kind, **about, "started": started(path), "path": str(path)}


def run_entry(path: Path) -> dict[str, Any]:
    """Return a run's entry in the list."""
    config = read_settings(path)
    about = {
        "method": method_name(config),
        "status": status(path),
        "round": _round(path),
        "rounds": config.get("rounds"),
        "collapsed": int(_has_collapsed(path)),
    }
    return _entry(path, "run", **about)


def _round(path: Path) -> int:
    """Return the last round of a run."""
    known = read_json(path / "summary.json").get("rounds", read_json(path / "state.json").get("round"))
    return int(known) if known is not None else max(round_log.read(path), default=0)


def _has_collapsed(path: Path) -> bool:
    """Return whether a run fell to chance, ended or not."""
    known = read_json(path / "summary.json") or read_json(path / "state.json")
    return known.get("collapsed") is not None


def study_entry(path: Path) -> dict[str, Any]:
    """Return a study's entry in the list."""
    study = read_settings(path, "study.yaml")
    planned = list(study_runs(path, study))
    begun = [folder for _, _, folder in planned if settings_file(folder)]
    known = {folder: int(read_settings(folder).get("rounds", 0)) for folder in begun}
    default = study_base(study).get("rounds") or next(iter(known.values()), 0)
    arms = study.get("arms") or {}
    rounds = sum(
        known[folder] if folder in known else int((arms.get(arm) or {}).get("rounds", default))
        for arm, _, folder in planned
    )
    return _entry(
        path,
        "study",
        method=", ".join(dict.fromkeys(arm for arm, _, _ in planned)),
        status=_study_status(path, [status(folder) for folder in begun]),
        round=sum(_round(folder) for folder in begun),
        rounds=rounds,
        collapsed=sum(map(_has_collapsed, begun)),
    )


def _study_status(path: Path, runs: list[str]) -> str:
    """Return a study's status from those of its runs that have begun."""
    hint = f"(resume with: rayfed resume {path})"
    if (path / "summary.json").is_file() and all(s == "done" for s in runs):
        return read_json(path / "summary.json").get("status", "done")
    if any(s.split()[0] not in (*ENDED, "interrupted") for s in runs):
        return "running"
    failed = [s for s in runs if s.startswith("failed")]
    if again := [s for s in failed if "resume" not in s]:  # it would come to that run first
        return again[0]
    return f"failed {hint}" if failed else f"interrupted {hint}"


def sweep_entry(path: Path) -> dict[str, Any]:
    """Return a sweep's entry in the list."""
    sweep, summary = load_sweep(path), read_json(path / "summary.json")
    values = list(sweep.ranked[0].by_seed(sweep.metric).values()) if sweep.ranked else []
    driver = read_json(path / "driver.json")  # {} after the driver has ended
    hint = f"(resume with: rayfed sweep --resume {path})"
    known = _owned_status("running", driver)
    if known is None and not driver and summary.get("status") == "done":
        known = "done"
    again = not sweep.unsound or any(t.outcome and not t.outcome.certain for t in sweep.unsound)
    failed = f"failed {hint}" if again else "failed"
    entry = _entry(
        path,
        "sweep",
        method=method_name(sweep.about["config"]),
        status=known or (failed if summary.get("failed") else f"interrupted {hint}"),
        round=sum(t.round * len(t.last["seeds"]) for t in sweep.trials),
        rounds=int(sweep.about["trials"]) * len(sweep.about["options"]["seeds"]) * int(sweep.about["rounds"]),
    )
    best = fmean(values) if values else None
    return {**entry, "trials": counts(sweep), "metric": sweep.metric, "best": best}
