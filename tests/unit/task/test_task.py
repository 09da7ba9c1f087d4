"""A task: its first parameters, loss and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rayfed
from rayfed import keys, tree
from rayfed.errors import ConfigError
from rayfed.launch.start import run_local
from rayfed.task import Task
from tests import toy
from tests.unit.models.networks import inputs


def task(model: Any = None, seed: int = 1, dtype: str = "float32", **more: Any) -> Task:
    c = toy.config(seed=seed, dtype=dtype, task={"model": model or {"name": "mlp", "hidden": [16]}})
    return Task(c, toy.federation(c), **more)


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def test_the_seed_alone_decides_the_first_parameters() -> None:
    torch.manual_seed(5)
    first = task().initial
    torch.manual_seed(6)
    torch.rand(3)
    second = task()
    assert same(first, second.initial) and same(first, second.initial)
    assert not same(first, task(seed=2).initial)
    assert same(first, second.init_params(keys.key(1, 0, -1, "init")))
    assert not same(first, second.init_params(keys.key(1, 0, -1, "other")))
    double = task(dtype="float64").initial
    assert {p.dtype for p in double.values()} == {torch.float64}
    assert same({n: p.double() for n, p in first.items()}, double)


def test_building_a_task_does_not_move_torchs_generator() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    t = task()
    _ = t.initial, t.fresh_params(7)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_first_parameters_are_torchs_own() -> None:
    t = task()
    with torch.random.fork_rng():
        torch.manual_seed(keys.key(1, 0, -1, "init"))
        plain = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    want = dict(zip(("body.0.weight", "body.0.bias", "head.weight", "head.bias"), plain.state_dict().values()))
    assert same(t.initial, want)
    assert t.head == ("head.weight", "head.bias")
    assert list(t.params_like) == list(want) and not any(p.any() for p in t.params_like.values())


def test_a_start_replaces_the_drawn_parameters_but_not_fresh_ones() -> None:
    drawn = task()
    start = {n: np.full(p.shape, 0.5, np.float64) for n, p in drawn.initial.items()}
    t = task(start={"params": start})
    assert all((p == 0.5).all() and p.dtype == torch.float32 for p in t.initial.values())
    assert same(t.fresh_params(keys.key(1, 0, -1, "init")), drawn.initial)


def test_loss_probabilities_and_metrics_equal_numpy() -> None:
    t = task(dtype="float64")
    x, y = inputs(9, (8,)), torch.arange(9) % 4
    p, batch = t.initial, {"x": x, "y": y}
    w = {n: v.numpy() for n, v in p.items()}
    hidden = np.maximum(x.numpy() @ w["body.0.weight"].T + w["body.0.bias"], 0)
    z = hidden @ w["head.weight"].T + w["head.bias"]
    probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    nll = -np.log(probs[np.arange(9), y.numpy()])
    assert t.apply(p, x).numpy() == pytest.approx(z, abs=1e-12)
    assert t.loss(p, batch).numpy() == pytest.approx(nll, abs=1e-12)
    assert t.predict(p, batch).numpy() == pytest.approx(probs, abs=1e-12)
    m = t.metrics(p, batch)
    assert m["loss"].numpy() == pytest.approx(nll, abs=1e-12)
    assert m["accuracy"].tolist() == (z.argmax(1) == y.numpy()).astype(float).tolist()


def test_a_task_says_what_the_data_and_the_model_are(own_network: Any) -> None:
    t = task({"name": own_network("net"), "width": 5})
    assert (t.classes, t.input_shape, t.population) == (4, (8,), 12)
    assert {n: tuple(p.shape) for n, p in t.params_like.items()} == {
        "body.weight": (5, 8), "body.bias": (5,), "head.weight": (4, 5), "head.bias": (4,)
    }  # fmt: skip
    assert same(t.initial, task({"name": own_network("net"), "width": 5}).initial)


# -- buffers -----------------------------------------------------------------------------------------------------------


def test_own_buffers_are_entries_of_the_model(nets: Any, tmp_path: Path) -> None:
    fed = toy.make_fed(toy.config("fedavg", **nets("counting")))
    assert set(fed.task.buffers) == {"seen", "mean"} and "fixed" not in fed.task.params_like
    ran = toy.run_folder(
        "fedavg", tmp_path, rounds=1, executor="vmap", **{**nets("counting"), "federation": {"per_round": 1}}
    )
    steps = ran.state["model"]["seen"]
    assert steps > 0 and torch.allclose(ran.state["model"]["mean"], 1 - 0.5**steps)
    assert float(rayfed.load(ran.folder.path).model()["seen"]) == float(steps)


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


def test_a_counter_is_that_of_the_client_with_the_most_steps(nets: Any) -> None:
    fed = toy.make_fed(toy.config("fedavg", **nets("batchnorm")))
    assert fed.task.counters == ("1.num_batches_tracked",)
    state, steps = fed.method.init(fed.task, 7), 0
    for r in (1, 2):
        fed.begin(r)
        got = fed.ask(fed.method.train, fed.sample(), shared=state, keep="delta")
        assert len({reply.steps for reply in got}) > 1
        steps += max(reply.steps for reply in got)
        fed.begin(r)
        state = fed.method.round(state, fed, fed.task)
    assert float(state["model"]["1.num_batches_tracked"]) == steps


@pytest.mark.parametrize(
    "method",
    [
        "fedavgm", "fedadam", "scaffold", "fednova", "ifca", "cfl", "fesem", "fedbip",
        {"name": "fedmerge", "inner": "all"}, {"name": "disue", "signature": "all"},
    ],
)  # fmt: skip
def test_counters_stay_whole_numbers_under_every_method(nets: Any, method: Any) -> None:
    done = toy.simulate(method, executor="vmap", rounds=3, **nets("batchnorm"))
    counts = [x for path, x in tree.leaves(done.state) if path[-1] == "1.num_batches_tracked" and path[0] not in "mvc"]
    assert counts and all(torch.equal(x, x.round()) for x in counts) and max(float(x.max()) for x in counts) > 1


def test_frozen_buffers_are_no_part_of_the_model(nets: Any) -> None:
    done = toy.simulate("fedavg", executor="vmap", **{**nets("batchnorm"), "local": {"buffers": "frozen"}})
    assert done.fed.task.buffers == () and not [n for n in done.state["model"] if "running" in n]


# -- a network that is tried before a run ------------------------------------------------------------------------------


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
    wrong_nets: Any, name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        run_local(toy.config("fedavg", **wrong_nets(name)), out=tmp_path / "runs")
    assert said in str(error.value) and f"{name}" in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_rows_that_depend_on_each_other_are_trained_without_padding(wrong_nets: Any) -> None:
    task = toy.make_fed(toy.config("fedavg", dtype="float64", **wrong_nets("centred"))).task
    assert isinstance(task.vectorize, str)
    x, y = torch.randn(5, 8).double(), torch.zeros(5, dtype=torch.int64)
    w = torch.tensor([1.0, 1, 1, 0, 0]).double()
    cut = task.loss(task.initial, {"x": x[:3], "y": y[:3], "w": w[:3]}, torch.tensor(1))
    assert torch.allclose(task.loss(task.initial, {"x": x, "y": y, "w": w}, torch.tensor(1))[:3], cut)


def test_what_a_run_starts_from_is_in_the_models_order_whatever_the_file_readers_is() -> None:
    """A tree's order is that of its sums, and of what is compiled for it; safetensors gives tensors in any order."""
    drawn = task().initial
    for names in (list(drawn), list(drawn)[::-1]):
        assert same(task(start={"params": {n: drawn[n].numpy() for n in names}, "base": None}).initial, drawn)
