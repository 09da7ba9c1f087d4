"""Networks as people write them: train mode, dropout, normalisation with running statistics, buffers; held against plain PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rayfed import keys, tree
from tests import toy

KINDS = ["batchnorm", "dropout", "encoder", "noisy", "counting", "instances"]


@pytest.fixture
def nets() -> Any:
    """Gives changes to the toy's config: its clients train a network of `tests/own_nets.py`."""
    file = Path(__file__).parents[1] / "own_nets.py"
    return lambda name, **options: {"task": {"model": {"name": f"{file}:{name}", **options}}}


@pytest.mark.parametrize("name", KINDS)
def test_loop_is_vmap_and_the_same_keys_give_the_same_bits(nets: Any, name: str) -> None:
    runs = {
        e: toy.simulate("fedavg", executor=e, dtype="float64", rounds=3, **nets(name))
        for e in ("loop", "vmap", "debug")
    }
    for e in ("vmap", "debug"):
        for (path, a), (_, b) in zip(tree.leaves(runs["loop"].state), tree.leaves(runs[e].state), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), (e, path)
    again = toy.simulate("fedavg", executor="vmap", dtype="float64", rounds=3, **nets(name))
    assert tree.same(again.state, runs["vmap"].state)


@pytest.mark.parametrize("name", ["dropout", "batchnorm"])
def test_actors_order_and_resume_change_nothing(nets: Any, name: str, tmp_path: Path) -> None:
    straight = toy.simulate("fedavg", executor="vmap", **nets(name))
    spread = toy.simulate("fedavg", executor="vmap", pool=toy.SimPool(3, 0, kill_at=(1,)), order=3, **nets(name))
    assert tree.same(straight.state, spread.state)
    whole = toy.run_folder("fedavg", tmp_path / "whole", rounds=3, executor="vmap", **nets(name))
    toy.run_folder("fedavg", tmp_path / "cut", rounds=3, executor="vmap", stop_after=1, **nets(name))
    resumed = toy.run_folder("fedavg", tmp_path / "cut", rounds=3, executor="vmap", resume=True, **nets(name))
    assert tree.same(whole.state, resumed.state) and whole.rows == resumed.rows


