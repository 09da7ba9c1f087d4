"""FOT: bases by hand, the first task is uniform FedAvg to the bit, updates off old inputs, patches of convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed.errors import ConfigError
from rayfed.methods import fot
from tests import toy

STREAM = {"federation": {"groups": {"kind": "none"}, "stream": {"kind": "permuted", "every": 2, "tasks": 2}}}


def run(until: int, method: Any = "fot", executor: str = "vmap") -> toy.Result:
    return toy.simulate(method, executor=executor, dtype="float64", rounds=4, until=until, **STREAM)


def test_the_first_task_is_uniform_fedavg_to_the_bit() -> None:
    ours, theirs = run(2), run(2, {"name": "fedavg", "weight": "one"})
    assert all(torch.equal(p, theirs.state["model"][n]) for n, p in ours.state["model"].items())
    assert {n: fot.rank(o) > 0 for n, o in ours.state["bases"].items()} == {"body.0": True, "head": True}
    assert all(fot.rank(o) == 0 for o in ours.initial["bases"].values())


def test_later_updates_leave_old_inputs_alone() -> None:
    method = {"name": "fot", "eps": 0.8}
    before, after = run(2, method), run(4, method)
    for n, o in after.state["bases"].items():
        r, old = fot.rank(o), before.state["bases"][n]
        torch.testing.assert_close(o[:, :r].T @ o[:, :r], torch.eye(r, dtype=o.dtype), rtol=0, atol=1e-10)
        assert 0 < fot.rank(old) < r <= len(o)
        torch.testing.assert_close(o @ (o.T @ old), old, rtol=0, atol=1e-10)  # what was held still is
        moved = after.state["model"][f"{n}.weight"] - before.state["model"][f"{n}.weight"]
        assert float(moved.norm()) > 1e-3
        torch.testing.assert_close(moved @ old, torch.zeros_like(moved @ old), rtol=0, atol=1e-12)


def test_a_full_basis_freezes_the_layer() -> None:
    """eps 1 keeps every direction: the first task's inputs span all 8 columns."""
    before, after = (run(r, {"name": "fot", "eps": 1.0}) for r in (2, 4))
    assert fot.rank(before.state["bases"]["body.0"]) == 8
    weights = [d.state["model"]["body.0.weight"] for d in (before, after)]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-13)
    assert not torch.equal(before.state["model"]["body.0.bias"], after.state["model"]["body.0.bias"])


def test_directions_by_hand() -> None:
    """Singular values 3, 2, 1: squares are 0.643, 0.929, 1 of their sum, and eps' = (rho - (1 - eps)) / rho."""
    sketch, none = torch.diag(torch.tensor([2.0, 3.0, 1.0])), torch.zeros(3, 3)
    for rho, eps, least, wanted in (
        (1.0, 0.9, 1, 2),  # eps' = 0.9
        (1.0, 0.6, 1, 1),  # 0.6
        (0.5, 0.7, 1, 1),  # (0.5 - 0.3) / 0.5 = 0.4
        (0.5, 0.9, 1, 2),  # 0.8
        (0.1, 0.85, 1, 1),  # below 0: as many as are kept in any case
        (0.1, 0.85, 0, 0),
        (1.0, 1.0, 1, 3),
    ):
        assert fot.rank(fot.grown(none, sketch, rho, eps, least)) == wanted, (rho, eps)
    first = fot.grown(none, sketch, 1.0, 0.6, 1)
    torch.testing.assert_close(first.abs()[:, 0], torch.tensor([0.0, 1.0, 0.0]))
    basis = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    made = fot.projected({"a.weight": torch.tensor([[5.0, 6.0, 7.0]]), "a.bias": torch.ones(1)}, {"a": basis})
    assert made["a.weight"].tolist() == [[0.0, 6.0, 7.0]] and made["a.bias"].tolist() == [1.0]
    assert fot.rank(fot.grown(torch.diag(torch.tensor([1.0, 1.0, 0.0])), sketch, 1.0, 1.0, 1)) == 3  # never more than d


def test_patches_are_what_a_convolution_multiplies() -> None:
    layer = torch.nn.Conv2d(2, 3, (3, 2), stride=2, padding=1, bias=False).double()
    x = torch.rand(4, 2, 7, 6, dtype=torch.float64)
    made = fot.inputs(layer, x) @ layer.weight.reshape(3, -1).T
    torch.testing.assert_close(made.transpose(1, 2).reshape(layer(x).shape), layer(x))


def test_it_needs_a_stream() -> None:
    with pytest.raises(ConfigError, match=r"federation.stream.kind: none found, fot protects the earlier tasks"):
        toy.config("fot")
