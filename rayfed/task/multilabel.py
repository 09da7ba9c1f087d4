"""Several labels for each example, each there or not: independent logits, binary cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rayfed.lazy import F, torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Multilabel(TaskKind):
    """Learn which of L labels an example has, each by a logit of its own.

    Batches have y (B, L), 1 or 0, and may have columns `mask` (B, L), 0 where a label is not known, and `positive` (B, L),
    what a label that is there counts for in training, w = 1 without it (a site's rows without the label over those with it, say). The loss
    that is trained: the mean over an example's known labels of -w y log p - (1 - y) log(1 - p); the one that is measured has w = 1.
    accuracy: the share of an example's known labels that are right at p >= 1/2; exact: 1 where all of them are. A client's
    class counts are of strata (`rayfed.partition.targets`).
    """

    reads: ClassVar[tuple[str, ...]] = ("labels",)
    offers: ClassVar[frozenset[str]] = frozenset({"labels", "features"})
    predicts: ClassVar[str] = "labels"
    usual: ClassVar[tuple[str, ...]] = ("auroc",)
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(text="binary cross-entropy, mean over an example's known labels"),
        MEASURES["accuracy"]._replace(text="share of an example's known labels that are predicted right"),
        MEASURES["exact"]._replace(text="share of examples all of whose known labels are predicted right"),
    )

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return binary cross-entropy of each example, the mean over its known labels, (B,)."""
        with self.training(batch, key):
            logits = self.apply(params, batch["x"])
        positive = {"pos_weight": batch["positive"]} if "positive" in batch and key is not None else {}
        nll = F.binary_cross_entropy_with_logits(logits, batch["y"], reduction="none", **positive)
        return _mean(nll, _known(batch))

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return the probability of each label, (B, L)."""
        return torch.sigmoid(self.apply(params, batch["x"]))

    def metrics(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return loss, accuracy and exact of each example, (B,)."""
        return self._judged(self.apply(params, batch["x"]), batch)

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return `metrics`, and `prediction` (B, L) as `predict` gives it."""
        logits = self.apply(params, batch["x"])
        return {**self._judged(logits, batch), "prediction": torch.sigmoid(logits)}

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return loss, accuracy and exact of each example, (B,), of probabilities (B, L)."""
        return self._judged(torch.logit(p, eps=1e-7), batch)

    def _judged(self, logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        y, known = batch["y"], _known(batch)
        right = ((logits >= 0) == (y > 0)).to(logits.dtype)
        nll = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
        return {
            "loss": _mean(nll, known),
            "accuracy": _mean(right, known),
            "exact": (right >= known).all(-1).to(right.dtype),
        }


def _known(batch: Mapping[str, Tensor]) -> Tensor:
    """Return 1 where a label is known, (B, L)."""
    return batch["mask"] if "mask" in batch else torch.ones_like(batch["y"])


def _mean(x: Tensor, known: Tensor) -> Tensor:
    """Return the mean of each row where it is known, (B,); 0 of a row of which nothing is."""
    return (x * known).sum(-1) / known.sum(-1).clamp(min=1)
