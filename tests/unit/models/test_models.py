"""The networks: sizes by hand, gradients under `vmap`, what they refuse."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from rayfed import models
from rayfed.config.schema import Named
from rayfed.errors import ConfigError
from tests.unit.models.networks import IMAGE, inputs

SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"hidden": [7, 5]},
    "cnn": {},
    "resnet": {"width": 6, "blocks": 2},
    "vit-tiny": {"patch": 4, "dim": 12, "depth": 2, "heads": 3},
}


def spec(name: str, /, **options: Any) -> Named:
    return Named.model_validate({"name": name, **options})


def build(name: str, classes: int = 10, shape: tuple[int, ...] = IMAGE, seed: int = 0, /, **options: Any) -> nn.Module:
    """A model in float64 from its own seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.build(spec(name, **options), classes, shape).double()


def size(m: nn.Module) -> int:
    return sum(p.numel() for p in m.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "by_hand"),
    [
        ("cnn", (1, 28, 28), 10, {}, 1_663_370),
        ("cnn", (3, 32, 32), 7, {}, (75 * 32 + 32) + (800 * 64 + 64) + (4096 * 512 + 512) + (512 * 7 + 7)),
        ("linear", (1, 28, 28), 10, {}, 784 * 10 + 10),
        ("linear", (3, 4, 5), 2, {}, 60 * 2 + 2),
        ("linear", (13,), 2, {}, 13 * 2 + 2),
        ("mlp", IMAGE, 10, {}, (64 * 128 + 128) + (128 * 10 + 10)),
        ("mlp", (8,), 4, {"hidden": [16]}, 212),
        ("mlp", (8,), 3, {"hidden": [7, 5]}, (8 * 7 + 7) + (7 * 5 + 5) + (5 * 3 + 3)),
        # stem and norm, three stages of (two convolutions, two norms, a skip where the width changes), head
        ("resnet", IMAGE, 10, {}, 176 + (4608 + 64) + (13824 + 128 + 512) + (55296 + 256 + 2048) + 650),
        ("resnet", (3, 8, 8), 4, {"width": 4}, 116 + (288 + 16) + (864 + 32 + 32) + (3456 + 64 + 128) + 68),
        # patches, positions, two blocks (two norms; qkv, out, up, down), norm, head
        ("vit-tiny", IMAGE, 10, {}, 1088 + 256 + 2 * (256 + 12480 + 4160 + 16640 + 16448) + 128 + 650),
        ("vit-tiny", (3, 8, 4), 2, {"patch": 2, "dim": 4, "depth": 1, "heads": 2}, 52 + 32 + 16 + 60 + 20 + 80 + 68 + 8 + 10),
    ],
)  # fmt: skip
def test_numbers_of_parameters_by_hand(
    name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any], by_hand: int
) -> None:
    m = build(name, classes, shape, **options)
    assert size(m) == by_hand
    assert m(inputs(3, shape)).shape == (3, classes)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (2, 9, 6)])
def test_the_cnn_takes_images_that_do_not_divide_by_four(shape: tuple[int, ...]) -> None:
    assert build("cnn", 3, shape)(inputs(2, shape)).shape == (2, 3)


@pytest.mark.parametrize("width", [1, 3, 5, 7, 12])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 3)])
def test_resnet_has_groups_of_channels_for_every_width(width: int, shape: tuple[int, ...]) -> None:
    m = build("resnet", 4, shape, width=width)
    norms = [n for n in m.modules() if isinstance(n, nn.GroupNorm)]
    assert len(norms) == 7
    assert all(n.num_groups == math.gcd(8, n.num_channels) for n in norms)
    out = m(inputs(2, shape))
    assert out.shape == (2, 4) and out.isfinite().all()


def test_resnet_halves_the_image_twice_and_repeats_blocks() -> None:
    m = build("resnet", 4, width=4, blocks=3)
    x = m.stem(inputs(2))
    sizes = [tuple((x := block(x)).shape[1:]) for block in m.stages]
    assert sizes == [(4, 8, 8)] * 3 + [(8, 4, 4)] * 3 + [(16, 2, 2)] * 3


