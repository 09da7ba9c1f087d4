"""Augmentations: what they do to an image, whose key decides, and that executors and resumed runs see the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rayfed import augment, keys, tree
from rayfed.augment import Augmentation
from rayfed.config.schema import Kind
from tests import toy
from tests.configs import refusal

IMAGES: dict[str, Any] = {
    "task": {"data": {"name": "synthetic:images", "examples": 320, "classes": 4, "size": 6, "test": 60}},
    "federation": {"groups": {"kind": "none"}},
}
ALL = [
    "flip",
    {"kind": "crop", "padding": 1},
    {"kind": "erase", "chance": 0.7},
    "colour",
    {"kind": "mixup", "alpha": 1.0},
]


def made(kind: str, **options: Any) -> Augmentation:
    return augment.REGISTRY.make(Kind.model_validate({"kind": kind, **options}))


def views(kind: str, x: torch.Tensor, key: int = 7, **options: Any) -> torch.Tensor:
    return augment.views([made(kind, **options)], x, torch.tensor(key))


@pytest.fixture
def x() -> torch.Tensor:
    return keys.uniform(torch.tensor(1), (200, 3, 5, 6)) + 0.5


def test_flips_mirror_whole_images_by_their_chance(x: torch.Tensor) -> None:
    assert torch.equal(views("flip", x, chance=1), x.flip(-1)) and torch.equal(views("flip", x, chance=0), x)
    assert torch.equal(views("flip", x, chance=1, axis="vertical"), x.flip(-2))
    turned = (views("flip", x, chance=0.25) == x.flip(-1)).flatten(1).all(1)
    assert 25 <= int(turned.sum()) <= 75  # 50 expected, deviation 6


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect"), ("edge", "edge")])
def test_crops_are_windows_of_the_padded_image(x: torch.Tensor, fill: str, mode: Any) -> None:
    got = views("crop", x, padding=2, fill=fill).numpy()
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode)
    found = set()
    for view, image in zip(got, wide, strict=True):
        at = [(i, j) for i in range(5) for j in range(5) if np.array_equal(view, image[:, i : i + 5, j : j + 6])]
        assert at
        found |= {*at}
    assert found == {(i, j) for i in range(5) for j in range(5)}  # every shift, and no other


def test_erased_pixels_are_a_rectangle_of_the_asked_area() -> None:
    x = torch.ones(300, 2, 20, 20)
    gone = views("erase", x, chance=0.5, area=(0.1, 0.2), ratio=(0.5, 2.0), value=-3.0) == -3
    assert torch.equal(gone[:, 0], gone[:, 1])
    shares = []
    for image in gone[:, 0].numpy():
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.sum() == len(rows) * len(columns)
        shares += [image.mean()] if image.any() else []
    assert 115 <= len(shares) <= 185  # 150 expected, deviation 9
    assert min(shares) > 0.07 and max(shares) < 0.24 and abs(np.mean(shares) - 0.15) < 0.01  # sides are rounded
    assert "both above 0" in "".join(
        augment.REGISTRY.problems(Kind.model_validate({"kind": "erase", "area": [0.5, 0.1]}), "local.augment.0")
    )


def test_colours_by_hand(x: torch.Tensor) -> None:
    factor = views("colour", x, brightness=0.3, contrast=0, saturation=0) / x
    assert torch.allclose(factor, factor[:, :1, :1, :1].expand_as(x), atol=1e-6)
    assert 0.7 <= factor.min() < 0.75 and 1.25 < factor.max() <= 1.3
    grey = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    got = views("colour", x, brightness=0, contrast=0.4, saturation=0)
    mean = grey.mean((1, 2, 3), keepdim=True)
    factor = (got - mean) / (x - mean)
    assert (
        factor.flatten(1).amax(1) - factor.flatten(1).amin(1) < 0.05
    ).all() and 0.59 < factor.min() < factor.max() < 1.41
    got = views("colour", x, brightness=0, contrast=0, saturation=1.0)
    assert torch.allclose(
        (got * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True), grey, atol=1e-4
    )


def test_a_view_depends_on_its_key_and_row_alone(x: torch.Tensor) -> None:
    several = [made("crop", padding=1), made("flip"), made("colour")]
    whole = augment.views(several, x, torch.tensor(3))
    assert torch.equal(whole[:7], augment.views(several, x[:7], torch.tensor(3)))
    assert not torch.equal(whole, augment.views(several, x, torch.tensor(4)))
    same = augment.views([made("flip")], x[:1].expand_as(x), torch.tensor(3))
    assert not torch.equal(same, same[:1].expand_as(same))  # rows of one step differ


def test_mixup_pairs_real_rows_with_others_by_a_beta_share() -> None:
    mixing = made("mixup", alpha=0.4)
    shares, partners = [], []
    for key in range(2000):
        partner, share = mixing.pairs(torch.tensor(keys.key(0, key, 0, "test")), torch.tensor([1.0] * 5 + [0.0] * 3))
        assert partner[5:].tolist() == [5, 6, 7] and {*partner[:5].tolist()} == {0, 1, 2, 3, 4}
        partners.append(int(partner[0]))
        shares.append(float(share))
    assert {*partners} == {1, 2, 3, 4} and min(np.bincount(partners)[1:]) > 400  # 500 expected
    assert abs(np.mean(shares) - 0.5) < 0.03 and abs(np.var(shares) - 1 / (4 * (2 * 0.4 + 1))) < 0.01
    alone, _ = mixing.pairs(torch.tensor(1), torch.tensor([1.0, 0.0]))
    assert alone.tolist() == [0, 1]


def test_the_mixed_loss_by_hand() -> None:
    c = toy.config(**toy.merge(IMAGES, {"local": {"augment": [{"kind": "mixup", "alpha": 1.0}]}}))
    task = toy.make_fed(c).task
    x = keys.uniform(torch.tensor(5), (4, *task.input_shape))
    batch = {"x": x, "y": torch.tensor([0, 1, 2, 3]), "w": torch.tensor([1.0, 1.0, 1.0, 0.0])}
    key = torch.tensor(11)
    partner, share = made("mixup", alpha=1.0).pairs(key, batch["w"])
    logp = torch.log_softmax(task.apply(task.initial, share * x + (1 - share) * x[partner]), -1)
    own, other = (F.nll_loss(logp, y, reduction="none") for y in (batch["y"], batch["y"][partner]))
    assert torch.allclose(task.loss(task.initial, batch, key), share * own + (1 - share) * other)
    assert torch.equal(
        task.loss(task.initial, batch), F.cross_entropy(task.apply(task.initial, x), batch["y"], reduction="none")
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loop_and_vmap_train_on_the_same_images(dtype: str) -> None:
    change = toy.merge(IMAGES, {"local": {"augment": ALL}})
    states = [toy.simulate("fedavg", executor=e, dtype=dtype, rounds=3, **change).state for e in ("loop", "vmap")]
    (apart,) = {float(tree.norm(tree.sub(*states)))}
    assert apart < (1e-9 if dtype == "float64" else 1e-4) * float(tree.norm(states[0]))
    plain = toy.simulate("fedavg", dtype=dtype, rounds=3, **IMAGES).state
    assert float(tree.norm(tree.sub(plain, states[0]))) > 1e-3


def test_a_resumed_run_sees_the_images_of_an_uninterrupted_one(tmp_path: Path) -> None:
    change = toy.merge(IMAGES, {"local": {"augment": ALL}, "resources": {"cohort": 3}})
    whole = toy.run_folder("fedavg", tmp_path / "whole", executor="vmap", rounds=4, **change)
    toy.run_folder("fedavg", tmp_path / "cut", executor="vmap", rounds=4, stop_after=2, **change)
    cut = toy.run_folder("fedavg", tmp_path / "cut", executor="vmap", rounds=4, resume=True, **change)
    assert cut.rows == whole.rows and all(
        torch.equal(a, b) for (_, a), (_, b) in zip(tree.leaves(cut.state), tree.leaves(whole.state))
    )


@pytest.mark.parametrize(
    ("augmented", "more", "says"),
    [
        (
            ["flap"],
            {},
            "local.augment.0.kind: 'flap' found (did you mean 'flip'?), allowed: colour, crop, erase, flip, mixup",
        ),
        ([{"kind": "flip", "chance": 2}], {}, "local.augment.0.chance: 2"),
        ([{"kind": "flip", "chanse": 1}], {}, "local.augment.0.chanse: unknown key (did you mean 'chance'?)"),
        (
            ["mixup", "flip"],
            {},
            "local.augment.0.kind: mixup found, which mixes what others have made; allowed: once, the last",
        ),
        (["mixup"], {"method": "moon"}, "local.augment.0.kind: mixup found, but moon has a loss of its own"),
        (["mixup"], {"local": {"privacy": {"norm": 1.0, "noise_multiplier": 1.0}}}, "allowed with local.privacy"),
    ],
)
def test_what_cannot_be_is_refused(augmented: list[Any], more: dict[str, Any], says: str) -> None:
    method = more.pop("method", "fedavg")
    assert says in refusal(toy.config, method, **toy.merge(toy.merge(IMAGES, {"local": {"augment": augmented}}), more))


def test_what_does_not_fit_the_data_is_refused() -> None:
    def found(kind: str, classes: bool, channels: int, *chosen: Any) -> str:
        return " ".join(
            augment.fits(
                toy.config(**toy.merge(IMAGES, {"local": {"augment": [*chosen]}})), kind, classes, (channels, 8, 8)
            )
        )

    assert "holds no images (tabular)" in found("tabular", True, 8, "flip")
    assert "which mixes classes; allowed with task.kind: classify" in found("image", False, 1, "mixup")
    grey = {"kind": "colour", "saturation": 0.5}
    assert "the images have 1 channels" in found("image", True, 1, grey) and not found("image", True, 3, grey)
