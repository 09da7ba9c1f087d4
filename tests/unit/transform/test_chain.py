"""The chain: order, parts, states, bytes, and what the engine does with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.transform.chain import Asked
from tests import toy

TOPK, SIGN = {"kind": "topk", "fraction": 0.1}, {"kind": "sign"}
CLIP = {"kind": "clip", "norm": 0.1}


def chain(method: Any = "fedavg", **changes: Any) -> Any:
    return toy.make_fed(toy.config(method, **changes)).dispatch.chain


def test_without_transforms_there_is_none() -> None:
    assert chain() is None
    assert tree.same(toy.simulate().state, toy.simulate(transforms=[{"kind": "clip", "norm": 1e9}]).state)


def test_only_updates_are_acted_on() -> None:
    c = chain("scaffold", transforms=[CLIP])
    assert c.updates == ("delta",)
    parts = {n: {k: torch.ones(2, *p.shape) for k, p in c.task.params_like.items()} for n in ("delta", "dc")}
    made = c.encode(parts, {}, [4, 7], c.asked(c.state_init(), [4, 7]), 1, {})
    assert made.names == ("delta",) and tree.same(made.parts["dc"], parts["dc"])
    norms = torch.cat([x.reshape(2, -1) for x in made.parts["delta"].values()], 1).norm(dim=1)
    assert norms.tolist() == pytest.approx([0.1, 0.1])


def test_a_reply_without_updates_passes() -> None:
    c = chain("ifca", transforms=[TOPK])
    parts = {"loss": torch.ones(2, 3)}
    own = tree.map(lambda x: torch.stack([x] * 2), c.own_init())
    made = c.encode(parts, own, [0, 1], Asked({}), 1, {})
    assert made.parts is parts and made.own is own and made.nbytes is None


def test_later_transforms_are_undone_first_and_what_they_lose_is_kept_too() -> None:
    """topk, then signs of what it sends: the memory of topk has the signs' error, so that nothing is lost."""
    c = chain(transforms=[TOPK, {"kind": "sign", "error_feedback": False}])
    update = {
        n: torch.randn(1, *p.shape, generator=torch.Generator().manual_seed(3)) for n, p in c.task.params_like.items()
    }
    own = tree.map(lambda x: x[None], c.own_init())
    made = c.encode({"delta": update}, own, [5], Asked({}), 1, {})
    whole = torch.cat([x.reshape(-1) for x in update.values()])
    back = torch.cat([x.reshape(-1) for x in made.parts["delta"].values()])
    assert int((back != 0).sum()) == 21 and len(back[back != 0].abs().unique()) == 1
    assert torch.allclose(back + made.own["topk"]["left"]["delta"][0], whole, atol=1e-6)


@pytest.mark.parametrize(
    ("transforms", "each"),
    [
        ([CLIP], 212 * 4),
        ([TOPK], 21 * 8),
        ([{"kind": "randomk", "fraction": 0.1}], 21 * 4),
        ([{"kind": "quantise", "bits": 4}], 106 + 4),
        ([SIGN], 27 + 4),
        ([TOPK, {"kind": "quantise", "bits": 8}], 21 * (4 + 1) + 4),
        ([{"kind": "clip", "norm": 1.0, "quantile": 0.5}], 212 * 4 + 1),
    ],
)
def test_bytes_are_those_of_what_is_sent(transforms: list[Any], each: int) -> None:
    row = toy.simulate(rounds=1, transforms=transforms).rows[0]
    assert row["bytes/up"] == row["visits"] * (each + 8)
    assert row["bytes/down"] == toy.simulate(rounds=1).rows[0]["bytes/down"]


def test_states_of_clients_and_of_the_engine_are_beside_the_methods() -> None:
    clip = {"kind": "clip", "norm": 0.1, "quantile": 0.5}
    done = toy.simulate("scaffold", transforms=[clip, TOPK])
    for state in done.clients().values():
        assert set(state) == {"method", "chain"} and set(state["method"]) == {"c_i"}
        assert state["chain"]["topk"]["left"]["delta"].shape == (212,)
    assert set(done.fed.dispatch.engine.get("transforms")) == {"clip"}
    assert "transforms/clip" in done.fed.dispatch.logged()


def test_a_round_that_fails_leaves_the_engines_state() -> None:
    fed = toy.make_fed(toy.config(transforms=[{"kind": "clip", "norm": 0.1, "quantile": 0.5}]))
    state = fed.method.init(fed.task, 1)
    fed.begin(1)
    fed.method.round(state, fed, fed.task)
    assert fed.dispatch.engine.get("transforms")
    fed.dispatch.rollback()
    assert fed.dispatch.engine.get("transforms") == {}


def test_what_is_not_metered_does_not_travel_and_is_left_as_it_is() -> None:
    fed = toy.make_fed(toy.config(transforms=[{"kind": "clip", "norm": 1e-6}]))
    fed.begin(1)
    from rayfed import mean

    state = fed.method.init(fed.task, 1)
    norms = [
        float(tree.norm(fed.ask(fed.method.train, [1, 2], shared=state, fold=mean("delta"), metered=m).folded["delta"]))
        for m in (True, False)
    ]
    assert norms[0] < 1e-5 < 0.01 < norms[1]


def test_what_is_not_finite_is_found_before_transforms_hide_it() -> None:
    from rayfed.errors import RunFailed

    for transforms in ([{"kind": "quantise"}], [{"kind": "quantise", "range": 1.0}, {"kind": "mask"}]):
        with pytest.raises(RunFailed, match="NaN or infinity"):
            toy.simulate(transforms=transforms, local={"optimizer": {"lr": 1e30}})


def test_norm_statistics_are_not_touched(nets: Any) -> None:
    """Running statistics are no direction: they are sent whole."""
    changes = nets("batchnorm")
    plain, made = (
        toy.simulate(rounds=1, **changes, **more) for more in ({}, {"transforms": [{"kind": "topk", "fraction": 1e-6}]})
    )
    for n in plain.fed.task.buffers:
        assert torch.equal(plain.state["model"][n], made.state["model"][n])
    moved = [n for n, x in made.state["model"].items() if not torch.equal(x, made.initial["model"][n])]
    assert len(set(moved) - set(plain.fed.task.buffers)) <= 7
