"""A study's numbers: final values over seeds, and verdicts on its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.metrics import READY_MEASURES, lower_is_better, mean_of_last
from rayfed.report.crossed import RowValues, crossed_difference, row_values
from rayfed.report.statistics import compare_pairs, equal_within, mean_sd
from rayfed.report.subject import RunRecord, Subject, load_study
from rayfed.storage.atomic import durable_write
from rayfed.storage.text_files import sealed_bytes

if TYPE_CHECKING:
    import pyarrow as pa

# metrics between 0 and 1
SHARES = tuple(n for n, m in READY_MEASURES.items() if m.unit == "fraction" and m.better == "higher")
Interval = tuple[float, float] | list[float]
POINT = 0.01  # how near two such means must be to be called equal, where a claim says nothing


def study_summary(path: Path | str) -> dict[str, Any]:
    """Write `results.parquet` (a row per arm, seed and round) and `summary.json` of a study, and return the summary.

    Its status is `done` if every planned run is done, else `incomplete`. Only runs that are done have final values.
    """
    path = Path(path)
    subject = load_study(path)
    _write_results(subject)
    out = summarise(subject)
    durable_write(path / "summary.json", sealed_bytes(out, 1))
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
    seeds = (subject.study or {}).get("seeds")
    if isinstance(claim, list):
        judged: Any = [judge(c, subject.arms, seeds=seeds) for c in claim]
    else:
        judged = judge(claim, subject.arms, seeds=seeds) if claim else None
    return {
        "status": "done" if done == subject.planned_runs else "incomplete",
        "runs": {"done": done, "planned": subject.planned_runs},
        "arms": arms,
        "collapsed": collapsed(subject),
        "claim": judged,
    }


def collapsed(subject: Subject) -> dict[str, dict[str, int]]:
    """Return arm -> seed -> the round in which that run fell to chance, of the runs that did."""
    found = {
        arm: {str(r.seed): r.collapsed for r in runs if r.collapsed is not None} for arm, runs in subject.done.items()
    }
    return {arm: rounds for arm, rounds in found.items() if rounds}


def judge(
    claim: Mapping[str, Any],
    arms: Mapping[str, Sequence[RunRecord]],
    *,
    seeds: Sequence[int] | None = None,
    alpha: float = 0.05,
) -> dict[str, Any]:
    """Judge a claim `{metric, at, better, than, margin, equal_within}` by a paired comparison over seeds.

    at: a round; null for the final values; seeds: those that both arms must have, default: those that they share; alpha: level
    of the two-sided tests. Differences are in the direction of improvement: positive where `better` is better, also for
    metrics that are better when they are lower. Returns what `judge_values` does, on values by row too where they were kept.
    """
    metric, at = str(claim["metric"]), claim.get("at")
    better, than = (_values(arms.get(claim[side], ()), metric, at) for side in ("better", "than"))
    rows = None
    if at is not None:
        rows = (
            _rows(arms.get(claim["better"], ()), metric, int(at)),
            _rows(arms.get(claim["than"], ()), metric, int(at)),
        )
    return judge_values(claim, better, than, rows=rows, seeds=seeds, alpha=alpha)


def judge_values(
    claim: Mapping[str, Any],
    better: Mapping[str, float],
    than: Mapping[str, float],
    *,
    rows: tuple[Mapping[str, RowValues], Mapping[str, RowValues]] | None = None,
    seeds: Sequence[int] | None = None,
    alpha: float = 0.05,
) -> dict[str, Any]:
    """Judge a claim by the values of both arms, seed -> value; rows: of both arms, seed -> values by row; the rest as in `judge`.

    Returns the claim with `differences` by seed, their number `n`, `mean_difference`, `sd`, `effect` (mean / sd), `alpha`, the
    95 % interval over seeds `ci95`, that over seeds and test rows `ci95_rows` with the number of `rows` (null where values by row
    are missing), `p` (two-sided, against 0), and what the wider of the two intervals says:

    - `verdict`: `incomplete` where a seed has no value; `better` or `worse` where the interval at `alpha` excludes 0;
      `equal within D` where two one-sided tests exclude a difference of D = `equal_within` (default: -margin of a margin below 0,
      a point for shares such as accuracies, else nothing) or where all differences are 0; else `undecided`, also for fewer
      than two seeds and for values that are not finite;
    - `holds`: true or false where the interval at `alpha` is beyond the margin, else null. With a margin >= 0 the claim is
      "better by more than the margin", below 0 "worse by at most -margin" (non-inferiority).
    """
    metric, at, margin = str(claim["metric"]), claim.get("at"), float(claim.get("margin") or 0.0)
    sign = -1.0 if lower_is_better(metric) else 1.0
    pairs = {seed: sign * (better[seed] - than[seed]) for seed in better if seed in than}
    gains = list(pairs.values())
    found = compare_pairs(gains, alpha)
    both = crossed_difference(*rows, list(pairs), sign) if rows and found.interval is not None else None
    interval = wider(found.interval, both.interval(alpha) if both else None)
    bound = claim.get("equal_within")
    if bound is None:
        bound = -margin if margin < 0 else POINT if is_share(metric) else None
    if seeds is not None and any(str(s) not in pairs for s in seeds):
        verdict, holds = "incomplete", None
    else:
        near = wider(compare_pairs(gains, 2 * alpha).interval, both.interval(2 * alpha) if both else None)
        verdict = _relation(gains, interval, near, bound)
        holds = _holds(interval, margin)
    ci95 = compare_pairs(gains).interval
    p = max(found.p, both.p) if both and found.p is not None else found.p
    return {
        "metric": metric, "at": at, "better": claim["better"], "than": claim["than"], "margin": margin, "equal_within": bound,
        "n": len(pairs), "differences": pairs, "mean_difference": found.mean, "sd": found.sd,
        "ci95": None if ci95 is None else list(ci95), "ci95_rows": list(both.interval()) if both else None,
        "rows": both.rows if both else None, "p": p, "effect": found.effect, "alpha": alpha, "verdict": verdict, "holds": holds,
    }  # fmt: skip


def is_share(metric: str) -> bool:
    """Return whether a metric is a share of right answers, or a mean of such."""
    of = mean_of_last(metric)
    return (of[1] if of else metric).partition("/")[0] in SHARES


def wider(a: Interval | None, b: Interval | None) -> Interval | None:
    """Return the wider of two intervals, the first where the other is missing or as wide."""
    if a is None or b is None:
        return a
    return b if b[1] - b[0] > a[1] - a[0] else a


def _relation(gains: Sequence[float], interval: Interval | None, near: Interval | None, bound: float | None) -> str:
    """Return how the arms relate: better, worse, equal within a bound, or undecided; near: the interval at twice the level."""
    if interval is None:
        return "undecided"
    if not any(gains):
        return "equal within 0"
    if interval[0] > 0:
        return "better"
    if interval[1] < 0:
        return "worse"
    return f"equal within {bound:g}" if bound and near and equal_within(near, bound) else "undecided"


def _holds(interval: Interval | None, margin: float) -> bool | None:
    """Return whether a difference beyond the margin is shown, excluded, or open (None)."""
    if interval is None:
        return None
    low, high = interval
    if low > margin or (margin < 0 and low == margin):
        return True
    return False if high < margin else None


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


def _rows(runs: Sequence[RunRecord], metric: str, at: int) -> dict[str, RowValues]:
    """Return seed -> values by row at round `at`, of the runs that have kept them."""
    return {str(run.seed): found for run in runs if (found := row_values(run, metric, at)) is not None}


def _values(runs: Sequence[RunRecord], metric: str, at: int | None) -> dict[str, float]:
    """Return seed -> the value at round `at`, or the final value; runs without it are left out."""
    out = {}
    for run in runs:
        if at is not None:
            value = dict(run.series(metric)).get(int(at))
        else:
            value = run.final(metric) if run.summary.get("status") == "done" else None
        if value is not None:
            out[str(run.seed)] = value
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
