"""Augmentations of training images (`local.augment`): one file per kind; the folder is the registry.

    local: {augment: [flip, {kind: crop, padding: 2}, {kind: mixup, alpha: 0.2}]}

An augmentation is written for one image, and is a pure function of the image and a key of its client, step and row. So `loop` and
`vmap` see the same images, a resumed run sees those of an uninterrupted one, and every forward pass of a step sees the same view.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import keys
from rayfed.config.parts import Registry
from rayfed.config.schema import Section
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.method import Method

PURPOSE = 0x61756773  # apart from what else is drawn from a step's key


class AugmentSettings(Section):
    """Settings of one kind of augmentation: frozen and strict."""


class Augmentation:
    """Base of an augmentation.

    Class attribute:
        moves: whether it moves pixels, so that masks and boxes would not fit any more.
        mixes: whether it mixes the rows of a batch and their targets, in the loss of the task (`pairs`), in place of changing images.
    """

    Settings: ClassVar[type[AugmentSettings]] = AugmentSettings
    mixes: ClassVar[bool] = False
    moves: ClassVar[bool] = False

    def __init__(self, settings: Any):
        self.settings = settings

    def image(self, x: Tensor, key: Tensor) -> Tensor:
        """Return another view (C, H, W) of an image (C, H, W); key: 0-d int64, of this image in this step."""
        raise TypeError(f"{type(self).__name__} does not say what it does to an image")

    def pairs(self, key: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return (the row that each is mixed with (B,), the share of a row's own, 0-d); w: (B,) 1 or 0 on padding, which comes last."""
        raise TypeError(f"{type(self).__name__} does not say how it mixes")


REGISTRY: Registry[Augmentation] = Registry(__name__, __path__, Augmentation)


def of(config: Config) -> tuple[list[Augmentation], Any]:
    """Return (what changes images, in its order; what mixes them, or None) of a config whose settings are valid."""
    made = [REGISTRY.make(chosen) for chosen in config.local.augment]
    return [a for a in made if not a.mixes], next((a for a in made if a.mixes), None)


def views(augmentations: Sequence[Augmentation], x: Tensor, key: Tensor) -> Tensor:
    """Return images (B, C, H, W) as a training step sees them; key: the step's, 0-d."""
    key, rows = keys.fold(key, PURPOSE), torch.arange(len(x), device=x.device)
    for number, augmentation in enumerate(augmentations):
        x = torch.vmap(augmentation.image)(x, keys.fold(keys.fold(key, number), rows))
    return x


def alike(augmentations: Sequence[Augmentation], x: Tensor, key: Tensor) -> Tensor:
    """Return images (B, C, H, W) that were all changed in the same way, by one draw; key: 0-d."""
    key = keys.fold(key, PURPOSE)
    for number, augmentation in enumerate(augmentations):
        x = torch.vmap(augmentation.image, in_dims=(0, None))(x, keys.fold(key, number))
    return x


def problems(config: Config, method: type[Method] | None) -> list[str]:
    """Return what is wrong with `local.augment`: kinds, settings, the order, and a method whose loss cannot be mixed."""
    found, chosen = [], config.local.augment
    for i, one in enumerate(chosen):
        found += REGISTRY.problems(one, f"local.augment.{i}")
    if found:
        return found
    mixing = [i for i, one in enumerate(chosen) if REGISTRY.get(one.kind).mixes]
    if mixing and mixing != [len(chosen) - 1]:
        found.append(
            f"local.augment.{mixing[0]}.kind: {chosen[mixing[0]].kind} found, which mixes what others have made; allowed: once, the last"
        )
    if mixing and config.local.privacy is not None:
        found.append(
            f"local.augment.{mixing[0]}.kind: {chosen[mixing[0]].kind} found, allowed with local.privacy: kinds for one image, since "
            "each example's gradient is clipped by itself"
        )
    if mixing and method is not None and _own_loss(method):
        found.append(
            f"local.augment.{mixing[0]}.kind: {chosen[mixing[0]].kind} found, but {config.method.name} has a loss of its own, which knows "
            "one label a row; allowed: those that change one image"
        )
    return found


def _own_loss(method: type[Method]) -> bool:
    """Return whether clients of a method train by something else than `task.loss`: its file has training forward passes of its own."""
    for cls in method.__mro__:
        try:
            if cls is not object and ".training(" in inspect.getsource(cls):
                return True
        except (OSError, TypeError):  # built in, or without its text
            continue
    return False


def moving(config: Config, what: str, *, turned: bool = False) -> list[str]:
    """Return why pixels cannot be moved where a task learns what belongs to places; what: that is, in words; turned: whether it may be
    of pictures that a group's rotation has turned for good."""
    groups = config.federation.groups
    if groups.kind == "rotation" and groups.count > 1 and not turned:
        return [
            f"federation.groups.kind: rotation found, which turns pictures, and {what} would stay where they are; allowed: none, classes, "
            "domain"
        ]
    still = ", ".join(n for n in REGISTRY.names() if not REGISTRY.get(n).moves and not REGISTRY.get(n).mixes)
    return [
        f"local.augment.{i}.kind: {one.kind} found, which moves pixels, and {what} would stay where they are; allowed: {still}"
        for i, one in enumerate(config.local.augment)
        if REGISTRY.get(one.kind).moves
    ]


def fits(config: Config, kind: str, classes: bool, shape: Sequence[int]) -> list[str]:
    """Return why data cannot be augmented as asked. kind: of the data; classes: whether the task's loss is cross-entropy of one class
    a row; shape: of a row; (C, H, W) of an image."""
    out = []
    for i, one in enumerate(config.local.augment):
        where, cls = f"local.augment.{i}", REGISTRY.get(one.kind)
        if kind != "image":
            return [f"local.augment: {one.kind} found, {config.task.data.name} holds no images ({kind}); allowed: []"]
        if cls.mixes and not classes:
            out.append(f"{where}.kind: {one.kind} found, which mixes classes; allowed with task.kind: classify")
        if one.options.get("saturation") and shape[0] != 3:
            out.append(
                f"{where}.saturation: {one.options['saturation']} found, the images have {shape[0]} channels; allowed: 0, or images of 3"
            )
    return out
