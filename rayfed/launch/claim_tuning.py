"""Chooses the settings of a claim's arms: the best of a grid on validation rows that also trains stably."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rayfed.errors import ConfigError
from rayfed.launch.claim_file import (
    BEYOND,
    ClaimFile,
    Tune,
    at_edge,
    best_trial,
    beyond,
    change_of,
    drawn_seeds,
    trials,
)
from rayfed.launch.claim_runs import RunStudies
from rayfed.metrics import measured
from rayfed.report.statistics import mean_sd
from rayfed.report.study import POINT, is_share
from rayfed.report.subject import RunRecord, load_study

AS_LOOP: dict[str, Any] = {"resources": {"executor": "loop"}}
AS_DOUBLE: dict[str, Any] = {"task": {"dtype": "float64"}}
RATES = ("lr", "_lr", "_rate")  # how names of settings end that scale steps
DOWN = 3  # how often an arm passes over settings that do not train stably

Log = Callable[[str], None]


class Trial(NamedTuple):
    """Settings that an arm tried: their mean score over seeds (None: diverged or without a value), and the runs."""

    settings: Mapping[str, Any]
    score: float | None
    runs: Sequence[RunRecord]


def tune(
    file: ClaimFile, claimed: Collection[str], run_studies: RunStudies, out: Path, log: Log = print
) -> dict[str, dict[str, Any]]:
    """Choose settings for every arm by the file's `tune` block; returns arm -> {chosen, edge, trials, passed}; empty without a block.

    The runs hold out a validation part of the training data, which alone is scored, and have seeds of their own. A trial that
    diverges has no score. An arm whose best value is at the edge of its grid tries the next one beyond it, `BEYOND` times at most.
    Of trials of a share within a point of the best, the one with the least rates is taken: what is as good and trains more surely.
    Arms of which a share is claimed (`claimed`) then run one of the seeds under `loop` and in float64: where these differ by more than a
    point, or a run fell to chance, this trial and those with rates as large are passed over, `DOWN` times at most.
    """
    block = file.registered.tune if file.registered else None
    if block is None:
        return {}
    tried = _grid(file, block, run_studies, out, log)
    passed: dict[str, list[dict[str, Any]]] = {arm: [] for arm in tried}
    waiting = [arm for arm in tried if arm in claimed and is_share(block.metric)]
    for _ in range(DOWN):
        chosen = {arm: _choice(tried[arm], block, passed[arm]) for arm in waiting}
        why = _unstable(file, block, chosen, run_studies, out, log) if chosen else {}
        waiting = [arm for arm, reasons in why.items() if reasons]
        for arm in waiting:
            passed[arm].append({"settings": dict(chosen[arm].settings), "why": why[arm]})
        waiting = [arm for arm in waiting if _left(tried[arm], passed[arm])]
        if not waiting:
            break
    made = {}
    for arm, found in tried.items():
        best = dict(_choice(found, block, passed[arm]).settings)
        entry = {
            "chosen": best, "edge": at_edge([t.settings for t in found], best),
            "trials": [{"settings": dict(t.settings), "score": t.score} for t in found],
        }  # fmt: skip
        made[arm] = entry | ({"passed": passed[arm]} if passed[arm] else {})
    return made


def _grid(file: ClaimFile, block: Tune, run_studies: RunStudies, out: Path, log: Log) -> dict[str, list[Trial]]:
    """Run every arm's trials, and those beyond the edge of its grid."""
    waiting = {arm: t for arm in file.study.arms if (t := trials(block, arm))[0]}
    tried: dict[str, list[Trial]] = {arm: [] for arm in waiting}
    for turn in range(1 + BEYOND):
        studies = _trial_studies(file, block, waiting, turn == 0)
        if not studies:
            break
        what = "beyond the edge of the grid" if turn else "tuning"
        log(f"{file.name}: {what}: {len(studies)} trials x {block.seeds} seeds")
        made = run_studies([study for _, _, study in studies], out)
        for (arm, settings, _), ran in zip(studies, made, strict=True):
            runs = [] if ran.diverged else load_study(ran.folder).arms[arm]
            tried[arm].append(Trial(settings, _score(runs, block), runs))
        waiting = {
            arm: beyond([t.settings for t in found], found[_best(found, block)].settings)
            for arm, found in tried.items()
        }
    return tried


