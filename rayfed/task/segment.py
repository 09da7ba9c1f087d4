"""Segmentation: the region of every pixel; Dice, intersection over union, and the distance of the regions' edges."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import augment
from rayfed.lazy import torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree

VOID = 255  # of a mask's pixel that nobody knows, as in Pascal VOC


class Segment(TaskKind):
    """Learn masks: `apply(params, x)` gives logits (B, K + 1, H, W) of the background and K regions.

    Batches have images x and column `masks` (B, H, W), whole numbers: 0 background, 1 to K the regions in the order of `regions`, 255 a
    pixel that is not known, which counts nowhere. With `nested`, region k is where the mask is at least k (WT, TC and ET of brain
    tumours). loss: of an image the mean over its pixels of cross-entropy, 1 - soft Dice (mean over regions, 1 added above and below),
    or their sum. dice, iou: of an image the mean over regions, 1 where a region is neither there nor predicted. hd95: of both masks'
    edges the 95th percentile of the distance to the other's edge, the larger one of both directions, in pixels (SciPy's distance
    transform); 0 where a region is in neither mask, the image's diagonal where it is in one.
    """

    class Settings(TaskSettings):
        regions: list[str] = Field(["object"], min_length=1, description="Names of the masks' values 1, 2, ...")
        nested: bool = Field(False, description="Whether a pixel of region k belongs to all regions before it, too.")
        loss: Literal["both", "cross_entropy", "dice"] = Field("both", description="What is trained.")
        distance: Literal["hd95", "hd", "none"] = Field(
            "hd95", description="Distance of edges: 95th percentile, largest, or not worked out."
        )

    reads: ClassVar[tuple[str, ...]] = ("classes",)
    columns: ClassVar[tuple[str, ...]] = ("masks",)
    offers: ClassVar[frozenset[str]] = frozenset({"masks"})
    models: ClassVar[tuple[str, ...]] = ("unet",)
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(unit="-", text="cross-entropy of pixels and 1 - soft Dice, as `task.kind.loss` says"),
        Measure("dice", "higher", "fraction", "Dice coefficient, mean over regions"),
        Measure("iou", "higher", "fraction", "intersection over union, mean over regions"),
    )

    @classmethod
    def measured(cls, settings: Any) -> tuple[Measure, ...]:
        """Return loss, dice, iou, of several regions the Dice of each, and the distance."""
        found = [*cls.measures]
        if len(settings.regions) > 1:
            found += [
                Measure(f"dice-{word(r)}", "higher", "fraction", f"Dice coefficient of {r}") for r in settings.regions
            ]
        if settings.distance != "none":
            what = "largest distance" if settings.distance == "hd" else "95th percentile of the distance"
            found.append(
                Measure(settings.distance, "lower", "pixels", f"{what} of edges, mean over regions and images", "set")
            )
        return tuple(found)

    @classmethod
    def outputs(cls, settings: Any, federation: Federation) -> int:
        """Return K + 1."""
        return len(settings.regions) + 1

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why these masks cannot be learned: their size, or a value that is no region; the first row of it."""
        if wrong := augment.moving(config, "masks"):
            return wrong
        names = cls.Settings(**config.task.kind.options).regions
        twice = sorted({r for r in names if [word(n) for n in names].count(word(r)) > 1})
        if twice:
            return [f"task.kind.regions: {twice[0]!r} found twice; allowed: a name for each"]
        masks, shape = federation.arrays["masks"], tuple(federation.input_shape)
        if len(shape) != 3 or masks.shape[1:] != shape[1:]:
            return [
                f"task.data: column 'masks' has masks of shape {masks.shape[1:]}, its images are {shape}; allowed: one value a pixel, "
                f"{shape[1:] if len(shape) == 3 else '(H, W)'}"
            ]
        known, k = masks[masks != VOID], len(names)
        if known.size and (known.min() < 0 or known.max() > k):
            wrong_at = (masks < 0) | ((masks > k) & (masks != VOID))
            row = int(np.argmax(wrong_at.any((1, 2))))
            return [
                f"task.data: the mask of row {row} holds {int(masks[row][wrong_at[row]].max())}, task.kind.regions names {k}; "
                f"allowed: 0 to {k}, and {VOID} for what is not known"
            ]
        return []

    def answer_shape(self, rows: int) -> tuple[tuple[int | None, str], ...]:
        """Return (rows, K + 1, H, W)."""
        h, w = self.input_shape[1:]
        return (rows, "rows"), (self.classes, "background and regions"), (h, "height"), (w, "width")

    def inside(self, p: Tensor) -> Tensor:
        """Return the probability of each region (B, K, H, W), of those of mask values (B, K + 1, H, W)."""
        regions = p[:, 1:]
        return regions.flip(1).cumsum(1).flip(1) if self.settings.nested else regions

    def members(self, values: Tensor) -> Tensor:
        """Return which pixels belong to each region, (B, K, H, W), of mask values (B, H, W)."""
        number = torch.arange(1, self.classes, device=values.device)[:, None, None]
        at = values[:, None]
        return at >= number if self.settings.nested else at == number

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the loss of each image, (B,)."""
        with self.training(batch, key):
            logits = self.apply(params, batch["x"])
        return self._loss(torch.log_softmax(logits, 1), batch["masks"].long())

    def _loss(self, logp: Tensor, masks: Tensor) -> Tensor:
        known = (masks != VOID).to(logp.dtype)
        values, found = torch.where(masks != VOID, masks, 0), logp.new_zeros(len(logp))
        if self.settings.loss != "dice":
            nll = -logp.gather(1, values[:, None])[:, 0]
            found = found + (nll * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
        if self.settings.loss != "cross_entropy":
            p, true = self.inside(logp.exp()) * known[:, None], self.members(values).to(logp.dtype) * known[:, None]
            both, each = (p * true).sum((2, 3)), (p + true).sum((2, 3))
            found = found + 1 - ((2 * both + 1) / (each + 1)).mean(1)
        return found

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return the probability of each value of each pixel, (B, K + 1, H, W)."""
        return torch.softmax(self.apply(params, batch["x"]), 1)

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return loss, dice, iou and each region's Dice of each image, (B,), of probabilities (B, K + 1, H, W)."""
        masks = batch["masks"].long()
        known = (masks != VOID)[:, None]
        true = self.members(torch.where(masks != VOID, masks, 0)) & known
        found = self.members(p.argmax(1)) & known
        both, each = (true & found).sum((2, 3)), true.sum((2, 3)) + found.sum((2, 3))
        dice = torch.where(each > 0, 2 * both / each.clamp(min=1), 1.0).to(p.dtype)
        iou = torch.where(each > 0, both / (each - both).clamp(min=1), 1.0).to(p.dtype)
        out = {"loss": self._loss(torch.log(p.clamp(min=1e-12)), masks), "dice": dice.mean(1), "iou": iou.mean(1)}
        if len(self.settings.regions) > 1:
            out |= {f"dice-{word(r)}": dice[:, k] for k, r in enumerate(self.settings.regions)}
        return out

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return `metrics`, and `prediction` (B, H, W), the most probable value of each pixel."""
        p = self.predict(params, batch)
        return {**self.judge_mean(p, batch), "prediction": p.argmax(1).to(p.dtype)}

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return the distance of a set of images, the mean over images and regions."""
        s = self.settings
        if s.distance == "none":
            return {}
        found, values = np.asarray(rows["prediction"]), np.asarray(batch["masks"])
        number = np.arange(1, self.classes)[:, None, None, None]
        known = values != VOID
        a, b = (((v >= number) if s.nested else (v == number)) & known for v in (found, values))
        of = [
            edge_distance(x, y, 100.0 if s.distance == "hd" else 95.0)
            for ra, rb in zip(a, b, strict=True)
            for x, y in zip(ra, rb, strict=True)
        ]
        return {s.distance: float(np.mean(of)) if of else math.nan}


def edge_distance(a: np.ndarray, b: np.ndarray, percentile: float) -> float:
    """Return the distance of two regions' edges (masks (H, W), bool) in pixels: of each edge's distances to the other one the percentile,
    and of both directions the larger one; 0 where both are empty, the image's diagonal where one is."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not (a.any() and b.any()):
        return 0.0 if a.any() == b.any() else math.hypot(*a.shape)
    edges = [m & ~binary_erosion(m) for m in (a, b)]
    far = [distance_transform_edt(~e) for e in edges]
    return float(max(np.percentile(far[1][edges[0]], percentile), np.percentile(far[0][edges[1]], percentile)))


def word(name: str) -> str:
    """Return a region's name as a part of a metric's."""
    return re.sub(r"[^\w.+-]+", "_", name)
