"""Masks: sums to the bit, whoever drops out; single updates show nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.errors import FailsAgain, RunFailed
from rayfed.methods.fedavg import FedAvg
from rayfed.visits import Visit, visit
from tests import toy
from tests.unit.transform.alone import made

QUANTISE = {"kind": "quantise", "bits": 16, "range": 2.0}


@pytest.mark.parametrize("neighbours", [None, 2, 4])
@pytest.mark.parametrize("gone", [[], [3], [0, 9, 5, 8]])
def test_the_sum_is_exact_whoever_dropped_out(neighbours: int | None, gone: list[int]) -> None:
    t: Any = made("mask", bits=20, neighbours=neighbours)
    values = torch.randint(-1000, 1000, (10, 37), generator=torch.Generator().manual_seed(1))
    everyone = tuple(range(10))
    hidden = torch.cat([t.hide(values[:4], everyone[:4], everyone, 77), t.hide(values[4:], everyone[4:], everyone, 77)])
    there = [c for c in everyone if c not in gone]
    assert torch.equal(t.open(hidden[there].sum(0), there, everyone, 77), values[there].sum(0))


def test_what_is_sent_is_spread_evenly_whatever_the_update() -> None:
    t: Any = made("mask", bits=16)
    hidden = t.hide(torch.zeros(2, 20_000, dtype=torch.int64), [0, 1], [0, 1, 2], 5)
    assert int(hidden.min()) >= 0 and int(hidden.max()) < 1 << 16
    counts = np.bincount(hidden[0].numpy() >> 12, minlength=16)
    assert abs(counts - 1250).max() < 6 * 35
    assert abs(float(np.corrcoef(hidden[0].numpy(), hidden[1].numpy())[0, 1])) < 0.03


def test_every_client_has_about_as_many_neighbours_and_is_theirs() -> None:
    t: Any = made("mask", neighbours=4)
    pairs = t._neighbours(list(range(30)), 3)
    assert {len(p) for p in pairs.values()} == {4}
    assert all(c in pairs[o] for c, others in pairs.items() for o in others)
    assert t._neighbours([1, 2, 5], 3) == {1: [2, 5], 2: [1, 5], 5: [1, 2]}


def test_a_masked_run_is_the_run_on_sums_of_levels() -> None:
    """Against levels that are averaged as floats in float64; the masks change nothing but the rounding of that."""
    plain = toy.simulate(transforms=[QUANTISE], dtype="float64")
    masked = toy.simulate(transforms=[QUANTISE, {"kind": "mask"}], dtype="float64")
    for n, x in plain.state["model"].items():
        assert torch.allclose(x, masked.state["model"][n], atol=1e-12)
    moved = tree.norm(tree.sub(masked.state["model"], masked.initial["model"]))
    assert float(moved) > 0.1


class SomeFail(FedAvg):
    """Clients 2, 5 and 8 fail."""

    @visit
    def train(self, task: Any) -> Visit:
        inner = super().train(task)

        def end(client: Any, carry: Any) -> Any:
            if int(client.info.client) in (2, 5, 8):
                raise ValueError("gone")
            return inner.end(client, carry)

        return inner._replace(end=end, vectorize="fails for some")


class WithoutThem(toy.ToyFed):
    def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
        return tuple(c for c in super().sample(n, where=where) if c not in (2, 5, 8))


def test_dropped_clients_leave_the_bits_of_a_round_without_them() -> None:
    how: dict[str, Any] = {
        "federation": {"per_round": None},
        "failures": {"client_error": "drop"},
        "transforms": [QUANTISE, {"kind": "mask", "neighbours": 4}],
    }
    failed = toy.simulate(f"{__file__}:SomeFail", **how)
    assert [r["dropped"] for r in failed.rows] == [3, 3]
    without = toy.simulate("fedavg", kind=WithoutThem, **how)
    assert tree.same(failed.state, without.state)


def test_too_few_replies_open_nothing() -> None:
    how: dict[str, Any] = {"federation": {"per_round": None}, "failures": {"client_error": "drop"}}
    with pytest.raises(
        RunFailed, match=r"9 of 12 clients replied, and the sum is opened from 11 on \(threshold: 0.9\)"
    ):
        toy.simulate(f"{__file__}:SomeFail", transforms=[QUANTISE, {"kind": "mask", "threshold": 0.9}], **how)


def test_sums_that_do_not_fit_are_refused_with_the_bits_that_do() -> None:
    with pytest.raises(FailsAgain, match=r"16 bits of mask found, sums of this round need 2[0-9] "):
        toy.simulate(transforms=[QUANTISE, {"kind": "mask", "bits": 16}])


def test_its_bytes_are_the_sums_bits() -> None:
    plain, masked = (
        toy.simulate(rounds=1, transforms=[QUANTISE, *more]) for more in ([], [{"kind": "mask", "bits": 26}])
    )
    n, clients = 212, plain.rows[0]["visits"]
    assert plain.rows[0]["bytes/up"] == clients * (n * 2 + 8)
    assert masked.rows[0]["bytes/up"] == clients * (-(-n * 26 // 8) + 8)
