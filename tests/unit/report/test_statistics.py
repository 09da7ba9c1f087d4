"""Statistics of reports, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayfed.report.statistics import mean_interval, mean_sd, worst_decile


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
