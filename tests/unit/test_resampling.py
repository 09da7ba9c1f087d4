"""The paired bootstrap: a model against itself, swapped models, a clear winner, resamples without a class."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rayfed.resampling import paired

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 80)
GOOD, POOR = Y + 0.5 * RNG.normal(size=80), Y + 4 * RNG.normal(size=80)


def test_a_model_against_itself_is_never_better() -> None:
    found = paired(roc_auc_score, Y, GOOD, GOOD, 100)
    assert (found.p, found.p_other, found.low, found.high) == (1, 1, 0, 0) and found.first == roc_auc_score(Y, GOOD)


def test_swapping_models_swaps_what_is_said() -> None:
    one, two = paired(roc_auc_score, Y, GOOD, POOR, 200), paired(roc_auc_score, Y, POOR, GOOD, 200)
    assert (one.p, one.p_other, one.low) == (two.p_other, two.p, pytest.approx(-two.high))
    assert one.p < 0.05 < one.p_other and one.low > 0
    assert paired(roc_auc_score, Y, GOOD, POOR, 200) == one != paired(roc_auc_score, Y, GOOD, POOR, 200, seed=1)


def test_by_hand() -> None:
    """Of the four resamples of two rows, the first model wins where its row is drawn more often than not."""

    def mean(y: np.ndarray, p: np.ndarray) -> float:
        return float(p.mean())

    found = paired(mean, [0, 0], [1.0, 0.0], [0.5, 0.5], 4000)
    assert found.p == pytest.approx(3 / 4, abs=0.03) and found.p_other == pytest.approx(3 / 4, abs=0.03)


def test_resamples_without_a_class_are_drawn_anew() -> None:
    y, p = np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.3, 0.9])
    assert paired(roc_auc_score, y, p, -p, 50).p == 0
    with pytest.raises(ValueError, match="needed: rows of every class"):
        paired(roc_auc_score, np.zeros(3), np.zeros(3), np.zeros(3), 2)
    with pytest.raises(ValueError, match="3 rows, 2 and 3 predictions found"):
        paired(roc_auc_score, np.zeros(3), np.zeros(2), np.zeros(3), 2)
