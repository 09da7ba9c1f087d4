"""A live status as a line, and the table that a command prints at the end; `rayfed.launch.live` shows the former."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfed.launch.time_left import time_text
from rayfed.metrics import FAMILIES, SCOPES
from rayfed.report.tables import caution
from rayfed.storage.provenance import read_settings
from rayfed.storage.study_folder import study_base

SHOWN = ("accuracy/global", "accuracy/personal", "loss/global")  # in the live line
STUDY_METRICS = (
    "accuracy/tasks",
    "accuracy/forgetting",
    "accuracy/global",
    "accuracy/personal",
    "accuracy/robust",
    "accuracy/backdoor",
    "accuracy/cluster",
    "accuracy/unseen",
    "loss/global",
)
STUDY_COLUMNS = 4  # what fits into 80 columns; the report has all


def _is_score(metric: str) -> bool:
    """Return whether a metric has a scope, and is not one of many of its family."""
    return metric.partition("/")[2].removesuffix("_ex") in SCOPES and not metric.startswith(FAMILIES)


def _chosen(usual: Sequence[str], measured: Iterable[str], many: int) -> list[str]:
    """Return the usual metrics to show, or, of a task that has no accuracy, its first ones of scopes `global` and `personal`."""
    scores = [m for m in measured if _is_score(m) and m.partition("/")[2] in ("global", "personal")]
    return list(usual) if any(m.startswith("accuracy/") for m in scores) or not scores else scores[:many]


def human(n: float) -> str:
    """Format bytes: 1234567 -> "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def line(state: Mapping[str, Any]) -> str:
    """Return a live status as one line: which run, round, last metrics, clients/s, bytes, time left."""
    parts = []
    if "arm" in state:
        number = f"[{state['run_number']}/{state['runs']}] " if "run_number" in state else ""
        parts.append(f"{number}{state['arm']} seed {state['seed']}")
    if "trial" in state:
        parts.append(f"trial {state['trial']} seed {state['seed']}")
    if "about" in state:  # a trial of a sweep
        parts.append(state["about"])
    if state.get("round"):
        parts.append(f"round {state['round']}/{state.get('rounds', '?')}")
    else:
        parts.append(state.get("status", "starting") + (f": {state['phase']}" if state.get("phase") else ""))
    metrics = state.get("metrics", {})
    parts += [state["score"]] if "score" in state else []
    parts += [state["waiting"]] if state.get("waiting") else []
    parts += [f"{n} {metrics[n]:.3f}" for n in _chosen(SHOWN, metrics, len(SHOWN)) if metrics.get(n) is not None]
    parts += [f"fell apart in round {state['collapsed']}"] if state.get("collapsed") is not None else []
    if state.get("clients_per_s"):
        parts.append(f"{state['clients_per_s']:.0f} clients/s")
    if state.get("bytes"):
        parts.append(human(state["bytes"]))
    if state.get("all_s") is not None:  # of a study or a sweep
        parts.append(f"{time_text(state['all_s'])} left in all")
    elif state.get("eta_s") is not None and state.get("status") == "running":
        parts.append(f"{time_text(state['eta_s'])} left")
    return "  ".join(parts)


def print_result(path: Path, summary: dict[str, Any]) -> None:
    """Print the table of a run or a study, and where the report is."""
    if "arms" in summary:
        _print_study(path, summary)
    else:
        _print_run(summary)
    if (path / "report.html").exists():
        print(f"report: {path / 'report.html'}")


