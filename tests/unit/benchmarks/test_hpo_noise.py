"""Halving and random search over a made-up table."""

from __future__ import annotations

import hpo_noise
import numpy as np
import pytest


def test_rounds_that_halving_spends_are_those_of_its_rungs() -> None:
    asked: list[tuple[int, int]] = []

    def judge(c: int, rung: int) -> float:
        asked.append((c, rung))
        return abs(c - 4)

    assert hpo_noise.halving(9, judge) == (4, 9 * 2 + 3 * 4 + 1 * 12)
    assert [r for _, r in asked] == [0] * 9 + [1] * 3 + [2]
    assert hpo_noise.halving(1, judge) == (0, 18)


def test_random_search_runs_what_as_many_rounds_buy() -> None:
    rng = np.random.default_rng(0)
    best = [hpo_noise.random_search(9, 42, rng, lambda c, rung: float(c)) for _ in range(200)]
    assert all(spent == 36 for _, spent in best)
    assert {c for c, _ in best} == set(range(8))  # the better of two


def test_regret_is_zero_where_all_clients_are_asked_and_rungs_agree() -> None:
    losses = np.arange(9.0)[None, :, None, None] + np.zeros((2, 9, 3, 20))
    found = hpo_noise.replay(losses, 20, 10)
    assert found["halving"] == [0.0, 0.0] and min(found["random"]) > 0
    losses[..., 3] = np.nan  # a client without validation rows
    assert hpo_noise.replay(losses, 20, 10)["halving"] == [0.0, 0.0]
    noisy = losses + 3 * np.random.default_rng(1).normal(size=losses.shape)
    few, many = (np.mean(hpo_noise.replay(noisy, m, 50)["halving"]) for m in (1, 20))
    assert few > many


def test_an_interval_is_students() -> None:
    mean, half = hpo_noise.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
