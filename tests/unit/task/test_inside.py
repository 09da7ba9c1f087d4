"""Inside the model: what layers answer, going on from there, and where a network can be cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayfed.errors import ConfigError, FailsAgain
from tests import toy

IMAGES = {"data": {"name": "synthetic:images", "examples": 320}}
NETS = str(Path(__file__).with_name("inside_nets.py"))
MODELS = [
    ({"name": "mlp", "hidden": [16, 8]}, ("body.1", "body"), {}),
    ({"name": "cnn"}, ("conv1", "conv2", "fc"), IMAGES),
    ({"name": f"{NETS}:skips"}, ("first", "block"), {}),
]


def task_of(model, data=None):
    return toy.make_fed(
        toy.config("fedavg", task={"model": model, **(data or {})}, federation={"groups": {"kind": "none"}})
    ).task


@pytest.mark.parametrize(("model", "cuts", "data"), MODELS, ids=["mlp", "cnn", "skips"])
def test_cuts_are_where_all_that_follows_passes(model, cuts, data) -> None:
    task = task_of(model, data)
    assert tuple(task.cuts) == cuts
    x = torch.rand(3, *task.input_shape)
    seen = task.watch(task.initial, x, [*cuts, ""])
    assert torch.equal(seen[""], task.apply(task.initial, x))
    for name in cuts:
        assert torch.equal(task.resume(task.initial, name, seen[name]), seen[""])


def test_going_on_from_a_cut_reaches_only_what_is_behind_it() -> None:
    task = task_of({"name": "mlp", "hidden": [16, 8]})
    x = torch.rand(3, 8)
    h = task.watch(task.initial, x, ["body.1"])["body.1"]
    slopes = torch.func.grad(lambda p: task.resume(p, "body.1", h).square().sum())(task.initial)
    moved = {n for n, g in slopes.items() if g.abs().sum() > 0}
    assert moved == {"body.2.weight", "body.2.bias", "head.weight", "head.bias"}
    whole = torch.func.grad(lambda p: task.apply(p, x).square().sum())(task.initial)
    joined = torch.func.grad(lambda p: task.resume(p, "body.1", task.watch(p, x, ["body.1"])["body.1"]).square().sum())
    assert all(torch.equal(g, whole[n]) for n, g in joined(task.initial).items())


def test_both_run_for_many_clients_at_once() -> None:
    task = task_of({"name": "mlp", "hidden": [16, 8]})
    x = torch.rand(4, 3, 8)
    each = torch.stack([task.apply(task.initial, one) for one in x])
    h = torch.func.vmap(lambda one: task.watch(task.initial, one, ["body"])["body"])(x)
    torch.testing.assert_close(torch.func.vmap(lambda one: task.resume(task.initial, "body", one))(h), each)


def test_a_branch_beside_a_skip_is_no_cut() -> None:
    """From its answer alone the logits do not follow, so that to go on from there would be another network."""
    task = task_of({"name": f"{NETS}:skips"})
    assert "block.inner" not in task.cuts and "block.inner" in dict(task.module().named_modules())


def test_a_layer_that_there_is_not_is_named() -> None:
    task = task_of({"name": "mlp", "hidden": [16, 8]})
    with pytest.raises(ConfigError, match=r"no layer 'body.l'.*there are: body, body.0"):
        task.watch(task.initial, torch.zeros(1, 8), ["body.l"])


def test_a_network_that_writes_buffers_does_not_go_on_within_a_training_step() -> None:
    task = task_of({"name": f"{toy.__file__.replace('toy.py', 'own_nets.py')}:batchnorm"})
    x = torch.rand(3, 8)
    h = task.watch(task.initial, x, ["2"])["2"]
    with (
        task.training({"x": x, "w": torch.ones(3)}, torch.tensor(1)),
        pytest.raises(FailsAgain, match="writes buffers"),
    ):
        task.resume(task.initial, "2", h)
