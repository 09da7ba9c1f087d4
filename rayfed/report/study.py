"""A study's numbers: final values over seeds, and verdicts on its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.metrics import lower_is_better
from rayfed.report.statistics import mean_interval, mean_sd
from rayfed.report.subject import RunRecord, Subject, load_study
from rayfed.storage.atomic import durable_write
from rayfed.storage.text_files import json_bytes

if TYPE_CHECKING:
    import pyarrow as pa


def study_summary(path: Path | str) -> dict[str, Any]:
    """Write `results.parquet` (a row per arm, seed and round) and `summary.json` of a study, and return the summary.

    Its status is `done` if every planned run is done, else `incomplete`. Only runs that are done have final values.
    """
    path = Path(path)
    subject = load_study(path)
    _write_results(subject)
    out = summarise(subject)
    durable_write(path / "summary.json", json_bytes(out, 1))
    return out


def summarise(subject: Subject) -> dict[str, Any]:
    """Return the content of a study's summary.json."""
    arms: dict[str, dict[str, Any]] = {}
    for arm, runs in subject.done.items():
        arms[arm] = {}
        for metric in subject.metrics:
            values = [v for v in (run.final(metric) for run in runs) if v is not None]
            if values:
                mean, sd = mean_sd(values)
                arms[arm][metric] = {"mean": mean, "sd": sd, "n": len(values)}
    done = sum(len(runs) for runs in subject.done.values())
    claim = (subject.study or {}).get("claim")  # one mapping, or a list of them; judged in the same form
    if isinstance(claim, list):
        judged: Any = [judge(c, subject.arms) for c in claim]
    else:
        judged = judge(claim, subject.arms) if claim else None
    return {
        "status": "done" if done == subject.planned_runs else "incomplete",
        "runs": {"done": done, "planned": subject.planned_runs},
        "arms": arms,
        "claim": judged,
    }


def judge(claim: Mapping[str, Any], arms: Mapping[str, Sequence[RunRecord]]) -> dict[str, Any]:
    """Judge a claim `{metric, at, better, than, margin}` over the seeds that both arms have.

    at: a round; null for the final values. Returns the claim with `n` seeds, `differences` by seed, their mean
    `mean_difference`, its 95 % interval `ci95` (paired, two-sided, Student's t) and a `verdict`. Differences are in the
    direction of improvement: positive where `better` is better, also for metrics that are better when they are lower.
    With the interval [low, high]:
    - margin >= 0, "better by more than the margin": holds if low > margin, does not hold here if high <= margin;
    - margin < 0, "worse by at most -margin" (non-inferiority): holds if low >= margin, does not hold here if high < margin;
    - undecided if the interval spans the margin, and without an interval (`ci95` null): fewer than two seeds, or a value
      that is not finite.
    """
    metric, at, margin = str(claim["metric"]), claim.get("at"), float(claim.get("margin") or 0.0)
    better, than = (_values(arms.get(claim[side], ()), metric, at) for side in ("better", "than"))
    sign = -1.0 if lower_is_better(metric) else 1.0
    pairs = {str(seed): sign * (better[seed] - than[seed]) for seed in better if seed in than}
    mean, _, half = mean_interval(list(pairs.values()))
    interval, verdict = None, "undecided"
    if mean is not None and half is not None:
        low, high = mean - half, mean + half
        interval = [low, high]
        if low > margin or (margin < 0 and low == margin):
            verdict = "holds"
        elif high < margin or (margin >= 0 and high == margin):
            verdict = "does not hold here"
    return {
        "metric": metric, "at": at, "better": claim["better"], "than": claim["than"], "margin": margin, "n": len(pairs),
        "differences": pairs, "mean_difference": mean, "ci95": interval, "verdict": verdict,
    }  # fmt: skip


def differences(subject: Subject) -> dict[str, dict[str, dict[str, Any]]]:
    """Return arm -> metric -> `judge` of its final values against the first arm's.

    Counts the `n` seeds that both have on the same split; an arm without any is left out.
    """
    (reference, base), *others = subject.done.items()
    splits = {run.seed: run.split_key for run in base}
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, runs in others:
        shared = [run for run in runs if splits.get(run.seed) == run.split_key]
        found = {}
        for metric in subject.quality_metrics():
            claim = {"metric": metric, "better": arm, "than": reference}
            judged = judge(claim, {arm: shared, reference: base})
            if judged["n"]:
                found[metric] = judged
        if found:
            out[arm] = found
    return out


def _values(runs: Sequence[RunRecord], metric: str, at: int | None) -> dict[int, float]:
    """Return seed -> the value at round `at`, or the final value; runs without it are left out."""
    out = {}
    for run in runs:
        if at is not None:
            value = dict(run.series(metric)).get(int(at))
        else:
            value = run.final(metric) if run.summary.get("status") == "done" else None
        if value is not None:
            out[run.seed] = value
    return out


def results(subject: Subject) -> pa.Table:
    """Return a table with a row per arm, seed and committed round."""
    import pyarrow as pa

    from rayfed.storage.round_log import table

    rows = [(run, row) for run in subject.runs for row in run.rows]
    content = table([dict(row) for _, row in rows])
    content = content.add_column(0, "arm", pa.array([run.arm for run, _ in rows], pa.string()))
    return content.add_column(1, "seed", pa.array([run.seed for run, _ in rows], pa.int64()))


def _write_results(subject: Subject) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(results(subject), sink)
    durable_write(subject.path / "results.parquet", sink.getvalue())
