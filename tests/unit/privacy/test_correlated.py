"""Correlated noise: its weights, and how far a client moves what is released."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rayfed.privacy import correlated, exact
from rayfed.transform import checks
from tests import toy
from tests.configs import good, problems


def strategy(bands: int, releases: int) -> np.ndarray:
    """C, by inverting the banded matrix of weights."""
    d = np.zeros((releases, releases))
    for j, w in enumerate(correlated.weights(bands)):
        d += w * np.eye(releases, k=-j)
    return np.linalg.inv(d)


def test_by_hand() -> None:
    """Two bands: Z_t - Z_{t-1} / 2, C = 1, 1/2, 1/4 ...; twice in four releases, two apart: columns add to 1, 1/2, 5/4, 5/8."""
    assert correlated.weights(5) == [1, -1 / 2, -1 / 8, -1 / 16, -5 / 128]
    assert correlated.sensitivity(2, 2, 2) == pytest.approx(math.sqrt(1 + 1 / 4))
    assert correlated.sensitivity(2, 4, 2) == pytest.approx(math.sqrt(1 + 1 / 4 + 25 / 16 + 25 / 64))


def test_one_band_composes_as_noise_of_its_own_for_each_release() -> None:
    moved = correlated.sensitivity(1, 12, 3)
    assert moved == pytest.approx(math.sqrt(4))
    assert exact.epsilon(1.0, 1.5 / moved, 1, 1e-5) == pytest.approx(exact.epsilon(1.0, 1.5, 4, 1e-5))


def test_with_as_many_bands_as_releases_it_is_the_square_root_of_prefix_sums() -> None:
    c = strategy(8, 8)
    np.testing.assert_allclose(c @ c, np.tril(np.ones((8, 8))), atol=1e-12)


@pytest.mark.parametrize(("bands", "apart"), [(1, 2), (2, 2), (3, 2), (2, 3), (5, 3), (8, 1)])
def test_no_way_of_taking_part_moves_more(bands: int, apart: int) -> None:
    """Every set of releases that lie far enough from each other, with updates along one direction, either way."""
    releases = 8
    c, most = strategy(bands, releases), 0.0
    for k in range(1, releases + 1):
        for at in itertools.combinations(range(releases), k):
            if all(b - a >= apart for a, b in itertools.pairwise(at)):
                for signs in itertools.product([1, -1], repeat=min(k, 3)):
                    u = np.zeros(releases)
                    u[list(at)] = [*signs, *[1] * (k - len(signs))]
                    most = max(most, float(np.linalg.norm(c @ u)))
    assert correlated.sensitivity(bands, releases, apart) == pytest.approx(most)


def test_the_model_is_less_noisy_at_the_same_epsilon() -> None:
    """The error of the last of 64 prefix sums, each client once: independent noise against eight bands."""

    def error(bands: int) -> float:
        return correlated.sensitivity(bands, 64, 64) * float(
            np.linalg.norm(np.tril(np.ones((64, 64)))[-1] @ np.linalg.inv(strategy(bands, 64)))
        )

    assert error(8) < error(2) < error(1) == pytest.approx(8.0)


NOISE = {"kind": "gaussian", "noise_multiplier": 1.0, "bands": 4}
CLIP = {"kind": "clip", "norm": 1.0}
CYCLE = {"participation": {"kind": "cyclic"}, "per_round": 10}


@pytest.mark.parametrize(
    ("federation", "chain", "said"),
    [
        (
            {"per_round": 10},
            [CLIP, NOISE],
            "federation.participation.kind: uniform found, the epsilon of gaussian.bands",
        ),
        (
            {"per_round": 10, "participation": {"kind": "poisson"}},
            [CLIP, NOISE],
            "federation.participation.kind: poisson",
        ),
        (CYCLE, [{**CLIP, "quantile": 0.5}, NOISE], "transforms.0.quantile: 0.5 found, but noise that releases share"),
        (
            CYCLE,
            [CLIP, {**NOISE, "where": "local"}],
            "transforms.1.bands: 4 found, but nothing reads it with where: local",
        ),
        (CYCLE, [CLIP, {**NOISE, "epsilon": 0.1}], "transforms.1.epsilon: 0.1 found, "),
    ],
)
def test_what_its_epsilon_is_not_of_is_refused(federation: object, chain: object, said: str) -> None:
    assert any(p.startswith(said) for p in problems(federation=federation, transforms=chain)), problems(
        federation=federation, transforms=chain
    )


def test_everybody_in_every_round_is_allowed() -> None:
    assert good(federation={"per_round": None}, transforms=[CLIP, NOISE])
    assert good(federation=CYCLE, transforms=[CLIP, NOISE])
    assert checks.MOST > correlated.LONGEST  # a budget's check is not reached by more rounds than that
    assert any("at most 1000000" in p for p in problems(rounds=2_000_000, federation=CYCLE, transforms=[CLIP, NOISE]))


def test_a_run_adds_the_weighted_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds of clients that send nothing: the model moves by the draws of its own and of earlier rounds."""
    from rayfed import tree

    chain = [{"kind": "clip", "norm": 0.5}, {**NOISE, "bands": 3, "noise_multiplier": 2.0}]
    still = {"federation": {"per_round": None}, "local": {"optimizer": {"lr": 1e-30}}}
    alone = [{**c, "bands": 1} if c["kind"] == "gaussian" else c for c in chain]
    states = {
        (b, r): tree.flatten(toy.simulate(rounds=3, until=r, transforms=t, dtype="float64", **still).state["model"])
        for b, t in ((3, chain), (1, alone))
        for r in (1, 2, 3)
    }
    z = [states[1, 1], states[1, 2], states[1, 3]]
    start = tree.flatten(toy.simulate(rounds=1, transforms=alone, dtype="float64", **still).initial["model"])
    draws = [z[0] - start, z[1] - z[0], z[2] - z[1]]
    after = [states[3, r] for r in (1, 2, 3)]
    assert abs(after[0] - (start + draws[0])).max() < 1e-12
    assert abs(after[1] - (after[0] + draws[1] - draws[0] / 2)).max() < 1e-12
    assert abs(after[2] - (after[1] + draws[2] - draws[1] / 2 - draws[0] / 8)).max() < 1e-12


def test_the_noise_that_a_budget_needs_keeps_it() -> None:
    """What the refusal says would do is taken."""
    chain = [CLIP, {**NOISE, "epsilon": 2.0}]
    (said,) = problems(rounds=30, federation=CYCLE, transforms=chain)
    needed = float(said.partition("noise_multiplier of at least ")[2].partition(",")[0])
    assert needed > 1 and good(
        rounds=30, federation=CYCLE, transforms=[CLIP, {**NOISE, "noise_multiplier": needed, "epsilon": 2.0}]
    )
