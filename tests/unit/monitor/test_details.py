"""Curves and columns are thinned without losing their ends."""

from __future__ import annotations

import pytest

from rayfed.monitor.details import thin


@pytest.mark.parametrize(("n", "most"), [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 32), (1001, 32)])
def test_thinning_keeps_the_ends_and_what_it_showed_before(n: int, most: int) -> None:
    chosen = thin(n, most)
    assert len(chosen) <= most + 1 and chosen == sorted(set(chosen))
    assert n == 0 or (chosen[0] == 0 and chosen[-1] == n - 1)
    assert n < 100 or len(set(thin(n + 1, most)) - set(chosen)) <= 1  # what was read once is read again
