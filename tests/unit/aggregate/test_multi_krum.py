"""Multi-Krum: the mean of the m best, and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.configs import the_problem
from tests.unit.aggregate.updates import LINE, PLANE, make, nearest, weigh


@pytest.mark.parametrize("m", [1, 3, None])
def test_by_definition(m: int | None) -> None:
    scores = [nearest(PLANE, i, 7 - 2 - 2) for i in range(7)]
    chosen = np.argsort(scores)[: m or 5]
    wanted = PLANE[chosen].mean(0)
    assert np.allclose(weigh(make("multi_krum", f=2, m=m), PLANE) @ PLANE, wanted, rtol=0, atol=1e-12)


def test_with_m_1_it_is_krum_and_with_all_it_is_the_mean() -> None:
    assert np.array_equal(weigh(make("multi_krum", f=2, m=1), LINE), weigh(make("krum", f=2), LINE))
    assert np.allclose(weigh(make("multi_krum", f=0), PLANE), 1 / 7)


def test_where_fewer_reply_than_were_asked_as_many_as_may_attack_are_left_out() -> None:
    """m = 8 of 10 asked; of 7 replies 2 may still be attackers."""
    assert int((weigh(make("multi_krum", f=2, m=8), PLANE) > 0).sum()) == 5


def test_attackers_are_not_among_those_averaged_by_intention() -> None:
    sentence = the_problem("aggregate={kind: multi_krum, f: 2, m: 9}", "federation.per_round=10")
    assert sentence == "aggregate.m: 9 found, of 10 clients asked in a round 2 may attack; allowed: at most 8 (n - f)"
