"""Intervals over seeds and test rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayfed.report.crossed import Crossed, RowValues, crossed, crossed_difference, row_values
from rayfed.report.statistics import compare_pairs
from rayfed.report.study import judge_values, wider
from rayfed.storage import row_scores


def balanced(d: Any) -> Crossed:
    d = np.array(d, float)
    return crossed(d, np.full(d.shape, 1 / d.shape[1]))


def test_a_small_table_by_hand() -> None:
    """Seeds' means 2/3 and 1/3, rows' means 1, 0, 1/2: mean squares 1/6 of seeds, 1/2 of rows, 1/6 of the rest; so the variance of
    the mean is (1/6 + 1/2 - 1/6) / 6 = 1/36 of seeds + 1/18 of rows = 1/12, with (1/12)^2 / (1/36^2 / 1 + 1/18^2 / 2) = 3 degrees."""
    found = balanced([[1, 0, 1], [1, 0, 0]])
    assert (found.mean, found.error**2, found.freedom, found.rows) == pytest.approx((0.5, 1 / 12, 3.0, 3))
    half = 3.182446305284263 / 12**0.5  # t, 97.5 %, three degrees of freedom
    assert found.interval() == pytest.approx((0.5 - half, 0.5 + half))


def test_without_an_effect_of_rows_it_is_the_interval_over_seeds() -> None:
    d = np.array([[0.3, 0.1, 0.2], [0.5, 0.6, 0.4], [0.9, 0.7, 0.8]])
    d -= d.mean(0) - d.mean()  # rows' means are all equal
    seeds = compare_pairs(d.mean(1).tolist())
    found = balanced(d)
    assert seeds.interval and found.interval() == pytest.approx(seeds.interval) and found.p == pytest.approx(seeds.p)


def test_seeds_with_rows_of_their_own_share_nothing() -> None:
    d = np.array([[1.0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    w = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]) / 3
    seeds = compare_pairs((w * d).sum(1).tolist())
    assert seeds.interval and crossed(d, w).interval() == pytest.approx(seeds.interval)


def test_no_difference_has_no_width() -> None:
    assert balanced(np.zeros((3, 4))).interval() == (0, 0) and balanced(np.zeros((3, 4))).p == 1


@pytest.mark.parametrize("unequal", [False, True])
def test_the_variance_is_that_of_simulated_means(unequal: bool) -> None:
    """Mean of 400 estimates against the variance that the components give."""
    rng = np.random.default_rng(1)
    w = np.full((6, 40), 1 / 40)
    if unequal:
        w = (rng.random((6, 40)) < 0.5) * rng.uniform(0.5, 2, (6, 40))
        w /= w.sum(1, keepdims=True)
    seeds, rows, rest = 0.05, 0.5, 0.3
    true = seeds**2 / 6 + rows**2 * float((w.mean(0) ** 2).sum()) + rest**2 * float((w**2).sum()) / 36
    found = [
        crossed(rng.normal(0, seeds, (6, 1)) + rng.normal(0, rows, (1, 40)) + rng.normal(0, rest, (6, 40)), w).error
        ** 2
        for _ in range(400)
    ]
    assert np.mean(found) == pytest.approx(true, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "rows"), [(8, 360), (3, 100), (16, 60)])
@pytest.mark.parametrize("effects", [(0.02, 0.4, 0.3), (0.0, 0.4, 0.3), (0.05, 0.0, 0.5)])
def test_coverage_of_simulated_studies(seeds: int, rows: int, effects: tuple[float, float, float]) -> None:
    """Of 3,000 studies without a difference, 95 % have 0 within the wider interval; over seeds alone half of them may."""
    rng = np.random.default_rng(0)
    of_seed, of_row, rest = effects
    covered = 0
    for _ in range(3000):
        d = rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_row, (1, rows)) + rng.normal(0, rest, (seeds, rows))
        interval = wider(compare_pairs(d.mean(1).tolist()).interval, balanced(d).interval())
        covered += interval is not None and interval[0] <= 0 <= interval[1]
    assert 0.935 <= covered / 3000 <= 0.98


def values(scores: Any, rows: Any = (0, 1, 2, 3)) -> RowValues:
    return RowValues.of("accuracy/global", np.array(rows), np.array(scores), np.array([len(scores)]))


def test_the_wider_interval_decides() -> None:
    """Two arms that differ on one row of four, in every seed: certain over seeds, not over rows."""
    rows = ({str(s): values([1, 1, 1, 0]) for s in range(4)}, {str(s): values([1, 1, 0, 0]) for s in range(4)})
    a, b = (
        {str(s): x.values.mean() + int(s) / 1000 * (i == 0) for s, x in side.items()} for i, side in enumerate(rows)
    )
    claim = {"metric": "accuracy/global", "at": 3, "better": "a", "than": "b"}
    alone, both = judge_values(claim, a, b), judge_values(claim, a, b, rows=rows)
    assert (alone["verdict"], both["verdict"]) == ("better", "undecided")
    assert both["rows"] == 4 and both["ci95"] == alone["ci95"] and both["p"] > 0.05 > alone["p"]
    assert both["ci95_rows"][0] < 0 < alone["ci95"][0] and alone["ci95_rows"] is None


def test_rows_that_are_not_those_of_both_arms_do_not_count() -> None:
    a = {str(s): values([1, 0, 1, 0]) for s in range(2)}
    assert crossed_difference(a, {"0": a["0"]}, ["0", "1"]) is None
    assert crossed_difference(a, {s: values([1, 0, 1, 0], (0, 1, 2, 9)) for s in a}, ["0", "1"]) is None
    assert crossed_difference(a, a, ["0", "1"]) is not None


def test_clients_weigh_alike_and_rows_in_means_over_examples() -> None:
    sizes = np.array([1, 0, 3])
    found = RowValues.of("accuracy/personal", np.arange(4), np.array([1, 0, 0, 1]), sizes)
    assert found.weights == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert RowValues.of("accuracy/personal_ex", np.arange(4), found.values, sizes).weights == pytest.approx([1 / 4] * 4)


def test_scores_of_a_run_folder(tmp_path: Any) -> None:
    kept = {"rows": np.array([4, 2]), "sizes": np.array([2]), "accuracy": np.array([1.0, 0.0], np.float32)}
    row_scores.write(tmp_path, 3, {"personal": kept})
    run: Any = SimpleNamespace(path=tmp_path)
    found = row_values(run, "accuracy/personal", 3)
    assert found is not None and found.rows.tolist() == [4, 2] and found.values.tolist() == [1, 0]
    missing = (("accuracy/personal", 4), ("loss/personal", 3), ("accuracy/global", 3))
    assert all(row_values(run, metric, at) is None for metric, at in missing)
