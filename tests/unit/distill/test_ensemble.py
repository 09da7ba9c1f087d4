"""Who counts for which class, which labels are drawn, how outputs mix: by hand and against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rayfed.distill import ensemble
from tests.unit.distill.draws import COUNTS, logits, rng


def test_class_weights_by_hand() -> None:
    want = torch.tensor([[6 / 8, 0, 4 / 16, 0], [2 / 8, 8 / 9, 0, 0], [0, 1 / 9, 12 / 16, 0]], dtype=torch.float64)
    torch.testing.assert_close(ensemble.class_weights(COUNTS), want, rtol=0, atol=1e-15)


def test_gamma_zero_is_one_voice_for_everyone_who_owns_the_class() -> None:
    want = torch.tensor([[0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)
    assert torch.equal(ensemble.class_weights(COUNTS, 0.0), want)
    half = ensemble.class_weights(COUNTS, 0.5)[:, 0]
    torch.testing.assert_close(half, torch.tensor([6**0.5, 2**0.5, 0]).double() / (6**0.5 + 2**0.5))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_class_weights_sum_to_one_over_seen_classes(gamma: float) -> None:
    counts = (torch.rand(3, 30, generator=rng(1)) < 0.4) * torch.randint(1, 10**6, (3, 30), generator=rng(2))
    alpha = ensemble.class_weights(counts, gamma)
    seen = counts.sum(0) > 0
    assert 0 < seen.sum() < 30
    torch.testing.assert_close(alpha.sum(0), seen.double(), rtol=0, atol=1e-12)
    assert bool((alpha >= 0).all()) and bool(((alpha == 0) == (counts == 0)).all())


@pytest.mark.parametrize(
    ("rho", "group", "p"),
    [
        (1.0, False, [8 / 33, 9 / 33, 16 / 33, 0]),
        (0.0, False, [1 / 3, 1 / 3, 1 / 3, 0]),
        (2.0, False, [64 / 401, 81 / 401, 256 / 401, 0]),
        (1.0, True, [(0.6 + 0.2) / 3, (0.8 + 1 / 13) / 3, (0.4 + 12 / 13) / 3, 0]),
    ],
)
def test_label_distributions(rho: float, group: bool, p: list[float]) -> None:
    n = 40_000
    y = ensemble.draw_labels(COUNTS, n, rng(), rho, group)
    share = torch.bincount(y, minlength=4).double() / n
    for mine, want in zip(share.tolist(), p):
        assert mine == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / n))


def test_an_expert_without_examples_has_no_voice_in_the_group_sampler() -> None:
    more = torch.cat([COUNTS, torch.zeros(1, 4, dtype=COUNTS.dtype)])
    assert torch.equal(
        ensemble.draw_labels(more, 100, rng(), group=True), ensemble.draw_labels(COUNTS, 100, rng(), group=True)
    )


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_teacher_by_hand(tau: float) -> None:
    """One row at a time, one expert after another."""
    f, alpha, y = logits(3, 5, 4), ensemble.class_weights(COUNTS), torch.tensor([0, 1, 2, 2, 0])
    prob, logit = (ensemble.teacher(f, alpha, y, mix, tau) for mix in ("prob", "logit"))
    for b in range(5):
        p = sum(alpha[k, y[b]] * torch.softmax(f[k, b] / tau, 0) for k in range(3))
        torch.testing.assert_close(torch.softmax(prob[b] / tau, 0), p, rtol=0, atol=1e-12)
        torch.testing.assert_close(prob[b], tau * torch.log(p), rtol=0, atol=1e-10)
        want = sum(alpha[k, y[b]] * f[k, b] for k in range(3))
        torch.testing.assert_close(logit[b], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mix", ["prob", "logit"])
def test_an_expert_of_weight_zero_is_not_there(mix: str) -> None:
    """Neither in the value, however wild it is, nor in the gradient, which stays finite."""
    y = torch.zeros(6, dtype=torch.int64)  # class 0, which expert 2 has not seen
    f = logits(3, 6, 4).requires_grad_()
    wild = torch.cat([f[:2], 200 * f[2:]])
    alpha = ensemble.class_weights(COUNTS)
    q = ensemble.teacher(wild, alpha, y, mix, 2.0)
    torch.testing.assert_close(q, ensemble.teacher(f[:2], alpha[:2], y, mix, 2.0), rtol=0, atol=1e-12)
    (g,) = torch.autograd.grad(q.square().sum(), f)
    assert bool(torch.isfinite(g).all()) and bool((g[2] == 0).all()) and bool((g[:2] != 0).any())


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_kl_is_torchs(tau: float) -> None:
    """torch takes the student's log-probabilities first and the teacher's second."""
    t, s = logits(7, 4), logits(7, 4, seed=1)
    want = F.kl_div(F.log_softmax(s / tau, -1), F.softmax(t / tau, -1), reduction="none").sum(-1) * tau**2
    torch.testing.assert_close(ensemble.kl(t, s, tau), want, rtol=0, atol=1e-12)
    assert bool((ensemble.kl(t, s, tau) > 0).all())
    torch.testing.assert_close(ensemble.kl(t, t + 3, tau), torch.zeros(7).double(), rtol=0, atol=1e-12)


def test_mixing_without_labels_by_hand() -> None:
    """Each class by the voices of those that own it: experts 0 and 1 know class 0, only expert 1 knows class 1."""
    alpha = torch.tensor([[0.75, 0.0, 0.0], [0.25, 1.0, 0.0]], dtype=torch.float64)
    p = torch.tensor([[[0.5, 0.3, 0.2]], [[0.1, 0.6, 0.3]]], dtype=torch.float64)
    q = torch.softmax(ensemble.by_class(2.0 * torch.log(p), alpha, 2.0) / 2.0, -1)
    want = torch.tensor([0.75 * 0.5 + 0.25 * 0.1, 0.6, 0.0], dtype=torch.float64)
    torch.testing.assert_close(q[0], want / want.sum())
