"""Statistics of reports, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayfed.report.statistics import (
    compare_pairs,
    detectable,
    equal_within,
    holm,
    mean_interval,
    mean_sd,
    spent_alpha,
    worst_decile,
)


def test_worst_decile_by_hand():
    values = [0.5, 0.1, 0.9, 0.3, *[0.8] * 16]  # 20 clients: the worst two
    assert worst_decile(values) == pytest.approx(0.2)
    assert worst_decile(values, lower_is_better=True) == pytest.approx(0.85)
    assert worst_decile([0.4]) == 0.4
    assert worst_decile([0.7, *[1.0] * 9, 0.3]) == pytest.approx(0.5)  # 11 clients: a tenth is more than one


def test_mean_and_its_interval():
    from scipy import stats

    values = [0.5, 0.7, 0.9]
    mean, sd, half = mean_interval(values)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean, sd) == mean_sd(values) == (pytest.approx(0.7), pytest.approx(np.std(values, ddof=1)))
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert mean_interval([0.5]) == (0.5, None, None) and mean_interval([]) == (None, None, None)
    assert mean_interval([0.5, math.inf]) == (None, None, None)


def test_a_paired_comparison_is_scipys():
    from scipy import stats

    values = [0.02, -0.01, 0.03, 0.05, 0.01]
    found, test = compare_pairs(values, 0.01), stats.ttest_1samp(values, 0.0)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.99))) and found.p == pytest.approx(
        test.pvalue
    )
    assert (
        compare_pairs([0.0, 0.0]).p == 1 and compare_pairs([0.5, 0.5]).p == 0 and compare_pairs([0.5]).interval is None
    )
    assert compare_pairs([0.1, math.nan]).mean is None and compare_pairs([]).n == 0


def test_equality_needs_both_one_sided_tests():
    from scipy import stats

    values = [0.004, -0.003, 0.002, 0.001, -0.002]
    for bound in (0.001, 0.003, 0.004, 0.01):
        above = stats.ttest_1samp(values, -bound, alternative="greater").pvalue
        below = stats.ttest_1samp(values, bound, alternative="less").pvalue
        interval = compare_pairs(values, 0.1).interval
        assert interval is not None and equal_within(interval, bound) == (max(above, below) < 0.05), bound
    assert equal_within((-0.009, 0.002), 0.01) and not equal_within((-0.009, 0.002), 0.001)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.5 of four: 0.04, 0.06, then never below the one before
    assert holm([0.03, 0.01, None, 0.5, 0.02]) == pytest.approx([0.06, 0.04, None, 0.5, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_what_looks_spend():
    looks = spent_alpha([8, 16, 32])
    assert sum(looks) == pytest.approx(0.05) and spent_alpha([8]) == pytest.approx([0.05])
    assert looks[0] == pytest.approx(0.05 * math.log(1 + (math.e - 1) / 4)) and all(a > 0.01 for a in looks)


def test_the_detectable_difference_is_found_with_its_power():
    rng = np.random.default_rng(0)
    d = detectable(0.05, 8)
    drawn = rng.normal(d, 0.05, (4000, 8))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(8))
    assert np.mean(np.abs(t) > 2.3646242510102993) == pytest.approx(0.8, abs=0.03)
