"""Krum by hand and by its definition."""

from __future__ import annotations

import numpy as np

from tests.unit.aggregate.updates import LINE, PLANE, make, nearest, weigh


def test_by_hand() -> None:
    """Of 7 numbers and f = 2 three neighbours count: 1 has 1 + 2.25 + 4 = 7.25, 2.5 has 8.75, 3 has 8.25, 0 has 16.25."""
    assert weigh(make("krum", f=2), LINE).tolist() == [0, 1, 0, 0, 0, 0, 0]


def test_by_definition() -> None:
    scores = [nearest(PLANE, i, 7 - 1 - 2) for i in range(7)]
    assert weigh(make("krum", f=1), PLANE).tolist() == [float(i == int(np.argmin(scores))) for i in range(7)]


def test_of_equal_ones_the_lowest_client_is_taken() -> None:
    assert weigh(make("krum", f=0), np.ones((4, 2))).tolist() == [1, 0, 0, 0]
    assert weigh(make("krum", f=0), np.ones((1, 2))).tolist() == [1]
