"""Paired bootstrap of AUROC: scikit-learn's values, the same lists for both models, and p-values that swap."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from rayfed.report.bootstrap import auroc, counts, paired_auroc

RNG = np.random.default_rng(2)
Y = (RNG.random(40) < 0.4).astype(int)
GOOD, POOR = Y + RNG.normal(size=40), np.round(0.2 * Y + RNG.normal(size=40), 1)  # the second has ties


def test_it_is_the_area_of_each_list() -> None:
    drawn = counts(40, draws=5)
    assert (drawn.sum(1) == 40).all() and (counts(40, draws=5) == drawn).all()
    for scores in (GOOD, POOR):
        rows = [np.repeat(np.arange(40), d) for d in drawn]
        np.testing.assert_allclose(auroc(Y, scores, drawn), [roc_auc_score(Y[r], scores[r]) for r in rows])


def test_a_model_against_itself_and_swapped_models() -> None:
    same = paired_auroc(Y, GOOD, GOOD, 200)
    assert same is not None and same.p == same.reverse == 1.0 and same.interval == (0.0, 0.0)
    one, two = paired_auroc(Y, GOOD, POOR, 200), paired_auroc(Y, POOR, GOOD, 200)
    assert one is not None and two is not None
    assert (one.p, one.reverse) == (two.reverse, two.p) and one.p < 0.05 < two.p
    np.testing.assert_allclose(one.interval, (-two.interval[1], -two.interval[0]))
    assert one.first == roc_auc_score(Y, GOOD) and one.interval[0] < one.first - one.second < one.interval[1]


def test_rows_of_one_kind_have_no_area() -> None:
    assert paired_auroc(np.zeros(5), np.arange(5.0), np.arange(5.0)) is None
    few = paired_auroc(np.array([1, 0, 0]), np.arange(3.0), -np.arange(3.0), 100)
    assert few is not None and few.lists < 100