def by_one(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Each example's gradients, one plain backward pass after the other."""
    out = []
    for xi, yi in zip(x, y):
        loss = nn.functional.cross_entropy(m(xi[None]), yi[None])
        out.append(dict(zip(dict(m.named_parameters()), torch.autograd.grad(loss, list(m.parameters())))))
    return out


@pytest.mark.parametrize("name", SMALL)
def test_per_sample_gradients_of_stacked_models_equal_a_loop(name: str) -> None:
    k, b = 3, 2
    nets = [build(name, 4, IMAGE, s, **SMALL[name]) for s in range(k)]
    x, y = inputs(k * b).reshape(k, b, *IMAGE), torch.arange(k * b).reshape(k, b) % 4
    stacked = {
        n: torch.stack([dict(m.named_parameters())[n].detach() for m in nets]) for n in dict(nets[0].named_parameters())
    }
    base = build(name, 4, IMAGE, 99, **SMALL[name])

    def loss(p: dict[str, torch.Tensor], xi: torch.Tensor, yi: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(base, p, (xi[None],)), yi[None])

    got = vmap(vmap(grad(loss), (None, 0, 0)), (0, 0, 0))(stacked, x, y)
    for i in range(k):
        for j, want in enumerate(by_one(nets[i], x[i], y[i])):
            for n, g in want.items():
                torch.testing.assert_close(got[n][i, j], g, rtol=1e-10, atol=1e-10)
    assert all(g.abs().max() > 0 for g in got.values())  # every parameter takes part


@pytest.mark.parametrize("name", SMALL)
def test_an_example_does_not_see_its_batch_nor_whether_it_trains(name: str) -> None:
    m, x = build(name, 4, **SMALL[name]), inputs(5)
    kept = x.clone()
    with torch.no_grad():
        together = m.train()(x)
        alone = torch.cat([m.eval()(x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, kept)
    assert together.std(0).min() > 1e-4  # not a constant


@pytest.mark.parametrize("name", SMALL)
def test_all_state_is_parameters_and_the_classifier_comes_last(name: str) -> None:
    m = build(name, 4, **SMALL[name])
    assert list(m.buffers()) == []
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    assert not any(isinstance(c, kinds) for c in m.modules())
    named = dict(m.named_parameters())
    assert list(named)[-2:] == ["head.weight", "head.bias"]
    assert named["head.weight"].shape[0] == 4 and list(m.state_dict()) == list(named)
    assert [n for n, _ in m.named_children()][-1] == "head"


def test_linear_and_mlp_equal_numpy() -> None:
    x = inputs(6)
    flat = x.reshape(6, 64).numpy()

    def layer(m: nn.Module, v: np.ndarray) -> np.ndarray:
        return v @ m.weight.detach().numpy().T + m.bias.detach().numpy()

    linear, mlp = build("linear", 3), build("mlp", 3, hidden=[9, 4])
    assert linear(x).detach().numpy() == pytest.approx(layer(linear.head, flat), abs=1e-12)
    hidden = np.maximum(layer(mlp.body[0], flat), 0)
    hidden = np.maximum(layer(mlp.body[2], hidden), 0)
    assert mlp(x).detach().numpy() == pytest.approx(layer(mlp.head, hidden), abs=1e-12)


def test_the_transformer_equals_torchs_own_layers() -> None:
    m = build("vit-tiny", 5, (3, 8, 4), patch=2, dim=12, depth=2, heads=3)
    x = inputs(4, (3, 8, 4))
    patches = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)  # (channel, row, column) of each patch, row by row
    v = patches @ m.embed.weight.T + m.embed.bias + m.position
    for block in m.blocks:
        twin = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True).double()
        twin.load_state_dict({
            "self_attn.in_proj_weight": block.qkv.weight, "self_attn.in_proj_bias": block.qkv.bias,
            "self_attn.out_proj.weight": block.out.weight, "self_attn.out_proj.bias": block.out.bias,
            "linear1.weight": block.up.weight, "linear1.bias": block.up.bias,
            "linear2.weight": block.down.weight, "linear2.bias": block.down.bias,
            "norm1.weight": block.norm1.weight, "norm1.bias": block.norm1.bias,
            "norm2.weight": block.norm2.weight, "norm2.bias": block.norm2.bias,
        })  # fmt: skip
        v = twin.train()(v)
    torch.testing.assert_close(m(x), m.head(m.norm(v).mean(1)), rtol=1e-10, atol=1e-10)


def test_the_cnn_is_two_convolutions_with_pooling_and_two_layers() -> None:
    m = build("cnn", 3, (2, 6, 9))
    same = nn.Sequential(
        nn.Conv2d(2, 32, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding="same"), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 1 * 2, 512), nn.ReLU(), nn.Linear(512, 3),
    ).double()  # fmt: skip
    same.load_state_dict(dict(zip(same.state_dict(), m.state_dict().values())))
    x = inputs(3, (2, 6, 9))
    torch.testing.assert_close(m(x), same(x), rtol=1e-12, atol=1e-12)


