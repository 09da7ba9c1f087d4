"""Few bits for each entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.unit.transform.alone import made, there_and_back, vector


@pytest.mark.parametrize(
    "settings", [{"bits": 4}, {"bits": 8, "bucket": 64}, {"bits": 8, "norm": "max"}, {"bits": 6, "range": 4.0}]
)
def test_it_is_right_in_the_mean(settings: dict) -> None:
    t, v = made("quantise", **settings), vector(300).clamp(-3.9, 3.9)
    tries = torch.stack([there_and_back(t, v, key=k)[1] for k in range(400)])
    deviation = tries.std(0).mean() / math.sqrt(400)
    assert float((tries.mean(0) - v).abs().mean()) < 3 * float(deviation)


def test_what_is_sent_are_levels_of_so_many_bits() -> None:
    for settings in ({"bits": 4}, {"bits": 8}, {"bits": 8, "range": 1.0}):
        sent, _, _ = there_and_back(made("quantise", **settings), vector(700))
        assert torch.equal(sent, sent.round()) and float(sent.abs().max()) <= 2 ** (settings["bits"] - 1) - 1


def test_an_entry_lies_between_its_two_levels() -> None:
    """By NumPy: |v| in units of scale / s is rounded to one of its neighbours."""
    v = vector(50)
    _, back, _ = there_and_back(made("quantise", bits=5, bucket=10), v)
    scale = np.linalg.norm(v.numpy().reshape(5, 10), axis=1).repeat(10)
    exact, found = v.numpy() / scale * 15, back.numpy() / scale * 15
    assert np.all((np.abs(found - np.floor(exact)) < 1e-9) | (np.abs(found - np.ceil(exact)) < 1e-9))
    assert np.any(np.abs(found - np.round(exact)) > 0.5), "it is not rounding to the nearest"


def test_a_bucket_of_zeros_stays_zero_and_what_is_on_a_level_stays() -> None:
    v = torch.tensor([0.0, 0.0, 3.0, -4.0], dtype=torch.float64)
    _, back, _ = there_and_back(made("quantise", bits=8, bucket=2, norm="max"), v)
    assert back[:2].tolist() == [0, 0] and float(back[3]) == -4


def test_a_range_cuts() -> None:
    _, back, _ = there_and_back(made("quantise", bits=8, range=1.0), torch.tensor([5.0, -7.0]))
    assert back.tolist() == [1.0, -1.0]


def test_its_bytes() -> None:
    assert made("quantise", bits=4, bucket=512).size(1000, 32, ()) == (1000, 4, 64)
    assert made("quantise", bits=8, range=1.0).size(1000, 32, ()) == (1000, 8, 0)
