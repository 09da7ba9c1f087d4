"""The generator against torch's modules, its diversity by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rayfed import tree
from rayfed.distill import generator
from tests.unit.distill.draws import logits, rng


def test_generator_is_an_mlp_of_noise_and_label() -> None:
    w = generator.init(3, 5, 4, (2, 3), hidden=(7, 6), dtype=torch.float64)
    net = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 6), nn.Sigmoid()).double()
    net.load_state_dict(dict(zip(net.state_dict(), tree.values(w))))
    z, y = logits(8, 5), torch.arange(8) % 4
    onehot = torch.eye(4, dtype=torch.float64)[y]
    x = generator.generate(w, z, y, 4, (2, 3))
    assert x.shape == (8, 2, 3)
    torch.testing.assert_close(x, net(torch.cat([z, onehot], 1)).detach().reshape(8, 2, 3), rtol=0, atol=1e-14)
    assert bool((x > 0).all()) and bool((x < 1).all())
    other = generator.generate(w, z, (y + 1) % 4, 4, (2, 3))
    assert bool((other != x).flatten(1).any(1).all())


def test_generator_follows_its_key() -> None:
    a, b, c = (generator.init(k, 5, 4, (8,)) for k in (3, 3, 4))
    assert tree.same(a, b) and not tree.same(a, c)
    assert [tuple(p.shape) for p in tree.values(a)] == [(128, 9), (128,), (128, 128), (128,), (8, 128), (8,)]
    for layer, fan in zip(a.values(), (9, 128, 128)):
        assert 0.8 / math.sqrt(fan) < float(layer["w"].abs().max()) <= 1 / math.sqrt(fan)


def test_diversity_by_hand() -> None:
    z, x = logits(5, 3, spread=1.0), torch.rand(5, 2, 2, generator=rng(), dtype=torch.float64)
    pairs = [float(((z[a] - z[b]) ** 2).sum() / 3 * (x[a] - x[b]).abs().sum() / 4) for a in range(5) for b in range(5)]
    assert float(generator.diversity(z, x)) == pytest.approx(math.exp(-sum(pairs) / 25), abs=1e-12)
    assert float(generator.diversity(z, x[:1].expand(5, 2, 2))) == 1.0
    assert float(generator.diversity(z, 2 * x)) < float(generator.diversity(z, x)) < 1.0
