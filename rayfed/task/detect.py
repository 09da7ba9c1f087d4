"""Detection: boxes and classes of the objects in an image; mean average precision as COCO has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from rayfed import augment
from rayfed.lazy import F, torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree

MOST, LEAST = 100, 0.01  # detections of an image that count, and the score from which one does
OVERLAPS = tuple(np.arange(0.5, 1.0, 0.05).round(2).tolist())  # over which `map` is a mean
RECALLS = np.linspace(0, 1, 101)  # at which precision is read


class Detect(TaskKind):
    """Learn boxes: `apply(params, x)` gives (B, 5 + C, h, w) for a grid of any size: of each cell four numbers of a box, an
    objectness and C classes, all before their sigmoid or softmax.

    Batches have images x and column `boxes` (B, M, 5): class, left, top, right, bottom in pixels; class -1 where there is no further
    object. A cell's box has its centre in the cell, at the sigmoids of the first two numbers, and the sigmoids of the next two
    as its share of the image's width and height. loss: of an image, over its objects (at least 1): of every cell the binary
    cross-entropy of objectness, which has `background` as weight where no object's centre is; and of every object, in the cell of
    its centre, `box` times the absolute error of its four edges in shares of the image, and cross-entropy of its class. Of several
    objects whose centres share a cell the first counts.

    A detection's score is objectness times class; of those of one class that overlap by more than `nms` the best stays. map50:
    average precision at an overlap (intersection over union) of 1/2, mean over classes that there are; map: its mean over
    0.5, 0.55 ... 0.95; both with COCO's 101 recalls and at most 100 detections of an image, over all its classes
    (pycocotools: of each). It is worked out here, in NumPy: torchmetrics needs pycocotools and torchvision
    for it, compiled packages that nothing else here reads (values of so many detections are pycocotools').
    """

    class Settings(TaskSettings):
        box: float = Field(5.0, gt=0, description="Weight of the edges' errors.")
        background: float = Field(0.5, gt=0, description="Weight of objectness in cells without an object.")
        nms: float = Field(0.5, gt=0, le=1, description="Overlap from which the weaker of two detections is left out.")

    reads: ClassVar[tuple[str, ...]] = ("classes",)
    columns: ClassVar[tuple[str, ...]] = ("boxes",)
    offers: ClassVar[frozenset[str]] = frozenset({"boxes"})
    models: ClassVar[tuple[str, ...]] = ("grid",)
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(unit="-", text="objectness, boxes and classes of an image, for each object"),
        Measure("map50", "higher", "fraction", "average precision at an overlap of 1/2, mean over classes", "set"),
        Measure("map", "higher", "fraction", "average precision, mean over classes and overlaps of 0.5 to 0.95", "set"),
    )

    @classmethod
    def outputs(cls, settings: Any, federation: Federation) -> int:
        """Return 5 + C."""
        return 5 + federation.answers

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why these boxes cannot be learned: their shape, or the first one that is outside of its image or of no class."""
        if wrong := augment.moving(config, "boxes"):
            return wrong
        boxes, shape = federation.arrays["boxes"], tuple(federation.input_shape)
        if len(shape) != 3 or boxes.ndim != 3 or boxes.shape[2] != 5:
            return [
                f"task.data: column 'boxes' of shape {boxes.shape[1:]} found, with rows {shape}; allowed: (M, 5), class, left, top, right, "
                "bottom, with images"
            ]
        if (found := wrong_box(boxes, (shape[2], shape[1]), federation.answers)) is None:
            return []
        row, which, why = found
        return [f"task.data: box {which} of row {row} is {boxes[row, which].tolist()}, {why}"]

    def answer_shape(self, rows: int) -> tuple[tuple[int | None, str], ...]:
        """Return (rows, 5 + C, h, w) of any h and w."""
        return (rows, "rows"), (self.classes, "box, objectness and classes"), (None, "h"), (None, "w")

    def cells(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return of what the network answers (B, 5 + C, h, w) each cell's box (B, h w, 4), edges in shares of the image, objectness
        before its sigmoid (B, h w), and log probabilities of classes (B, h w, C)."""
        h, w = out.shape[2:]
        o = out.flatten(2).transpose(1, 2)
        cell = torch.arange(h * w, device=out.device)
        corner = torch.stack([cell % w, cell // w], 1).to(out.dtype)
        centre = (corner + torch.sigmoid(o[..., :2])) / torch.tensor([w, h], dtype=out.dtype, device=out.device)
        half = torch.sigmoid(o[..., 2:4]) / 2
        return torch.cat([centre - half, centre + half], -1), o[..., 4], torch.log_softmax(o[..., 5:], -1)

    def homes(self, boxes: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return which cell answers for which object, 1 or 0 (B, M, h w), and the objects' edges in shares of the image, (B, M, 4)."""
        h, w = grid
        size = torch.tensor([self.input_shape[2], self.input_shape[1]] * 2, dtype=self.dtype, device=boxes.device)
        edges, there = boxes[..., 1:] / size, boxes[..., 0] >= 0
        centre = (edges[..., :2] + edges[..., 2:]) / 2
        column, row = (centre[..., 0] * w).long().clamp(0, w - 1), (centre[..., 1] * h).long().clamp(0, h - 1)
        home = (_among(row * w + column, h * w) & there[..., None]).long()
        return (home * (home.cumsum(1) == 1)).to(self.dtype), edges

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the loss of each image, (B,)."""
        with self.training(batch, key):
            out = self.apply(params, batch["x"])
        return self._loss(*self.cells(out), batch["boxes"], (out.shape[2], out.shape[3]))

    def _loss(self, box: Tensor, objectness: Tensor, logp: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
        home, edges = self.homes(boxes, grid)
        there, kind = home.sum(1), _among(boxes[..., 0].long(), logp.shape[-1]).to(self.dtype)
        weight = torch.where(there > 0, 1.0, self.settings.background).to(self.dtype)
        found = (F.binary_cross_entropy_with_logits(objectness, there, reduction="none") * weight).sum(1)
        off = (torch.einsum("bmg,bgd->bmd", home, box) - edges * home.sum(2, keepdim=True)).abs().sum((1, 2))
        nll = -(torch.einsum("bmg,bgc->bmc", home, logp) * kind).sum((1, 2))
        return (found + self.settings.box * off + nll) / there.sum(1).clamp(min=1)

    def taught(self, answer: Tensor, teacher: Tensor, low: float, high: float) -> Tensor:
        """Return the loss (B,) of a network's answers by a teacher's. A cell of the teacher whose score (objectness times its best class)
        is at least `high` is an object with its box and class, one of at least `low` has its score as objectness and nothing else, all
        others are background; an image in which it is sure of nothing teaches nothing."""
        box, objectness, logp = self.cells(answer)
        its_box, its_objectness, its_logp = self.cells(teacher.detach())
        best, kind = its_logp.exp().max(-1)
        score = torch.sigmoid(its_objectness) * best
        sure = (score >= high).to(score.dtype)
        target = torch.where(sure > 0, 1.0, torch.where(score >= low, score, 0.0))
        weight = torch.where(target > 0, 1.0, self.settings.background).to(score.dtype)
        found = (F.binary_cross_entropy_with_logits(objectness, target, reduction="none") * weight).sum(1)
        off = ((box - its_box).abs().sum(-1) * sure).sum(1)
        nll = -(logp.gather(-1, kind[..., None])[..., 0] * sure).sum(1)
        return (found + self.settings.box * off + nll) / sure.sum(1).clamp(min=1) * (sure.sum(1) > 0)

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return of each cell the box's edges in shares of the image, objectness and classes as probabilities, (B, 5 + C, h, w)."""
        out = self.apply(params, batch["x"])
        box, objectness, logp = self.cells(out)
        answer = torch.cat([box, torch.sigmoid(objectness)[..., None], logp.exp()], -1)
        return answer.transpose(1, 2).unflatten(2, out.shape[2:])

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the loss of each image, (B,), of answers as `predict` gives them."""
        o = p.flatten(2).transpose(1, 2)
        logp = torch.log(o[..., 5:].clamp(min=1e-12))
        return {
            "loss": self._loss(
                o[..., :4], torch.logit(o[..., 4], eps=1e-7), logp, batch["boxes"], (p.shape[2], p.shape[3])
            )
        }

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return map50 and map of a set of images; NaN where they have no object."""
        size = np.array([self.input_shape[2], self.input_shape[1]] * 2)
        found = [detections(p, size, self.settings.nms) for p in np.asarray(rows["prediction"])]
        truth = [b[b[:, 0] >= 0] for b in np.asarray(batch["boxes"])]
        each = [average_precision(found, truth, o) for o in OVERLAPS]
        return {"map50": each[0], "map": float(np.mean(each))}


def _among(number: Tensor, of: int) -> Tensor:
    """Return which of 0 to `of` - 1 numbers (...) are, (..., of); as F.one_hot, which `vmap` cannot run."""
    return number[..., None] == torch.arange(of, device=number.device)


def wrong_box(boxes: np.ndarray, size: tuple[int, int], classes: int) -> tuple[int, int, str] | None:
    """Return (row, which, why) of the first box (n, M, 5) that is wrong for images of a size (width, height); None if none is."""
    kind, left, top, right, bottom = (boxes[..., i] for i in range(5))
    width, height = size
    there = kind >= 0
    outside = there & ~(
        (left >= 0) & (top >= 0) & (right <= width) & (bottom <= height) & (left < right) & (top < bottom)
    )
    unknown = there & ((kind >= classes) | (kind != np.floor(kind)))
    wrong = np.argwhere(outside | unknown)
    if not len(wrong):
        return None
    row, which = (int(i) for i in wrong[0])
    if outside[row, which]:
        return row, which, f"allowed: 0 <= left < right <= {width}, 0 <= top < bottom <= {height}"
    return row, which, f"allowed: classes 0 to {classes - 1}"


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return intersection over union (n, m) of boxes (n, 4) and (m, 4) of left, top, right, bottom."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    area = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    return np.asarray(both / np.maximum(area[0][:, None] + area[1][None] - both, 1e-12))


def detections(answer: np.ndarray, size: np.ndarray, nms: float) -> np.ndarray:
    """Return the detections (k, 6) of one image, the best first: class, left, top, right, bottom in pixels, score; of one class none that
    overlaps with a better one by more than `nms`.

    answer: (5 + C, h, w) as `Detect.predict` has it; size: width, height, width, height in pixels.
    """
    o = answer.reshape(len(answer), -1).T
    box, score = np.clip(o[:, :4], 0, 1) * size, o[:, 4:5] * o[:, 5:]
    cell, kind = np.nonzero(score >= LEAST)
    order = np.argsort(-score[cell, kind], kind="stable")
    cell, kind = cell[order], kind[order]
    kept: list[int] = []
    for k in np.unique(kind):
        mine = np.flatnonzero(kind == k)
        near = overlaps(box[cell[mine]], box[cell[mine]]) > nms
        gone = np.zeros(len(mine), bool)
        for i in range(len(mine)):
            if not gone[i]:
                kept.append(int(mine[i]))
                gone[i + 1 :] |= near[i, i + 1 :]
    at = np.array(sorted(kept), np.int64)[:MOST]
    return np.concatenate([kind[at, None], box[cell[at]], score[cell[at], kind[at]][:, None]], 1)


def average_precision(found: Sequence[np.ndarray], truth: Sequence[np.ndarray], overlap: float) -> float:
    """Return the average precision of images' detections (k, 6), the best first, at an overlap, mean over the classes that `truth` has;
    NaN where it has none.

    truth: each image's boxes (m, 5). A detection is right where it overlaps with a box of its class that no better one has taken, of
    several the one that it overlaps with most. Precision at a recall is the best one from there on, read at 101 recalls (COCO).
    """
    every = np.concatenate([np.zeros((0, 5)), *truth])
    return (
        float(np.mean([_of_class(found, truth, k, overlap) for k in np.unique(every[:, 0])]))
        if len(every)
        else math.nan
    )


def _of_class(found: Sequence[np.ndarray], truth: Sequence[np.ndarray], kind: float, overlap: float) -> float:
    scores, right, total = [], [], 0
    for detected, boxes in zip(found, truth, strict=True):
        mine, there = detected[detected[:, 0] == kind], boxes[boxes[:, 0] == kind]
        near, free = overlaps(mine[:, 1:5], there[:, 1:]), np.ones(len(there), bool)
        for row in near:
            best = np.where(free & (row >= overlap), row, -1.0)
            hit = bool(len(best)) and best.max() >= 0
            right.append(hit)
            if hit:
                free[len(best) - 1 - int(best[::-1].argmax())] = False  # of equal ones the last, as COCO
        scores += mine[:, 5].tolist()
        total += len(there)
    order = np.argsort(-np.array(scores), kind="stable")
    hits = np.cumsum(np.array(right, float)[order])
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(best, 0.0)[np.minimum(at, len(best))].mean())
