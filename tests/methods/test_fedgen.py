"""FedGen: what it reduces to, the model in two, the client's loss and the generator's by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rayfed import keys, methods, optimizers, tree
from rayfed.distill import ensemble
from rayfed.distill import generator as gen
from rayfed.errors import ConfigError
from rayfed.launch import start
from rayfed.launch.preflight import load_request
from rayfed.methods.fedgen import draw_labels, label_distribution, train_generator
from rayfed.visits import ClientContext, Info
from tests import toy

SHORT = {"name": "fedgen", "generator_steps": 3, "batch": 8, "noise": 4, "hidden": 8}
DOUBLE = {"executor": "vmap", "dtype": "float64"}
needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


# -- what it reduces to ------------------------------------------------------------------------------------------------


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_weights_it_is_fedavg_to_the_bit(executor: str) -> None:
    done = toy.simulate({**SHORT, "alpha": 0, "beta": 0}, executor=executor)
    assert tree.same(done.state["model"], toy.simulate("fedavg", executor=executor).state["model"])
    assert not tree.same(done.state["generator"]["g"], done.initial["generator"]["g"])


@needs_fedavg
def test_until_a_generator_is_trained_clients_train_plainly() -> None:
    """Round 1 is FedAvg's; round 2 is not; with an untrained generator none ever differs."""
    for settings, rounds, same in ((SHORT, 1, True), (SHORT, 2, False), ({**SHORT, "generator_steps": 0}, 2, True)):
        done, plain = (toy.simulate(m, rounds=rounds, **DOUBLE) for m in (settings, "fedavg"))
        gap = float(tree.norm(tree.sub(done.state["model"], plain.state["model"])))
        assert gap < 1e-12 if same else gap > 1e-3


@needs_fedavg
@pytest.mark.parametrize("net", ["dropout", "batchnorm"])
def test_networks_train_in_train_mode(net: str) -> None:
    """With a generator that says nothing yet, a round is FedAvg's: the same masks, batch statistics and running ones."""
    own = {"task": {"model": {"name": f"{Path(__file__).parents[1] / 'own_nets.py'}:{net}"}}}
    done, plain = (
        toy.simulate(m, rounds=1, **toy.merge(DOUBLE, own)) for m in ({"name": "fedgen", "hidden": 8}, "fedavg")
    )
    for name, x in plain.state["model"].items():
        assert torch.allclose(done.state["model"][name].double(), x.double(), rtol=0, atol=1e-12), name


def test_counts_add_up_over_rounds() -> None:
    done = toy.simulate(SHORT, rounds=3, **DOUBLE)
    want = sum(done.fed.federation.class_counts[list(d.ids)].sum(0) for d in done.fed.drawn)
    assert done.state["counts"].tolist() == want.tolist()
    assert float(done.state["generator"]["adam"]["t"]) == 9.0


# -- the model in two --------------------------------------------------------------------------------------------------

IMAGES = {"data": {"name": "synthetic:images", "examples": 320, "classes": 4, "size": 8, "test": 60}}


