"""A study's numbers: final values over seeds, and the verdict on its claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfed.files import durable_write, json_bytes
from rayfed.metrics import lower_is_better
from rayfed.report.data import Run, Subject, load_study, mean_sd


def study_summary(path: Path | str) -> dict[str, Any]:
    """Write `results.parquet` (a row per arm, seed and round) and `summary.json` of a study; returns the summary.

    status: `done` if every planned run is, else `incomplete`. Final values count runs that are done.
    """
    path = Path(path)
    subject = load_study(path)
    _results(subject)
    out = summarise(subject)
    durable_write(path / "summary.json", json_bytes(out, 1))
    return out


def summarise(subject: Subject) -> dict[str, Any]:
    """The content of a study's summary.json."""
    ended = subject.ended
    arms: dict[str, dict[str, Any]] = {}
    for arm, runs in ended.items():
        arms[arm] = {}
        for metric in subject.metrics:
            values = [v for v in (run.final(metric) for run in runs) if v is not None]
            if values:
                mean, sd = mean_sd(values)
                arms[arm][metric] = {"mean": mean, "sd": sd, "n": len(values)}
    done = sum(len(runs) for runs in ended.values())
    claim = (subject.study or {}).get("claim")
    return {
        "status": "done" if done == subject.planned else "incomplete",
        "runs": {"done": done, "planned": subject.planned},
        "arms": arms,
        "claim": judge(claim, subject.arms) if claim else None,
    }


def judge(claim: Mapping[str, Any], arms: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Judge `{metric, at, better, than, margin}` by seeds that both arms have.

    `mean_difference` and `ci95` (paired, two-sided, Student's t) are in the direction of improvement: positive means
    that `better` is better, also where less is better. `at: null` means the final values.
    """
    from scipy.stats import t

    metric, at, margin = str(claim["metric"]), claim.get("at"), float(claim.get("margin") or 0.0)
    better, than = (_values(arms.get(claim[side], ()), metric, at) for side in ("better", "than"))
    sign = -1.0 if lower_is_better(metric) else 1.0
    pairs = [sign * (better[seed] - than[seed]) for seed in better if seed in than]
    n = len(pairs)
    mean, sd = mean_sd(pairs)
    about = {"metric": metric, "at": at, "better": claim["better"], "than": claim["than"], "margin": margin, "n": n}
    if mean is None or sd is None or not math.isfinite(sd):
        return {**about, "mean_difference": mean, "ci95": None, "verdict": None}
    half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    low, high = mean - half, mean + half
    verdict = "holds" if low > margin else "does not hold here" if high <= margin else "undecided"
    return {**about, "mean_difference": mean, "ci95": [low, high], "verdict": verdict}


def _values(runs: Sequence[Run], metric: str, at: int | None) -> dict[int, float]:
    """seed -> the value at round `at`; of a run that has not reached it, none."""
    out = {}
    for run in runs:
        done = run.summary.get("status") == "done"
        value = (run.final(metric) if done else None) if at is None else dict(run.series(metric)).get(int(at))
        if value is not None:
            out[run.seed] = value
    return out


def _results(subject: Subject) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rayfed.rows import table

    flat = [(run, row) for run in subject.all for row in run.rows]
    content = table([dict(row) for _, row in flat])
    content = content.add_column(0, "arm", pa.array([run.arm for run, _ in flat], pa.string()))
    content = content.add_column(1, "seed", pa.array([run.seed for run, _ in flat], pa.int64()))
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink)
    durable_write(subject.path / "results.parquet", sink.getvalue())
