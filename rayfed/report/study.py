"""A study's numbers: final values over seeds, and the verdict on its claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.metrics import lower_is_better
from rayfed.report.data import Run, Subject, load_study, mean_sd
from rayfed.storage.atomic import durable_write, json_bytes

if TYPE_CHECKING:
    import pyarrow as pa


def study_summary(path: Path | str) -> dict[str, Any]:
    """Write `results.parquet` (a row per arm, seed and round) and `summary.json` of a study; returns the summary.

    status: `done` if every planned run is, else `incomplete`. Final values count runs that are done.
    """
    path = Path(path)
    subject = load_study(path)
    _write_results(subject)
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
    claim = (subject.study or {}).get("claim")  # one mapping, or a list of them; judged in the same form
    judged = [judge(c, subject.arms) for c in (claim if isinstance(claim, list) else [claim] if claim else [])]
    return {
        "status": "done" if done == subject.planned else "incomplete",
        "runs": {"done": done, "planned": subject.planned},
        "arms": arms,
        "claim": judged if isinstance(claim, list) else next(iter(judged), None),
    }


def judge(claim: Mapping[str, Any], arms: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Judge `{metric, at, better, than, margin}` by seeds that both arms have.

    `differences` (by seed), their mean `mean_difference` and `ci95` (paired, two-sided, Student's t) are in the direction
    of improvement: positive means that `better` is better, also where less is better. `at: null` means the final values.
    Verdict, with the interval [low, high]:
    - margin >= 0, "better by more than the margin": holds if low > margin, does not hold here if high <= margin;
    - margin < 0, "worse by at most -margin" (non-inferiority): holds if low >= margin, does not hold here if high < margin;
    - undecided if the interval spans the margin, and without an interval (`ci95` null): fewer than two seeds, or a value
      that is not finite.
    """
    from scipy.stats import t

    metric, at, margin = str(claim["metric"]), claim.get("at"), float(claim.get("margin") or 0.0)
    better, than = (_values(arms.get(claim[side], ()), metric, at) for side in ("better", "than"))
    sign = -1.0 if lower_is_better(metric) else 1.0
    pairs = {str(seed): sign * (better[seed] - than[seed]) for seed in better if seed in than}
    n, finite = len(pairs), all(math.isfinite(d) for d in pairs.values())
    mean, sd = mean_sd(list(pairs.values())) if finite else (None, None)
    interval, verdict = None, "undecided"
    if mean is not None and sd is not None:
        half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
        low, high = mean - half, mean + half
        interval = [low, high]
        if low > margin or (margin < 0 and low == margin):
            verdict = "holds"
        elif high < margin or (margin >= 0 and high == margin):
            verdict = "does not hold here"
    return {
        "metric": metric, "at": at, "better": claim["better"], "than": claim["than"], "margin": margin, "n": n,
        "differences": pairs, "mean_difference": mean, "ci95": interval, "verdict": verdict,
    }  # fmt: skip


def differences(subject: Subject) -> dict[str, dict[str, dict[str, Any]]]:
    """Arm -> metric -> `judge` of its final values against the first arm's, over the seeds that both have on the same
    split: `n` is their number. An arm without any is left out."""
    (reference, base), *others = subject.ended.items()
    splits = {run.seed: run.split for run in base}
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, runs in others:
        shared = [run for run in runs if splits.get(run.seed) == run.split]
        found = {}
        for metric in subject.telling():
            claim = {"metric": metric, "better": arm, "than": reference}
            verdict = judge(claim, {arm: shared, reference: base})
            if verdict["n"]:
                found[metric] = verdict
        if found:
            out[arm] = found
    return out


def _values(runs: Sequence[Run], metric: str, at: int | None) -> dict[int, float]:
    """seed -> the value at round `at`; of a run that has not reached it, none."""
    out = {}
    for run in runs:
        done = run.summary.get("status") == "done"
        value = (run.final(metric) if done else None) if at is None else dict(run.series(metric)).get(int(at))
        if value is not None:
            out[run.seed] = value
    return out


def results(subject: Subject) -> pa.Table:
    """A row per arm, seed and committed round."""
    import pyarrow as pa

    from rayfed.storage.round_log import table

    flat = [(run, row) for run in subject.all for row in run.rows]
    content = table([dict(row) for _, row in flat])
    content = content.add_column(0, "arm", pa.array([run.arm for run, _ in flat], pa.string()))
    return content.add_column(1, "seed", pa.array([run.seed for run, _ in flat], pa.int64()))


def _write_results(subject: Subject) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(results(subject), sink)
    durable_write(subject.path / "results.parquet", sink.getvalue())