@pytest.mark.parametrize("model", ["linear", "mlp", "cnn", "resnet", "vit-tiny"])
def test_features_then_classifier_is_the_model(model: str) -> None:
    """For two parameter sets at once, with gradients."""
    groups = {"kind": "none"}
    task = toy.make_fed(
        toy.config(task={**IMAGES, "model": model}, federation={"groups": groups}, dtype="float64")
    ).task
    params = tree.stack([task.fresh_params(1), task.fresh_params(2)])
    x = torch.rand(2, 3, *task.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def whole(p: tree.Tree, x: torch.Tensor) -> torch.Tensor:
        return task.apply(p, x).square().sum()

    def halves(p: tree.Tree, x: torch.Tensor) -> torch.Tensor:
        h = task.features(p, x)
        assert h.shape == (3, task.feature_size)
        return task.classify(task.classifier(p), h).square().sum()

    one, two = (torch.vmap(torch.func.grad_and_value(f))(params, x) for f in (whole, halves))
    torch.testing.assert_close(two[1], one[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(tree.flatten(two[0]), tree.flatten(one[0]), rtol=1e-9, atol=1e-12)
    assert task.classifier_names == task.head and not task._module.head._forward_pre_hooks


OWN = """
from torch import nn

def {name}(classes, input_shape):
    return nn.Sequential(nn.Flatten(), {layers})
"""


def own(tmp_path: Path, name: str, layers: str) -> Any:
    file = tmp_path / "own.py"
    file.write_text(OWN.format(name=name, layers=layers))
    settings = {**toy.TOY, "method": SHORT, "storage": {"path": str(tmp_path / "runs"), "snapshot_every": 1}}
    return load_request({**settings, "task": {**toy.TOY["task"], "model": f"{file}:{name}"}})


def test_a_model_without_a_classifier_is_refused_before_anything_starts(tmp_path: Path) -> None:
    bad = own(tmp_path, "softened", "nn.Linear(8, classes), nn.LogSoftmax(1)")
    with pytest.raises(ConfigError, match=r"task.model: .*own.py:softened does not end in a torch.nn.Linear .*fedgen"):
        start.run_local(bad)
    assert not (tmp_path / "runs").exists()


def test_an_own_model_is_split_whatever_its_layers_are_called(tmp_path: Path) -> None:
    done = start.run_local(own(tmp_path, "named", "nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, classes, bias=False)"))
    assert done.status == "done"


@pytest.mark.parametrize("large", [True, False])
def test_entries_of_updates_are_fetched_alone(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfed.engine.worker.SMALL", 10 if large else 4096)
    fed = toy.make_fed(toy.config("fedavg", **DOUBLE), toy.SimPool(2, 5))
    fed.begin(1)
    got = fed.ask(fed.method.train, fed.sample(), shared={"model": fed.method.init(fed.task, 1)["model"]})
    some = got.stacked("delta", ("head.weight", "head.bias"))
    whole = got.stacked("delta")
    assert list(some) == ["head.weight", "head.bias"] and tree.same(some, {n: whole[n] for n in some})


# -- labels ------------------------------------------------------------------------------------------------------------


def test_label_distribution_by_hand() -> None:
    counts = torch.tensor([6, 0, 2, 0])
    assert label_distribution(counts, 0.0).tolist() == [0.5, 0, 0.5, 0]
    assert label_distribution(counts, 1.0).tolist() == [0.75, 0, 0.25, 0]
    assert label_distribution(torch.zeros(3, dtype=torch.int64), 1.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawn_labels_follow_it(dtype: torch.dtype) -> None:
    p = label_distribution(torch.tensor([0, 1, 0, 2, 0]), 1.0).to(dtype)
    y = draw_labels(p, keys.uniform(torch.tensor(3), (30_000,), dtype))
    share = torch.bincount(y, minlength=5).double() / 30_000
    assert share[[0, 2, 4]].tolist() == [0, 0, 0] and float(share[3]) == pytest.approx(2 / 3, abs=0.012)
    edge = torch.tensor([0.0, 1 - 2**-24], dtype=dtype)  # the least and the largest number that is drawn
    assert draw_labels(p, edge).tolist() == [1, 3]


# -- the client's loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_one_local_step_by_autograd(alpha: float, beta: float) -> None:
    """Softmax regression, one batch in round 3, the loss as the paper writes it and `backward`."""
    s = {**SHORT, "alpha": alpha, "beta": beta, "decay": 0.5, "generated": 6}
    changes = {"task": {"model": "linear"}, "local": {"epochs": None, "steps": 1, "batch_size": 12}, "rounds": 3}
    fed = toy.make_fed(toy.config(s, **DOUBLE, **changes))
    task, lr = fed.task, fed.config.local.optimizer.lr
    w, g = task.fresh_params(5), gen.init(7, 4, 4, (8,), (8,), torch.float64)
    p = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64)
    visit = fed.method.train(task)
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 8, generator=rng, dtype=torch.float64), torch.arange(12) % 4
    real = torch.tensor([1.0] * 9 + [0.0] * 3, dtype=torch.float64)  # the last three are padding
    info = _info(round=3, lr=torch.tensor(lr, dtype=torch.float64))
    client = ClientContext(info, {"model": w, "generator": g, "labels": p}, {}, {})
    carry = visit.phases[0].enter(client, visit.begin(client))
    key = torch.tensor(99)
    after = visit.phases[0].step(carry, {"x": x, "y": y, "w": real}, key)["model"]

    def latent(e: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        h = torch.cat([e, torch.eye(4, dtype=torch.float64)[labels]], 1)
        return torch.relu(h @ g["0"]["w"].T + g["0"]["b"]) @ g["1"]["w"].T + g["1"]["b"]

    def noise(purpose: int, *shape: int) -> torch.Tensor:
        return keys.uniform(keys.fold(key, purpose), shape, torch.float64)

    leaf = {n: v.clone().requires_grad_() for n, v in w.items()}
    head = lambda z: z @ leaf["head.weight"].T + leaf["head.bias"]  # noqa: E731
    loss = F.cross_entropy(head(x[:9]), y[:9])
    target = torch.softmax(head(latent(noise(0, 12, 4), y)), 1).detach()[:9]
    loss = loss + beta * 0.25 * F.kl_div(torch.log_softmax(head(x[:9]), 1), target, reduction="batchmean")
    drawn = draw_labels(p, noise(1, 6))
    assert 1 not in drawn.tolist()
    loss = loss + 6 / 12 * alpha * 0.25 * F.cross_entropy(head(latent(noise(2, 6, 4), drawn)), drawn)
    loss.backward()
    for n, v in leaf.items():
        torch.testing.assert_close(after[n], (v - lr * v.grad).detach(), rtol=0, atol=1e-12)


def _info(**known: Any) -> Any:
    zero = torch.zeros((), dtype=torch.int64)
    return Info(**{**dict.fromkeys(Info._fields, zero), **{k: torch.as_tensor(v) for k, v in known.items()}})


# -- the generator's loss ----------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Callable[..., tuple[Any, Any, tree.Tree]]:
    """(task, settings, untrained generator) of a softmax regression on 8 features and 4 classes."""

    def make(**settings: Any) -> tuple[Any, Any, tree.Tree]:
        fed = toy.make_fed(toy.config({**SHORT, **settings}, task={"model": "linear"}, **DOUBLE))
        g = gen.init(7, 4, 4, (8,), (8,), torch.float64)
        return fed.task, fed.method.settings, {"g": g, "adam": optimizers.adam().init(g)}

    return make


def heads(task: Any, *seeds: int) -> tree.Tree:
    return tree.stack([tree.scale(task.classifier(task.fresh_params(k)), 3.0) for k in seeds])


def test_the_generators_loss_by_hand(server: Any) -> None:
    """sum_i alpha_i^y CE(h_i(z), y) in NumPy, head by head and label by label, at the first step."""
    task, s, state = server(generator_steps=1)
    counts = torch.tensor([[3, 0, 2, 0], [1, 4, 0, 0]])
    rng = keys.torch_generator(11)
    y, h = ensemble.draw_labels(counts, 8, rng, 0.0), heads(task, 1, 2)
    e = torch.rand(8, 4, generator=rng, dtype=torch.float64)
    z = gen.latent(state["g"], e, y, 4).numpy()
    alpha = np.array([[0.75, 0, 1, 0], [0.25, 1, 0, 0]])
    total = 0.0
    for b, c in enumerate(y.tolist()):
        for i in range(2):
            f = h["weight"][i].numpy() @ z[b] + h["bias"][i].numpy()
            total += alpha[i, c] * (np.log(np.exp(f).sum()) - f[c])
    after, losses = train_generator(task, state, h, counts, s, 11)
    assert 3 not in y.tolist() and losses["fidelity"] == pytest.approx(total / 8, abs=1e-12)
    assert float(after["adam"]["t"]) == 1.0 and not tree.same(after["g"], state["g"])


def test_a_head_without_a_class_has_no_say_in_it(server: Any) -> None:
    """Whatever it is; and a class that nobody has is never drawn."""
    task, s, state = server(generator_steps=5)
    counts, h = torch.tensor([[3, 1, 0, 0], [0, 0, 0, 0]]), heads(task, 1, 2)
    wild = tree.map(lambda a: torch.cat([a[:1], 50 * a[1:]]), h)
    plain, other = (train_generator(task, state, x, counts, s, 3) for x in (h, wild))
    assert tree.same(plain[0], other[0]) and plain[1] == other[1]
    loud = tree.map(lambda a: torch.cat([50 * a[:1], a[1:]]), h)
    assert train_generator(task, state, loud, counts, s, 3)[1] != plain[1]


def test_the_generator_learns_what_the_heads_know(server: Any) -> None:
    task, s, state = server(generator_steps=300, generator_lr=0.01, batch=32)
    counts, h = torch.tensor([[5, 5, 0, 0], [0, 0, 5, 5]]), heads(task, 1, 2)
    taught = train_generator(task, state, h, counts, s, 3)[0]
    y = torch.arange(4).repeat(50)
    z = gen.latent(taught["g"], torch.rand(200, 4, dtype=torch.float64, generator=keys.torch_generator(0)), y, 4)
    logits = torch.vmap(task.classify, in_dims=(0, None))(h, z)
    judge = torch.where((y < 2)[:, None], logits[0], logits[1])
    assert float((judge.argmax(1) == y).double().mean()) > 0.95