def _print_study(path: Path, summary: dict[str, Any]) -> None:
    """Print final values by arm, and the verdicts on claims."""
    from rich.console import Console
    from rich.table import Table

    console, arms = Console(), summary["arms"]
    table = Table(title=f"final round, mean ± sd over {_seeds(path)} seeds")
    measured = dict.fromkeys(m for values in arms.values() for m in values)
    first = [f"{name}/{scope}" for name in _asked(path) for scope in ("global", "personal")]
    names = [m for m in dict.fromkeys([*first, *_chosen(STUDY_METRICS, measured, STUDY_COLUMNS)]) if m in measured]
    names = names[:STUDY_COLUMNS]
    table.add_column("arm")
    for name in names:
        table.add_column(name.replace("/", "\n"), justify="right")
    for arm, values in arms.items():
        table.add_row(arm, *(_mean_sd(values.get(name)) for name in names))
    console.print(table)
    for arm, rounds in (summary.get("collapsed") or {}).items():
        which = ", ".join(f"seed {seed} in round {r}" for seed, r in rounds.items())
        console.print(f"note: runs of {arm} fell to chance: {which}", markup=False)
    counted = {arm: max((v["n"] for v in values.values()), default=0) for arm, values in arms.items()}
    if few := caution(counted):
        console.print(f"note: {few}", markup=False)
    claims = summary.get("claim") or []
    for c in claims if isinstance(claims, list) else [claims]:
        console.print(f"claim: {c['metric']} of {c['better']} over {c['than']} at round {c['at']}: {c.get('verdict')}")


def _asked(path: Path) -> list[str]:
    """Return the names of the metrics that a study or its arms ask for beside the task's own (`evaluate.metrics`)."""
    study = read_settings(path, "study.yaml")
    parts = [study_base(study), *(study.get("arms") or {}).values()]
    found = [n for p in parts for n in ((p or {}).get("evaluate") or {}).get("metrics") or ()]
    return list(dict.fromkeys(str(n).rpartition(":")[2] for n in found))


def _print_run(summary: dict[str, Any]) -> None:
    """Print final and best values, and the run's notes."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    seconds = summary["wall_s"]
    took = f"{seconds:.1f} s" if seconds < 100 else time_text(seconds)
    table = Table(title=f"{summary['method']}, {summary['rounds']} rounds in {took}")
    for column in ("metric", "final", "best", "round of best"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, value in summary["metrics"].items():
        if name.startswith("clusters/") or _is_score(name):
            final, best = ("-" if value[k] is None else f"{value[k]:.4f}" for k in ("final", "best"))
            table.add_row(name, final, best, str(value["best_round"] or "-"))
    console.print(table)
    for note in summary["notes"]:
        console.print(f"note: {note}", markup=False)


def print_sweep(path: Path, summary: dict[str, Any]) -> None:
    """Print the best trials of a sweep, and where its page is."""
    from rich.console import Console
    from rich.table import Table

    from rayfed.report.point_text import point_text

    trials, several = summary["trials"], any(len(b["seeds"]) > 1 for b in summary["best"])
    counts = f"best of {trials['begun']} trials, {trials['complete']} complete"
    counts += "".join(f", {trials[n]} {n}" for n in ("diverged", "failed") if trials.get(n))
    table = Table(title=f"{counts}; {summary['rounds']:,} rounds in all")
    for column in ("point", summary["metric"], *(["minus the best"] if several else []), "round"):
        table.add_column(column, justify="left" if column == "point" else "right")
    for best in summary["best"]:
        value = _mean_sd({"mean": best["value"], "sd": best["sd"]})
        gap = [_difference(best["difference"] or {})] if several else []
        table.add_row(point_text(best["point"]), value, *gap, str(best["round"]))
    for ended in [*summary["diverged"], *summary["errors"]]:
        what = "failed" if ended["diverged"] is None else f"diverged in round {ended['diverged']}"
        table.add_row(point_text(ended["point"]), what, *(["-"] if several else []), "-")
    Console().print(table)
    for note in summary["notes"]:
        print(f"note: {note}")
    print(f"report: {path / 'sweep.html'}")


def _difference(d: dict[str, Any]) -> str:
    if d.get("mean") is None:
        return "-"
    interval = f" [{d['ci95'][0]:+.3f}, {d['ci95'][1]:+.3f}]" if d.get("ci95") else ""
    return f"{d['mean']:+.3f}{interval}"


def _mean_sd(v: dict[str, Any] | None) -> str:
    if not v or v.get("mean") is None:
        return "-"
    return f"{v['mean']:.3f}" + (f" ± {v['sd']:.3f}" if v.get("sd") is not None else "")


def _seeds(path: Path) -> int:
    """Return the largest number of seeds of an arm that have ended."""
    return max((len(list(arm.glob("seed-*/summary.json"))) for arm in path.iterdir() if arm.is_dir()), default=0)