def test_dropout_acts_in_training_alone(nets: Any) -> None:
    states = {p: toy.simulate("fedavg", **nets("dropout", p=p)).state["model"] for p in (0.0, 0.5, 0.95)}
    assert not tree.same(states[0.0], states[0.5]) and not tree.same(states[0.5], states[0.95])
    fed = toy.make_fed(toy.config("fedavg", **nets("dropout")))
    task, x = fed.task, torch.randn(5, 8)
    params, w = task.initial, torch.ones(5)
    assert torch.equal(task.apply(params, x), task.apply(params, x))
    batch = {"x": x, "y": torch.zeros(5, dtype=torch.int64), "w": w}
    one, same, other = (task.loss(params, batch, torch.tensor(k)) for k in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not torch.equal(one, task.loss(params, batch))
    share = torch.cat([_dropped_share(nets, k) for k in range(40)]).mean()
    assert abs(float(share) - 0.5) < 0.05


def _dropped_share(nets: Any, key: int) -> torch.Tensor:
    from rayfed.models.training_mode import TrainingForward, TrainingStep

    with TrainingForward(TrainingStep(torch.tensor(key))):
        return (F.dropout(torch.ones(50), 0.5) == 0).float()


def plain_fedavg(model: nn.Module, fed: Any, rounds: int) -> dict[str, torch.Tensor]:
    """FedAvg in plain PyTorch, in train mode, on the very batches of the federation; buffers are averaged like parameters."""
    c, sampler = fed.config, fed.pool.worker.runs["toy"].sampler
    visit = fed.pool.worker.runs["toy"].visit("train", False)
    state = {n: x.detach().clone().double() for n, x in model.state_dict().items()}
    for r in range(1, rounds + 1):
        fed.begin(r)
        ids = fed.sample()
        total, weight = {n: torch.zeros_like(x) for n, x in state.items()}, 0.0
        for i in ids:
            one = copy.deepcopy(model)
            one.load_state_dict({n: x.to(one.state_dict()[n].dtype) for n, x in state.items()})
            one.train()
            opt = torch.optim.SGD(one.parameters(), lr=c.local.optimizer.lr)
            cohort = sampler.cohort(
                visit, [i], dispatch=(r << 20) + 1, round=r, rounds=c.rounds, lr=c.local.optimizer.lr
            )
            rows, mask = cohort.phases[0].rows[0, :, 0], cohort.phases[0].w[0, :, 0]
            for at, w in zip(rows, mask, strict=True):
                real = at[w > 0]
                x = torch.as_tensor(fed.federation.arrays["x"])[real].double()
                y = torch.as_tensor(fed.federation.arrays["y"])[real]
                if len(real) == 1 and x.dim() == 2:
                    raise AssertionError("a batch of one row: PyTorch's BatchNorm1d has no word for it")
                opt.zero_grad()
                F.cross_entropy(one(x), y).backward()
                opt.step()
            n = float(len(fed.federation.train[i]))
            for name, x in one.state_dict().items():
                total[name] += n * x.double()
            weight += n
        state = {n: x / weight for n, x in total.items()}
    return state


@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_a_residual_network_with_batchnorm_is_plain_pytorchs(nets: Any, executor: str, momentum: float) -> None:
    changes = toy.merge(
        nets("resnet", momentum=momentum),
        {
            "task": {"data": "digits"},
            "federation": {
                "clients": 6,
                "per_round": 4,
                "groups": {"kind": "rotation", "count": 2},
                "partition": {"kind": "iid"},
            },
            "local": {"epochs": 1, "batch_size": 32},
        },
    )
    c = toy.config("fedavg", executor=executor, dtype="float64", rounds=2, **changes)
    fed = toy.make_fed(c)
    model = fed.task.module().double()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(fed.task.initial[n])
    want = plain_fedavg(model.requires_grad_(True), fed, 2)
    got = toy.simulate("fedavg", executor=executor, dtype="float64", rounds=2, **changes).state["model"]
    assert set(got) == set(want)
    for n in want:
        assert torch.allclose(got[n], want[n], rtol=1e-6, atol=1e-9), n
    assert float(got["1.num_batches_tracked"]) > 0 and not torch.equal(got["1.running_var"], torch.ones(4).double())


def test_own_buffers_are_entries_of_the_model(nets: Any, tmp_path: Path) -> None:
    fed = toy.make_fed(toy.config("fedavg", **nets("counting")))
    assert set(fed.task.buffers) == {"seen", "mean"} and "fixed" not in fed.task.params_like
    ran = toy.run_folder(
        "fedavg", tmp_path, rounds=1, executor="vmap", **{**nets("counting"), "federation": {"per_round": 1}}
    )
    steps = ran.state["model"]["seen"]
    assert steps > 0 and torch.allclose(ran.state["model"]["mean"], 1 - 0.5**steps)
    import rayfed

    assert float(rayfed.load(ran.folder.path).model()["seen"]) == float(steps)


def test_padding_rows_move_no_statistics(nets: Any) -> None:
    task = toy.make_fed(toy.config("fedavg", dtype="float64", **nets("batchnorm"))).task
    x, y = torch.randn(6, 8).double(), torch.zeros(6, dtype=torch.int64)
    from rayfed.training import grad, mean_loss

    def after(batch: Any) -> Any:
        return grad(lambda p: mean_loss(task.loss, p, batch, torch.tensor(1)))(task.initial)

    few = after({"x": x[:4], "y": y[:4], "w": torch.ones(4).double()})
    padded = after({"x": x, "y": y, "w": torch.tensor([1.0, 1, 1, 1, 0, 0]).double()})
    assert all(_near(a, b) for a, b in zip(few, padded, strict=True))
    alone = after({"x": x, "y": y, "w": torch.tensor([1.0, 0, 0, 0, 0, 0]).double()})
    assert torch.equal(alone[1]["1.running_mean"], task.initial["1.running_mean"]) and tree.finite(alone[0])


def _near(a: Any, b: Any) -> bool:
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in zip(tree.values(a), tree.values(b), strict=True))


@pytest.mark.parametrize("method", ["fedavgm", "fedadam", "scaffold", "fednova", "ifca", "fedprox"])
def test_statistics_are_averages_under_every_method(nets: Any, method: str) -> None:
    done = toy.simulate(method, executor="vmap", rounds=2, **nets("batchnorm"))
    model = done.state.get("model", done.state.get("experts"))
    var = model["1.running_var"]
    assert tree.finite(done.state) and bool((var > 0).all())
    if method in ("fedavgm", "fedadam", "fednova", "scaffold"):
        first = toy.simulate(method, executor="vmap", rounds=1, **nets("batchnorm"))
        plain = toy.simulate("fedavg", executor="vmap", rounds=1, **nets("batchnorm"))
        if method != "scaffold":  # which weighs clients alike
            assert torch.allclose(
                first.state["model"]["1.running_mean"], plain.state["model"]["1.running_mean"], rtol=1e-5
            )
        count = float(first.state["model"]["1.num_batches_tracked"])
        assert 0 < count < 100


def test_keys_are_apart_from_the_methods_own() -> None:
    from rayfed.models.training_mode import PURPOSE, TrainingStep

    step = TrainingStep(torch.tensor(7))
    first, second = step.next_key(), step.next_key()
    assert (
        len({int(first), int(second), 7, int(keys.fold(torch.tensor(7), 0)), int(keys.fold(torch.tensor(7), PURPOSE))})
        == 5
    )
    assert np.isfinite(int(first))


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_private_buffers_stay_at_the_client(nets: Any, executor: str) -> None:
    changes = {**nets("batchnorm"), "local": {"buffers": "private"}}
    done = toy.simulate("fedavg", executor=executor, rounds=3, **changes)
    task = done.fed.task
    for n in task.buffers:
        assert torch.equal(done.state["model"][n], done.initial["model"][n]), n
    own = done.clients()
    assert own and all(set(s["buffers"]) == set(task.buffers) for s in own.values())
    assert all(float(s["buffers"]["1.num_batches_tracked"]) > 0 for s in own.values())
    assert len({float(s["buffers"]["1.running_mean"].sum()) for s in own.values()}) == len(own)
    scores = done.scores()[1]
    assert len({r["loss"] for r in scores if r["client"] < 12}) > 6


