"""Class Gaussians of features: by hand, against NumPy, and what a refit may change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import keys, tree
from rayfed.distill import statistics
from rayfed.visits import ClientContext
from tests import toy

C, D = 3, 4


def sums_of(z: np.ndarray, y: np.ndarray, full: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    of = [z[y == c] for c in range(C)]
    squares = [(r[:, :, None] * r[:, None, :]).sum(0) if full else (r * r).sum(0) for r in of]
    made = [len(r) for r in of], [r.sum(0) for r in of], squares
    n, s, q = (torch.as_tensor(np.array(m, dtype=float)) for m in made)
    return n, s, q


@pytest.mark.parametrize("full", [False, True])
def test_by_hand(full: bool) -> None:
    """Features 1 and 3 at one client, 8 at another: mean 4, variance 13 (12.5 with a divisor n at the clients)."""
    n, s, q = torch.tensor([2.0 + 1]), torch.tensor([[4.0 + 8]]), torch.tensor([[10.0 + 64]])
    mean, covariance = statistics.moments(n, s, q[:, :, None] if full else q)
    assert mean.item() == 4 and covariance.item() == 13


@pytest.mark.parametrize("full", [False, True])
def test_moments_are_numpys(full: bool) -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(3, 2, (40, D)), rng.integers(0, C, 40)
    means, s = statistics.moments(*sums_of(z, y, full))
    for c in range(C):
        want = np.cov(z[y == c].T)
        np.testing.assert_allclose(means[c], z[y == c].mean(0), rtol=1e-12)
        np.testing.assert_allclose(s[c], want if full else np.diag(want), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("covariance", ["diag", "full", "shared"])
def test_draws_have_the_classes_moments(covariance: Any) -> None:
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(C, D, D))
    y = rng.integers(0, C, 600)
    z = np.einsum("bij,bj->bi", mix[y], rng.normal(size=(600, D))) + y[:, None]
    of = statistics.gaussians(sums_of(z, y, covariance != "diag"), covariance)
    drawn = statistics.draw(of, torch.full((200_000,), 1), torch.Generator().manual_seed(0)).numpy()
    groups = [z[y == c] for c in range(C)]
    own = np.cov(groups[1].T)
    if covariance == "shared":
        own = sum((len(g) - 1) * np.cov(g.T) for g in groups) / sum(len(g) - 1 for g in groups)
    want = np.diag(np.diag(own)) if covariance == "diag" else own
    np.testing.assert_allclose(drawn.mean(0), groups[1].mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), want, atol=0.03 * float(np.trace(want)))


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_shrinking_keeps_the_trace(covariance: Any) -> None:
    rng = np.random.default_rng(2)
    z, y = rng.normal(size=(50, D)) * np.arange(1, D + 1), rng.integers(0, C, 50)
    sums = sums_of(z, y, covariance != "diag")
    plain, half, whole = (statistics.gaussians(sums, covariance, a).factors for a in (0.0, 0.5, 1.0))

    def variances(factors: torch.Tensor) -> torch.Tensor:
        return factors**2 if factors.dim() == 2 else (factors @ factors.mT).diagonal(dim1=1, dim2=2)

    torch.testing.assert_close(variances(half).sum(1), variances(plain).sum(1), rtol=1e-10, atol=0)
    assert torch.allclose(variances(whole), variances(plain).mean(1, keepdim=True).expand(C, D))
    assert not torch.allclose(variances(half), variances(plain))


@pytest.mark.parametrize("covariance", ["diag", "full", "shared"])
def test_one_row_draws_its_mean_and_a_class_without_rows_is_not_drawn(covariance: Any) -> None:
    z, y = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8], [5, 6, 7, 8]]), np.array([0, 2, 2])
    of = statistics.gaussians(sums_of(z, y, covariance != "diag"), covariance)
    drawn = statistics.draw(of, torch.tensor([0, 2]), torch.Generator().manual_seed(0))
    assert drawn.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert of.counts.tolist() == [1, 0, 2] and bool(torch.isfinite(of.factors).all())


def test_relu_clips_draws() -> None:
    of = statistics.Gaussians(torch.ones(1), torch.zeros(1, D), torch.ones(1, D))
    y = torch.zeros(50, dtype=torch.int64)
    free, clipped = (statistics.draw(of, y, torch.Generator().manual_seed(0), relu) for relu in (False, True))
    assert bool((free < 0).any()) and torch.equal(clipped, free.clamp(min=0))


def on_toy() -> Any:
    return toy.make_fed(toy.config("ccvr", dtype="float64")).task


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_padding_and_rare_classes_count_nothing(covariance: Any) -> None:
    task = on_toy()
    x = torch.randn(6, *task.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, w = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([1.0, 1, 1, 1, 1, 0])
    got = {}
    for least in (1, 2):
        made = statistics.sums_visit(task, statistics.features(task), covariance, least)
        client = ClientContext(info=None, shared={"model": task.initial}, mine={}, own={})
        carry = made.phases[0].step(made.begin(client), {"x": x, "y": y, "w": w}, torch.tensor(0))
        got[least], _ = made.end(client, carry)
    z = task.features(task.initial, x[:5])
    squares = z * z if covariance == "diag" else z[:, :, None] * z[:, None, :]
    for part, rows in (("rows", torch.ones(5, dtype=torch.float64)), ("sums", z), ("squares", squares)):
        want = torch.stack([rows[y[:5] == c].sum(0) for c in range(4)])
        torch.testing.assert_close(got[1][part], want, rtol=1e-12, atol=1e-12)
        want[[1, 3]] = 0
        torch.testing.assert_close(got[2][part], want, rtol=1e-12, atol=1e-12)


def test_a_refit_moves_the_last_layer_alone_and_only_rows_of_classes_that_were_seen() -> None:
    task = on_toy()
    model, d = task.init_params(1), task.feature_size
    counts = torch.tensor([5.0, 0.0, 3.0, 9.0])
    of = statistics.Gaussians(counts, torch.randn(4, d, dtype=torch.float64), torch.ones(4, d, dtype=torch.float64))
    done, loss = statistics.refit(
        task, statistics.features(task), model, of, keys.torch_generator(1), steps=5, lr=0.5, batch=16
    )
    assert loss is not None
    for n, p in done.items():
        if n in task.classifier_names:
            assert torch.equal(p[1], model[n][1]) and not torch.equal(p, model[n])
        else:
            assert torch.equal(p, model[n])
    same, loss = statistics.refit(
        task, statistics.features(task), model, of, keys.torch_generator(1), steps=0, lr=0.5, batch=16
    )
    assert tree.same(same, model) and loss is None


def test_a_refit_learns_the_classes_it_draws_and_not_shuffled_ones() -> None:
    task = on_toy()
    model, d = task.init_params(1), task.feature_size
    rng = torch.Generator().manual_seed(3)
    means = torch.randn(4, d, dtype=torch.float64, generator=rng) * 2
    y = torch.arange(4).repeat(50)
    z = means[y] + torch.randn(200, d, dtype=torch.float64, generator=rng)

    def accuracy(means: torch.Tensor) -> float:
        of = statistics.Gaussians(torch.ones(4), means, torch.ones(4, d, dtype=torch.float64))
        done, _ = statistics.refit(
            task, statistics.features(task), model, of, keys.torch_generator(1), steps=200, lr=0.2, batch=32
        )
        return float((task.classify(task.classifier(done), z).argmax(1) == y).double().mean())

    assert accuracy(means) > 0.95
    assert accuracy(means.roll(1, 0)) < 0.1


def test_labels_are_drawn_uniformly_or_by_counts() -> None:
    """With one class far more frequent, the fitted biases of the other falls where labels follow the counts."""
    task = on_toy()
    model, d = task.init_params(1), task.feature_size
    of = statistics.Gaussians(
        torch.tensor([99.0, 1, 0, 0]), torch.zeros(4, d, dtype=torch.float64), torch.zeros(4, d, dtype=torch.float64)
    )
    (bias,) = [n for n in task.classifier_names if n.endswith("bias")]

    def share(rho: float) -> float:
        rng = keys.torch_generator(1)
        done, _ = statistics.refit(
            task, statistics.features(task), model, of, rng, steps=400, lr=0.5, batch=64, rho=rho
        )
        return float(torch.softmax(done[bias][:2], 0)[0])

    assert abs(share(0.0) - 0.5) < 0.1 and share(1.0) > 0.95