def _trial_studies(
    file: ClaimFile,
    block: Tune,
    waiting: Mapping[str, Sequence[Mapping[str, Any]]],
    strict: bool,
    more: Mapping[str, Any] | None = None,
    seeds: int | None = None,
) -> list[tuple[str, Mapping[str, Any], Any]]:
    """Return (arm, settings, study) of trials, under `more` changes; unless strict, without values that a setting cannot have."""
    drawn, studies = drawn_seeds(file.name, file.digest, block.seeds, "tune")[:seeds], []
    for arm, trials_of_arm in waiting.items():
        config = file.study.arms[arm]
        every = config.evaluate.every if measured(block.metric) != block.metric else config.rounds
        held = {"federation": {"split": {"val": block.val}}, "evaluate": {"split": "val", "every": every}}
        for settings in trials_of_arm:
            try:
                studies.append((arm, settings, file.alone(arm, drawn, [change_of(settings), held, more or {}])))
            except ConfigError:
                if strict:
                    raise
    return studies


def _best(tried: Sequence[Trial], block: Tune) -> int:
    """Return the index of the trial with the best score."""
    return best_trial([t.score for t in tried], block.metric)


def _score(runs: Sequence[RunRecord], block: Tune) -> float | None:
    """Return the mean over seeds of the metric at the last round; None where training diverged or a run has no value."""
    values = [v for r in runs if (v := r.final(block.metric)) is not None]
    return mean_sd(values)[0] if len(values) == block.seeds else None


def _choice(tried: Sequence[Trial], block: Tune, passed: Sequence[Mapping[str, Any]]) -> Trial:
    """Return the trial that is chosen: of those left within a point of the best, the one with the least rates."""
    found = _left(tried, passed) or list(tried)
    best = found[_best(found, block)]
    if not is_share(block.metric) or best.score is None:
        return best
    near = [t for t in found if t.score is not None and t.score >= best.score - POINT]
    return min(near, key=lambda t: (list(_rates(t.settings).values()), -t.score if t.score is not None else 0.0))


def _left(tried: Sequence[Trial], passed: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """Return the trials with a score and with some rate below that of each trial that was passed over."""
    return [
        t for t in tried
        if t.score is not None and all(any(v < _rates(p["settings"])[k] for k, v in _rates(t.settings).items()) for p in passed)
    ]  # fmt: skip


def _rates(settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among the settings that scale steps."""
    return {k: v for k, v in settings.items() if k.rpartition(".")[2].endswith(RATES) and isinstance(v, int | float)}


def _unstable(
    file: ClaimFile, block: Tune, chosen: Mapping[str, Trial], run_studies: RunStudies, out: Path, log: Log
) -> dict[str, list[str]]:
    """Return arm -> why its trial does not train stably; nothing where it does."""
    log(f"{file.name}: stability of what {len(chosen)} arms would choose")
    settings = {arm: [t.settings] for arm, t in chosen.items()}
    found = {
        arm: [f"seed {r.seed} fell to chance" for r in t.runs if r.summary.get("collapsed")]
        for arm, t in chosen.items()
    }
    values = {arm: [t.runs[0].final(block.metric)] for arm, t in chosen.items()}
    studies = [s for kind in (AS_LOOP, AS_DOUBLE) for s in _trial_studies(file, block, settings, False, kind, 1)]
    for (arm, _, _), ran in zip(studies, run_studies([s for _, _, s in studies], out), strict=True):
        if ran.diverged:
            found[arm].append("it diverges under loop or in float64")
        elif not isinstance(ran.error, ConfigError):  # what loop or float64 cannot do is not compared
            values[arm].append(load_study(ran.folder).arms[arm][0].final(block.metric))
    for arm, those in values.items():
        known = [v for v in those if v is not None]
        if max(known) - min(known) > POINT + 1e-12:
            found[arm].append(f"loop, vmap and float64 are {max(known) - min(known):.4f} apart")
    return found
