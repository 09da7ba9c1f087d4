"""Late fusion: encoders move by their owners' mean alone, and with all clients owning all it is FedAvg to the bit."""

from __future__ import annotations

import torch

from rayfed import tree
from tests import toy

HALVES = toy.merge(toy.MODAL, {
    "task": {"model": {"absent": "skip"}},
    "federation": {"modalities": {"absent": 0.0, "owners": {"image": 1, "text": 1, "measurements": 1}}},
})  # fmt: skip


def test_averaged_over_all_or_owned_by_all_it_is_fedavg_to_the_bit() -> None:
    whole = toy.merge(toy.MODAL, {"federation": {"modalities": {"absent": 0.0}}})
    for method, changes in (({"name": "late_fusion", "average": "all"}, HALVES), ("late_fusion", whole)):
        runs = [toy.simulate(m, executor="vmap", **changes) for m in (method, "fedavg")]
        assert tree.same(runs[0].state, runs[1].state)


def test_an_encoder_moves_by_the_mean_of_its_owners_and_no_other_client() -> None:
    done = toy.simulate("late_fusion", rounds=1, until=1, executor="vmap", dtype="float64", **HALVES)
    plain = toy.simulate("fedavg", rounds=1, until=1, executor="vmap", dtype="float64", **HALVES)
    fed = done.fed
    first, sizes = done.initial["model"], fed.federation.train.sizes()
    (draw,) = fed.drawn
    x = fed.federation.arrays["x"]
    for i, m in enumerate(fed.task.modalities):
        owners = [c for c in draw.ids if x[fed.federation.train[c], -3 + i].any()]
        share = sum(sizes[list(draw.ids)]) / sum(sizes[owners]) if owners else 1.0
        for n in fed.task.of_modality(m.name):
            want = first[n] + (plain.state["model"][n] - first[n]) * share
            torch.testing.assert_close(done.state["model"][n], want, rtol=0, atol=1e-12)
    assert torch.equal(done.state["model"]["head.weight"], plain.state["model"]["head.weight"])


def test_a_client_sends_nothing_of_encoders_that_it_lacks() -> None:
    """Weight decay moves them, but they are not its own; bytes are those of what is sent."""
    decay = toy.merge(HALVES, {"local": {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.5}}})
    done = toy.simulate("late_fusion", rounds=1, until=1, executor="vmap", **decay)
    asked = toy.simulate({"name": "late_fusion", "average": "all"}, rounds=1, until=1, executor="vmap", **decay)
    assert done.rows[0]["bytes/up"] < asked.rows[0]["bytes/up"]
