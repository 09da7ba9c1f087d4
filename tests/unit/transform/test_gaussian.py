"""Noise on clipped updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.errors import FailsAgain
from rayfed.methods.fedavg import FedAvg
from rayfed.transform import Collected
from tests import toy
from tests.unit.transform.alone import made

CLIP = {"kind": "clip", "norm": 0.5}
EVERYONE = {"federation": {"per_round": None}}
POISSON = {"federation": {"per_round": 6, "participation": {"kind": "poisson"}}}


def noise(**more: Any) -> dict[str, Any]:
    return {"kind": "gaussian", "noise_multiplier": 1.5, **more}


def got(part: Any, divisor: float, count_noise: float = 0.0) -> Collected:
    return Collected({"delta": part}, {"delta": divisor}, {}, 6.0, 6, 0.5, True, count_noise)


@pytest.mark.parametrize(("count_noise", "multiplier"), [(0.0, 1.5), (1.0, (1.5**-2 - 2.0**-2) ** -0.5)])
def test_the_noise_has_the_deviation_z_c_over_q_n(count_noise: float, multiplier: float) -> None:
    t = made("gaussian", noise_multiplier=1.5, accountant="none")
    folded, _ = t.finish(
        got({"a": torch.zeros(20_000, dtype=torch.float64), "n": torch.tensor(3)}, 8.0, count_noise), {}, key=4
    )
    a = folded["delta"]["a"]
    assert float(a.std()) == pytest.approx(multiplier * 0.5 / 8.0, rel=0.02) and abs(float(a.mean())) < 0.003
    assert int(folded["delta"]["n"]) == 3


def test_another_key_and_another_leaf_draw_other_noise() -> None:
    t = made("gaussian", noise_multiplier=1.0, accountant="none")
    zero = {"a": torch.zeros(50), "b": torch.zeros(50)}
    one, two = (t.finish(got(zero, 1.0), {}, key=k)[0]["delta"] for k in (4, 5))
    assert len({float(x[0]) for x in (one["a"], one["b"], two["a"], two["b"])}) == 4


def test_clients_weigh_the_same_and_the_denominator_is_q_n() -> None:
    """Without noise to speak of, a Poisson round is the sum of clipped updates over q N, whoever took part."""
    done = toy.simulate(
        rounds=1,
        transforms=[{"kind": "clip", "norm": 0.05}, noise(noise_multiplier=0.01, accountant="none")],
        **POISSON,
    )
    ids = done.fed.drawn[0].ids
    assert len(ids) not in (0, 6), "another seed: as many as expected came"
    moved = tree.norm(tree.sub(done.state["model"], done.initial["model"]))
    each = [toy.simulate(rounds=1, kind=only(c), dtype="float64").state["model"] for c in ids]
    first = toy.simulate(rounds=1, dtype="float64").initial["model"]
    wanted = tree.zeros(first)
    for model in each:
        u = tree.sub(model, first)
        wanted = tree.add(wanted, u, 0.05 / max(0.05, float(tree.norm(u))) / 6)
    assert float(moved) == pytest.approx(float(tree.norm(wanted)), rel=0.05)


def only(client: int) -> type[toy.ToyFed]:
    class Only(toy.ToyFed):
        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            super().sample(n, where=where)
            return (client,)

    return Only


def test_a_round_without_clients_gets_its_noise_too() -> None:
    class Nobody(toy.ToyFed):
        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            return ()

    done = toy.simulate(rounds=1, kind=Nobody, transforms=[CLIP, noise(accountant="none")], **POISSON)
    moved = tree.flatten(tree.sub(done.state["model"], done.initial["model"]))
    assert float(moved.std()) == pytest.approx(1.5 * 0.5 / 6, rel=0.2)


def test_what_the_server_decodes_is_clipped_again() -> None:
    """QSGD lengthens a vector; the noise is for the clip's norm."""
    chain = toy.make_fed(
        toy.config(
            transforms=[CLIP, noise(accountant="none"), {"kind": "quantise", "bits": 2, "bucket": 300}], **EVERYONE
        )
    ).dispatch.chain
    assert chain is not None
    update = {n: torch.ones(2, *p.shape) for n, p in chain.task.params_like.items()}
    made_ = chain.encode({"delta": update}, {}, [0, 1], chain.asked(chain.state_init(), [0, 1]), 1, {})
    norms = torch.cat([x.reshape(2, -1) for x in made_.parts["delta"].values()], 1).norm(dim=1)
    assert norms.tolist() == pytest.approx([0.5, 0.5], rel=1e-5)


def test_epsilon_is_in_the_rows_and_grows() -> None:
    from rayfed import privacy

    chain = toy.make_fed(toy.config(transforms=[CLIP, noise()], **EVERYONE)).dispatch.chain
    assert chain is not None
    state = chain.state_init()
    for releases in range(4):
        row = chain.row({**state, "privacy": {"releases": torch.tensor(releases)}}, spent=True)
        assert row["privacy/epsilon"] == privacy.epsilon("exact", 1.0, 1.5, releases, 1e-5)
    assert "privacy/epsilon" not in chain.row(state, spent=False)


def test_local_noise_is_each_clients_own_and_for_a_change_of_twice_the_norm() -> None:
    from rayfed import privacy

    chain = toy.make_fed(toy.config(transforms=[CLIP, noise(where="local")])).dispatch.chain
    assert chain is not None and chain.gaussian is not None
    update = {n: torch.zeros(2, *p.shape) for n, p in chain.task.params_like.items()}
    made_ = chain.encode({"delta": update}, {}, [0, 1], chain.asked(chain.state_init(), [0, 1]), 1, {})
    sent = torch.cat([x.reshape(2, -1) for x in made_.parts["delta"].values()], 1)
    assert sent.std(1).tolist() == pytest.approx([0.75, 0.75], rel=0.2) and not torch.equal(sent[0], sent[1])
    assert chain.gaussian.epsilon(7) == privacy.epsilon("exact", 1.0, 0.75, 7, 1e-5)


class Keeps(FedAvg):
    """Looks at single updates."""

    sums_only = True

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        from rayfed import mean

        fed.ask(self.train, fed.sample(), shared=state, fold=mean("delta"), keep="delta")
        return state


class Twice(FedAvg):
    """Releases two sums a round."""

    sums_only = True

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return super().round(super().round(state, fed, task), fed, task)


@pytest.mark.parametrize(
    "chain", [[CLIP, noise()], [{"kind": "quantise", "range": 1.0}, {"kind": "mask"}]], ids=["gaussian", "mask"]
)
def test_a_method_that_would_see_single_updates_is_refused(chain: list[Any]) -> None:
    with pytest.raises(
        FailsAgain, match=r"sums of updates only, but train is asked to keep those of single clients \(delta\)"
    ):
        toy.simulate(f"{__file__}:Keeps", transforms=chain, **EVERYONE)


def test_more_releases_than_rounds_end_the_run_at_the_budget() -> None:
    with pytest.raises(FailsAgain, match=r"release 3 would spend .* more than one sum a round; 2 are within it"):
        toy.simulate(f"{__file__}:Twice", transforms=[CLIP, noise(epsilon=4.7)], **EVERYONE)
