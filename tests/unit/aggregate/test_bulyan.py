"""Bulyan by its definition, in loops."""

from __future__ import annotations

import numpy as np
import torch

from tests.unit.aggregate.updates import LINE, PLANE, make, nearest, weigh


def bulyan(updates: np.ndarray, f: int) -> tuple[set[int], np.ndarray]:
    """Who is chosen, and what comes out."""
    n, left, chosen = len(updates), list(range(len(updates))), []
    while len(chosen) < n - 2 * f:
        scores = [nearest(updates[left], i, max(1, len(left) - f - 2)) for i in range(len(left))]
        chosen.append(left.pop(int(np.argmin(scores))))
    rows, out = updates[chosen], []
    for values in rows.T:
        middle = np.median(values)
        by_distance = [v for _, v in sorted((abs(v - middle), v) for v in values)]
        out.append(np.mean(by_distance[: n - 4 * f]))
    return set(chosen), np.array(out)


def test_by_definition() -> None:
    for updates in (PLANE, LINE):
        rule = make("bulyan", f=1)
        c = weigh(rule, updates)
        chosen, wanted = bulyan(updates, 1)
        assert set(np.flatnonzero(c)) == chosen and len(chosen) == 5
        assert np.allclose(rule.combine(torch.as_tensor(updates[c != 0])).numpy(), wanted, rtol=0, atol=1e-12)


def test_by_hand() -> None:
    """Chosen are 2.5, 3, 1, 0, and of 5, 50, 60 the one with the nearest neighbour, 50: Krum alone is no longer safe there. Of these
    five the three nearest to the median 2.5 are 1, 2.5 and 3."""
    rule = make("bulyan", f=1)
    chosen = np.flatnonzero(weigh(rule, LINE))
    assert chosen.tolist() == [0, 1, 2, 3, 5]
    assert float(rule.combine(torch.as_tensor(LINE[chosen]))) == np.mean([1, 2.5, 3])


def test_without_attackers_all_are_averaged() -> None:
    rule = make("bulyan", f=0)
    assert (weigh(rule, PLANE) > 0).all()
    assert np.allclose(rule.combine(torch.as_tensor(PLANE)).numpy(), PLANE.mean(0), rtol=0, atol=1e-12)