def test_private_buffers_are_refused_where_a_method_would_send_them(nets: Any) -> None:
    """SCAFFOLD sends control variates, which hold what moved, buffers too."""
    from rayfed.errors import ConfigError

    with pytest.raises(ConfigError, match=r"local.buffers: private found, .* no updates \(dc\)"):
        toy.config("scaffold", **{**nets("batchnorm"), "local": {"buffers": "private"}})


def test_frozen_buffers_are_no_part_of_the_model(nets: Any) -> None:
    done = toy.simulate("fedavg", executor="vmap", **{**nets("batchnorm"), "local": {"buffers": "frozen"}})
    assert done.fed.task.buffers == () and not [n for n in done.state["model"] if "running" in n]


def test_fedbn_keeps_the_layers_and_is_fedavg_without_them(nets: Any) -> None:
    bn = toy.simulate("fedbn", executor="vmap", rounds=3, **nets("batchnorm"))
    layers = [n for n in bn.state["model"] if n.startswith("1.")]
    assert len(layers) == 5 and all(torch.equal(bn.state["model"][n], bn.initial["model"][n]) for n in layers)
    assert all(set(s["norm"]) == set(layers) for s in bn.clients().values())
    same = [toy.simulate(m, executor="vmap", rounds=2, **nets("dropout")) for m in ("fedbn", "fedavg")]
    assert tree.same(same[0].state["model"], same[1].state["model"])


# -- what cannot be trained is refused before anything starts --------------------------------------------------------------

WRONG = """
import torch
from torch import nn


def five(classes, input_shape):
    return nn.Linear(8, 5)


def one(classes, input_shape):
    return nn.Linear(8, 1)


class Two(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(x), x


def pair(classes, input_shape):
    return Two(classes)


def narrow(classes, input_shape):
    return nn.Linear(7, classes)


def between_layers(classes, input_shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 6, 2, batch_first=True, dropout=0.5), nn.Linear(6, classes)

        def forward(self, x):
            return self.head(self.rnn(x.reshape(len(x), 2, 4))[0][:, -1])

    return Net()


def always_random(classes, input_shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, classes)

        def forward(self, x):
            return self.head(nn.functional.dropout(x, 0.5))

    return Net()


def no_statistics(classes, input_shape):
    return nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, classes))


def lazy(classes, input_shape):
    return nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, classes))


def centred(classes, input_shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, classes)

        def forward(self, x):
            return self.head(x - x.mean(0) if self.training else x)

    return Net()


def lstm(classes, input_shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, classes)

        def forward(self, x):
            return self.head(self.rnn(x.reshape(len(x), 2, 4))[0][:, -1])

    return Net()


class Branch(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(x * 2 if x.mean() > 0 else x)


def branch(classes, input_shape):
    return Branch(classes)
"""


@pytest.fixture
def wrong(tmp_path: Path) -> Any:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    return lambda name: {"task": {"model": {"name": f"{file}:{name}"}}}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("five", "(4, 5) on inputs (4, 8), needed: (4, 4)"),
        ("one", "(4, 1) on inputs (4, 8), needed: (4, 4)"),
        ("pair", "returned tuple"),
        ("narrow", "raised on inputs (4, 8): RuntimeError"),
        ("between_layers", "dropout between layers"),
        ("always_random", "draws random numbers in evaluation too"),
        ("no_statistics", "depends on the other rows"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(
    wrong: Any, name: str, said: str, tmp_path: Path
) -> None:
    from rayfed.errors import ConfigError
    from rayfed.launch.start import run_local

    with pytest.raises(ConfigError) as error:
        run_local(toy.config("fedavg", **wrong(name)), out=tmp_path / "runs")
    assert said in str(error.value) and f"{name}" in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["lazy", "lstm", "branch", "centred"])
def test_what_vmap_cannot_run_is_run_by_loop(wrong: Any, name: str, tmp_path: Path) -> None:
    from rayfed.launch.start import run_local

    changes = toy.merge(wrong(name), {"resources": {"cohort": "auto"}})
    done = run_local(toy.config("fedavg", executor="auto", **changes), out=tmp_path)
    assert done.status == "done"


def test_rows_that_depend_on_each_other_are_trained_without_padding(wrong: Any) -> None:
    task = toy.make_fed(toy.config("fedavg", dtype="float64", **wrong("centred"))).task
    assert isinstance(task.vectorize, str)
    x, y = torch.randn(5, 8).double(), torch.zeros(5, dtype=torch.int64)
    w = torch.tensor([1.0, 1, 1, 0, 0]).double()
    cut = task.loss(task.initial, {"x": x[:3], "y": y[:3], "w": w[:3]}, torch.tensor(1))
    assert torch.allclose(task.loss(task.initial, {"x": x, "y": y, "w": w}, torch.tensor(1))[:3], cut)
