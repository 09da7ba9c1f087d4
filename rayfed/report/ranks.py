"""Rank tests of a comparison: Friedman's of all arms, Wilcoxon's of each arm against the first, corrected by Holm.

Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 7), has data sets where a comparison here has
seeds: what is tested is whether arms differ on this data, over splits and initialisations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayfed.metrics import lower_is_better
from rayfed.report.statistics import holm
from rayfed.report.subject import Subject

if TYPE_CHECKING:
    import numpy as np

LEVEL, ENOUGH = 0.05, 6  # p can be below the level with so many seeds


@dataclass(frozen=True)
class RankTests:
    """Ranks of the arms in one metric over the seeds that all of them have on the same split.

    ranks: mean rank of each arm, 1 is best; friedman: p of Friedman's test, None with fewer than three arms or two seeds; wilcoxon:
    of each arm but the first, p of the signed-rank test against it; holm: the same corrected for how many they are.
    """

    metric: str
    seeds: int
    ranks: Mapping[str, float]
    friedman: float | None
    wilcoxon: Mapping[str, float]
    holm: Mapping[str, float]

    @property
    def least(self) -> float:
        """Return the least p that a two-sided signed-rank test of so many seeds can give."""
        return 2.0 ** (1 - self.seeds)


def rank_tests(subject: Subject, metrics: Sequence[str] = ()) -> list[RankTests]:
    """Return the tests of each metric, by default of all scores, that every arm of two or more has for two seeds or more.

    Metrics for which less or more is not better have none.
    """
    out = []
    for metric in metrics or subject.quality_metrics():
        found = _values(subject, metric)
        if found and (metric.partition("/")[0] in subject.scopes() or metric == "clusters/ari"):
            out.append(_tests(metric, found))
    return out


def note(tests: Sequence[RankTests]) -> str:
    """Return what a reader should know of the tests, in sentences."""
    least = max(t.least for t in tests)
    text = (
        "Mean rank over the seeds that all arms have on the same split, 1 is best; p of Wilcoxon's signed-rank test against the first "
        "arm, corrected by Holm for the arms of a row."
    )
    if least <= LEVEL:
        return text
    fewest = min(t.seeds for t in tests)
    return f"{text} With {fewest} seeds it cannot be below {least:.3g}, whatever the arms are; below {LEVEL} from {ENOUGH} seeds on."


def lines(tests: Sequence[RankTests], arms: Sequence[str]) -> list[list[str]]:
    """Return the tests as lines of a table: metric, mean rank of each arm, seeds, Friedman's p, corrected p of each arm but the first."""
    out = []
    for t in tests:
        ranks = [f"{t.ranks[arm]:.2f}" for arm in arms]
        friedman = "–" if t.friedman is None else f"{t.friedman:.3g}"
        out.append([t.metric, *ranks, str(t.seeds), friedman, *(f"{t.holm[arm]:.3g}" for arm in arms[1:])])
    return out


def _values(subject: Subject, metric: str) -> dict[str, list[float]]:
    """Return each arm's final values by seed, of the seeds that all share; {} where there is nothing to compare."""
    if len(subject.done) < 2:
        return {}
    found: dict[str, dict[tuple[int, str], float]] = {}
    for arm, runs in subject.done.items():
        finals = {(run.seed, run.split_key): run.final(metric) for run in runs}
        found[arm] = {k: v for k, v in finals.items() if v is not None}
    shared = sorted(set.intersection(*(set(values) for values in found.values())))
    return {arm: [values[k] for k in shared] for arm, values in found.items()} if len(shared) > 1 else {}


def _tests(metric: str, found: Mapping[str, Sequence[float]]) -> RankTests:
    import numpy as np
    from scipy.stats import friedmanchisquare, rankdata

    _, *others = found
    values = np.array([found[arm] for arm in found]).T  # (seeds, arms)
    ranks = rankdata(values if lower_is_better(metric) else -values, axis=1)
    friedman = None
    if len(found) > 2 and (ranks != ranks[:, :1]).any():
        friedman = float(friedmanchisquare(*values.T).pvalue)
    p = [_wilcoxon(values[:, i] - values[:, 0]) for i in range(1, len(found))]
    corrected = [1.0 if v is None else v for v in holm(p)]
    return RankTests(
        metric,
        len(values),
        dict(zip(found, ranks.mean(0).tolist(), strict=True)),
        friedman,
        dict(zip(others, p, strict=True)),
        dict(zip(others, corrected, strict=True)),
    )


def _wilcoxon(differences: np.ndarray) -> float:
    """Return the two-sided p; 1 where nothing differs."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0
