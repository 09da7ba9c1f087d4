"""FedLD's server rule against the published steps on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.aggregate.updates import PLANE, make, weigh

G = np.random.default_rng(1).normal(size=(5, 9)) + 0.5


def published(g: np.ndarray, kappa: float, majority: bool) -> np.ndarray:
    """Steps 2 to 6 of the algorithm on the rows (m, P)."""
    m = len(g)
    u, s, _ = np.linalg.svd(g @ g.T / m)
    out = np.zeros_like(g)
    for j in range(int(m * kappa)):
        w = g.T @ u[:, j]
        wh = w / np.linalg.norm(w)
        side = np.sign(g @ wh)
        if majority and (side >= 0).sum() * 2 < m:
            wh = -wh
        signs = np.ones(m) if majority else np.sign(g @ wh)
        out += np.linalg.norm(g, axis=1)[:, None] * s[j] / s.sum() * signs[:, None] * wh
    return out.mean(0)


@pytest.mark.parametrize("kappa", [0.8, 0.4, 1.0])
def test_the_published_steps(kappa: float) -> None:
    for signs in ("own", "majority"):
        ours = weigh(make("principal", kappa=kappa, signs=signs), G) @ G
        assert np.allclose(ours, published(G, kappa, signs == "majority"), rtol=0, atol=1e-10)


def test_one_client_and_the_first_round_have_the_plain_mean() -> None:
    assert weigh(make("principal"), G[:1]).tolist() == [1.0]
    assert weigh(make("principal"), G, [9, 1, 1, 1, 1], round=1).tolist() == [0.2] * 5


def test_equal_updates_and_single_numbers_come_out_as_their_mean() -> None:
    same = np.tile(PLANE[0], (5, 1))
    assert np.allclose(weigh(make("principal"), same) @ same, PLANE[0], atol=1e-9)
    numbers = np.array([[1.0], [-2.0], [4.0], [0.5]])
    assert np.allclose(weigh(make("principal"), numbers) @ numbers, numbers.mean(), atol=1e-9)


def test_order_weights_and_scale() -> None:
    rule, order = make("principal"), np.random.default_rng(0).permutation(5)
    made = weigh(rule, G) @ G
    assert np.allclose(weigh(rule, G[order], [5, 1, 1, 1, 1]) @ G[order], made, atol=1e-10)
    assert np.allclose(weigh(rule, 3 * G) @ (3 * G), 3 * made, atol=1e-9)