def test_the_cnns_gradients_are_those_of_pooling_after_relu_ties_included() -> None:
    """Bit for bit, on images whose empty parts give equal numbers side by side, above zero and below."""

    class AsPublished(type(build("cnn", 3, (1, 12, 12)))):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
            x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
            return self.head(torch.relu(self.fc(x.flatten(1))))

    ours, published = build("cnn", 3, (1, 12, 12)).float(), AsPublished(3, 1, 12, 12).float()
    published.load_state_dict(ours.state_dict())
    x = torch.zeros(4, 1, 12, 12)
    x[:2, :, 3:8, 4:9] = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    for m in (ours, published):
        (m(x) ** 2).sum().backward()
    for (n, p), q in zip(ours.named_parameters(), published.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad) and bool(p.grad.any()), n


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("lineer", {}, "task.model: 'lineer' is unknown (did you mean 'linear'?); known: linear, mlp, cnn,"),
        ("vit", {}, "(did you mean 'vit-tiny'?)"),
        ("hf:no/such", {}, "task.model: 'hf:no/such' is no folder here, and not in the hub's cache"),
        ("mlp", {"hiden": [3]}, "task.model.hiden: unknown option of mlp (did you mean 'hidden'?); known: hidden"),
        ("linear", {"width": 3}, "task.model.width: unknown option of linear; known: none"),
        ("mlp", {"hidden": 64}, "task.model.hidden: 64 found, allowed: a list of widths >= 1"),
        ("mlp", {"hidden": []}, "task.model.hidden: [] found, allowed: a list of widths >= 1"),
        ("mlp", {"hidden": [64, 0]}, "task.model.hidden: [64, 0] found"),
        ("resnet", {"width": 0}, "task.model.width: 0 found, allowed: a whole number >= 1"),
        ("resnet", {"blocks": True}, "task.model.blocks: True found, allowed: a whole number >= 1"),
        ("vit-tiny", {"depth": 1.5}, "task.model.depth: 1.5 found, allowed: a whole number >= 1"),
        ("vit-tiny", {"heads": 3}, "task.model.dim: 64 found, allowed: a multiple of heads (3)"),
    ],
)
def test_check_names_what_is_wrong(
    name: str, options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for a hub
    (problem,) = models.check(spec(name, **options))
    assert says in problem
    with pytest.raises(ConfigError) as e:
        models.build(spec(name, **options), 10, IMAGE)
    assert problem in e.value.problems


def test_all_problems_are_reported_together() -> None:
    assert len(models.check(spec("vit-tiny", dim=0, heads="two", size=3))) == 3


@pytest.mark.parametrize("name", models.KNOWN)
def test_the_known_models_are_fine_as_they_are(name: str) -> None:
    assert models.check(spec(name)) == [] == models.fits(spec(name), (1, 28, 28))
    assert name in dict(models.names())


@pytest.mark.parametrize(
    ("name", "options", "shape", "says"),
    [
        ("cnn", {}, (13,), "task.model: cnn needs images, task.data has examples of shape (13); allowed: linear, mlp"),
        ("resnet", {}, (4, 5), "examples of shape (4x5)"),
        ("vit-tiny", {}, (16,), "vit-tiny needs images"),
        ("cnn", {}, (1, 3, 28), "needs images of at least 4x4, those of task.data are 3x28"),
        ("vit-tiny", {}, (1, 6, 9), "task.model.patch: 4 does not divide images of 6x9; allowed: 1, 3"),
        ("vit-tiny", {"patch": 16}, IMAGE, "task.model.patch: 16 does not divide images of 8x8; allowed: 1, 2, 4, 8"),
    ],
)
def test_fits_says_which_examples_a_model_cannot_take(
    name: str, options: dict[str, Any], shape: tuple[int, ...], says: str
) -> None:
    (problem,) = models.fits(spec(name, **options), shape)
    assert says in problem
    with pytest.raises(ConfigError, match=r"task\.model"):
        models.build(spec(name, **options), 10, shape)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("linear", {}, (13,)), ("mlp", {}, (13,)), ("cnn", {}, (1, 4, 4)), ("resnet", {}, (1, 1, 1)),
        ("vit-tiny", {"patch": 3}, (1, 6, 9)), ("vit-tiny", {"patch": 8}, IMAGE),
    ],
)  # fmt: skip
def test_what_fits_can_be_built_and_run(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert models.fits(spec(name, **options), shape) == []
    assert build(name, 2, shape, **options)(inputs(2, shape)).isfinite().all()


def test_checking_does_not_load_torch() -> None:
    code = (
        "import sys\nfrom rayfed import models, partition\nfrom rayfed.config.schema import Named\n"
        "s = Named(name='cnn')\nassert models.check(s) == [] and models.fits(s, (3,))\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_a_users_model_raises_is_a_sentence(own_network: Any) -> None:
    with pytest.raises(ConfigError, match=r"task\.model: .*mine\.py:raises raised ZeroDivisionError: no width"):
        build(own_network("raises"), 3, (2,))


def test_a_users_model_gets_classes_shape_and_options(own_network: Any) -> None:
    name = own_network("net")
    assert models.check(spec(name, width=6)) == []
    m = build(name, 3, (2, 2, 2), width=6)
    assert size(m) == (8 * 6 + 6) + (6 * 3 + 3) and m(inputs(5, (2, 2, 2))).shape == (5, 3)
    assert models.fits(spec(name), (1,)) == []
    assert models.check(spec(name, widht=6)) == [
        f"task.model.widht: unknown option of {name} (did you mean 'width'?); known: width"
    ]
    assert "has no function 'nett' (did you mean 'net'?)" in models.check(spec(own_network("nett")))[0]


def test_a_users_model_is_checked_without_being_run(own_network: Any) -> None:
    name = own_network("net", "raise OSError('no')\ndef net(classes, input_shape): pass\n")
    assert models.check(spec(name)) == []
    with pytest.raises(ConfigError, match="cannot be imported: OSError: no"):
        models.build(spec(name), 2, (3,))
    name = own_network("net", "def net(classes): pass\n")
    assert models.check(spec(name)) == [
        f"task.model: {name} takes 1 arguments, it is called with 2 and the options"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "says"), [("bare", "returned function, needed: torch.nn.Module"), ("broken", "has no function 'broken'")]
)  # fmt: skip
def test_what_is_no_module_is_refused(own_network: Any, function: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        models.build(spec(own_network(function)), 2, (3,))


def test_what_takes_long_to_import_is_named_beforehand() -> None:
    """Actors begin with it; whatever it names must exist."""
    for name, modules in (("mlp", ()), ("hf:somewhere", ("peft",))):
        assert models.imports(spec(name)) == modules
        assert all(importlib.util.find_spec(m) for m in modules)
