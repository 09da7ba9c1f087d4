"""Corrupted pictures: each kind by hand, its range, what cannot be corrupted."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.attack.attacks import ROWS, drawn, make

PICTURES = ROWS._replace(kind="image", high=1.0)
X = np.random.default_rng(0).uniform(0, 1, (3, 1, 4, 4)).astype(np.float32)
Y = np.array([0, 1, 2])


@pytest.mark.parametrize("how", ["noise", "invert", "constant", "blur", "dark"])
def test_pictures_stay_pictures_and_labels_labels(how: str) -> None:
    x, y = make("corrupt", how=how).poison(X, Y, PICTURES, drawn())
    assert x.shape == X.shape and x.dtype == X.dtype and np.array_equal(y, Y)
    assert x.min() >= 0 and x.max() <= 1 and not np.array_equal(x, X)


def test_by_hand() -> None:
    np.testing.assert_array_equal(make("corrupt", how="invert").poison(X, Y, PICTURES, drawn())[0], 1 - X)
    np.testing.assert_array_equal(
        make("corrupt", how="dark", strength=0.25).poison(X, Y, PICTURES, drawn())[0], 0.75 * X
    )
    board = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert (make("corrupt", how="constant").poison(X, Y, PICTURES, drawn())[0] == np.array(board)).all()


def test_what_cannot_be_corrupted() -> None:
    assert "the data are no pictures (tabular)" in make("corrupt").fits(ROWS)
    assert (
        make("corrupt", how="dark", strength=1.5).fits(PICTURES) == "strength: 1.5 found, allowed for dark: at most 1"
    )
    assert make("corrupt", how="blur", strength=1.5).fits(PICTURES) is None
