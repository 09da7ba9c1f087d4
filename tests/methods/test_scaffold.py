"""SCAFFOLD, option II, against NumPy and two parabolas worked by hand; what the control variates sum to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.errors import ConfigError
from rayfed.methods.scaffold import Scaffold
from rayfed.visits import visit
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
EVERYONE = {"federation": {"clients": 4, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}}}


def same_sizes(split: Any, alike: bool = False, n: int = 16) -> None:
    """Four clients with n examples each, a power of two so that weights by examples are exactly equal ones."""
    rng = np.random.default_rng(3)
    xs, ys = [rng.normal(size=(n, 8)) for _ in range(4)], [rng.integers(0, 4, n) for _ in range(4)]
    split(*(([xs[0]] * 4, [ys[0]] * 4) if alike else (xs, ys)), classes=4)


def test_three_rounds_in_numpy(plain: Any) -> None:
    """Partial participation, server_lr and a falling rate: model, c and every c_i."""
    changes = toy.merge(plain.WORK, {"local": {"schedule": {"kind": "exponential", "gamma": 0.5}}})
    done = toy.simulate({"name": "scaffold", "server_lr": 0.7}, rounds=3, **changes)
    x, c = plain.vector(done.initial["model"]), 0.0
    own: dict[int, Any] = dict.fromkeys(range(12), 0.0)
    assert len({d.ids for d in done.fed.drawn}) == 3
    for r, draw in enumerate(done.fed.drawn):
        lr, us, dcs = 0.1 * 0.5**r, [], []
        for i in draw.ids:
            y = plain.descend(x, *plain.data(done.fed, i), drift=c - own[i], lr=lr)
            new = own[i] - c + (x - y) / (plain.STEPS * lr)
            us.append(y - x)
            dcs.append(new - own[i])
            own[i] = new
        x, c = x + 0.7 * np.mean(us, 0), c + np.sum(dcs, 0) / 12
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    np.testing.assert_allclose(plain.vector(done.state["c"]), c, atol=1e-12)
    assert done.clients().keys() == {str(i) for d in done.fed.drawn for i in d.ids}
    for i, state in done.clients().items():
        np.testing.assert_allclose(plain.vector(state["c_i"]), own[int(i)], atol=1e-12)


def test_the_cards_two_parabolas(quadratics: Any) -> None:
    changes = quadratics()
    for rounds, want in ((1, 0.328039), (2, 0.632232), (3, 0.792983), (25, 0.818182)):
        done = toy.simulate("scaffold", rounds=rounds, **changes)
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)


def test_unequal_steps_divide_by_the_clients_own(quadratics: Any) -> None:
    """20 and 5 steps: c_i = (x^0 - y_i) / (K_i lr) by closed form; x still goes to the true minimiser, 9/11."""
    changes = quadratics(20, 5)
    one = toy.simulate("scaffold", rounds=1, **changes)
    y = {"0": 1 - 0.8**20, "1": 0.98**5 - 1}
    for i, k in (("0", 20), ("1", 5)):
        assert float(one.clients()[i]["c_i"]["head.weight"]) == pytest.approx(-y[i] / (k * 0.02), abs=1e-12)
    assert float(one.state["model"]["head.weight"]) == pytest.approx((y["0"] + y["1"]) / 2, abs=1e-13)
    far = toy.simulate("scaffold", rounds=25, **changes)
    assert float(far.state["model"]["head.weight"]) == pytest.approx(9 / 11, abs=1e-7)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_server_control_is_the_mean_of_all_clients(executor: str) -> None:
    """After every round, minibatches and partial participation; who never took part counts as zero."""
    for rounds in (1, 2, 3):
        done = toy.simulate("scaffold", rounds=rounds, executor=executor, dtype="float64")
        total = tree.zeros(done.state["c"])
        for state in done.clients().values():
            total = tree.add(total, state["c_i"])
        assert 7 <= len(done.clients()) <= 12
        gap = tree.norm(tree.sub(tree.scale(total, 1 / 12), done.state["c"]))
        assert float(gap) < 1e-14 and float(tree.norm(total)) > 0.1


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_first_round_is_fedavg_to_the_bit_where_sizes_are_equal(split: Any, executor: str) -> None:
    same_sizes(split)
    made = [toy.simulate(m, rounds=1, executor=executor, **EVERYONE).state["model"] for m in ("scaffold", "fedavg")]
    assert tree.same(*made)
    made = [toy.simulate(m, rounds=2, executor=executor, **EVERYONE).state["model"] for m in ("scaffold", "fedavg")]
    assert not tree.same(*made)


@needs_fedavg
def test_frozen_controls_are_uniform_fedavg(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients whose c_i stays zero report no change, so c stays zero as well."""
    same_sizes(split)
    real = Scaffold.train

    def train(self: Scaffold, task: Any) -> Any:
        inner = real.make(self, task)

        def end(*args: Any) -> Any:
            parts, own = inner.end(*args)
            return {**parts, "dc": tree.zeros(parts["dc"])}, tree.zeros(own)

        return inner._replace(end=end)

    monkeypatch.setattr(Scaffold, "train", visit(train))
    frozen, plain = (toy.simulate(m, rounds=3, **EVERYONE) for m in ("scaffold", "fedavg"))
    assert tree.same(frozen.state["model"], plain.state["model"])


@needs_fedavg
def test_identical_clients_have_nothing_to_correct(split: Any, plain: Any) -> None:
    """c_i == c for all, so three rounds are FedAvg's."""
    same_sizes(split, alike=True)
    done, average = (toy.simulate(m, rounds=3, **toy.merge(plain.WORK, EVERYONE)) for m in ("scaffold", "fedavg"))
    for state in done.clients().values():
        torch.testing.assert_close(tree.flatten(state["c_i"]), tree.flatten(done.state["c"]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(plain.vector(done.state["model"]), plain.vector(average.state["model"]), atol=1e-13)


def test_server_lr_scales_the_models_step_only() -> None:
    one, half = (toy.simulate({"name": "scaffold", "server_lr": s}, rounds=1, executor="vmap") for s in (1.0, 0.5))
    assert tree.same(one.state["c"], half.state["c"])
    steps = [tree.norm(tree.sub(r.state["model"], r.initial["model"])) for r in (one, half)]
    assert float(steps[1] / steps[0]) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"name": "adam"}])
def test_only_plain_sgd(optimizer: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="option II"):
        toy.config("scaffold", local={"optimizer": optimizer})
