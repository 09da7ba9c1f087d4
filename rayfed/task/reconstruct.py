"""Anomalies by reconstruction: an autoencoder learns normal rows, and what it gives back badly is none of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import attack, augment
from rayfed.errors import nearest
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree


class Reconstruct(TaskKind):
    """Learn to give inputs back: `apply(params, x)` gives (B, *input_shape), in the inputs' range.

    loss: of a row the mean over its numbers of the squared error e^2, or of |e|; labels are not read in training. A row's loss is its
    score as an anomaly: the measures of sets compare it between anomalies and the other rows. Anomalies are the rows of the classes
    that `anomalies` names, by default of those without a training row (normal classes train, all are tested).
    """

    class Settings(TaskSettings):
        anomalies: list[str] | None = Field(
            None, description="Names of the classes that are anomalies; null: those without training rows."
        )
        loss: Literal["squared", "absolute"] = Field("squared", description="Of an input's number's error.")

    offers: ClassVar[frozenset[str]] = frozenset({"reconstructions"})
    reads: ClassVar[tuple[str, ...]] = ("classes",)
    models: ClassVar[tuple[str, ...]] = ("autoencoder",)
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(unit="-", text="error of the reconstruction, mean over a row's numbers"),
        MEASURES["auroc"]._replace(text="area under the ROC curve of the error, anomalies against the other rows"),
        MEASURES["ap"]._replace(text="average precision of the error, anomalies against the other rows"),
        Measure(
            "recall@fpr5", "higher", "fraction", "share of anomalies above the error that 5 % of other rows pass", "set"
        ),
    )

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Any = None):
        super().__init__(config, federation, device, start)
        if hasattr(federation, "arrays"):  # a network alone is tried without data
            self._anomalies = _anomalies(self.settings, federation)

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why there is nothing to tell apart."""
        if wrong := augment.moving(config, "what is to be given back", turned=True):
            return wrong
        if wrong := attack.unread(config, "reconstruct"):
            return wrong
        s, names = cls.Settings(**config.task.kind.options), federation.label_names
        if unknown := [n for n in s.anomalies or () if n not in names]:
            return [
                f"task.kind.anomalies: {unknown[0]!r} found{nearest(unknown[0], names)}, {config.task.data.name} has: {', '.join(names)}"
            ]
        if s.anomalies is None and not len(_anomalies(s, federation)):
            return [
                f"task.kind.anomalies: missing, every class of {config.task.data.name} has training rows; allowed: names of "
                f"classes ({', '.join(names[:10])}), or data of which some class has test rows alone"
            ]
        return []

    def answer_shape(self, rows: int) -> tuple[tuple[int | None, str], ...]:
        """Return (rows, *input_shape)."""
        return (rows, "rows"), *((n, "as the input") for n in self.input_shape)

    def errors(self, answer: Tensor, x: Tensor) -> Tensor:
        """Return the error of each row, (B,), of reconstructions and inputs."""
        e = (answer - x).flatten(1)
        return (e.square() if self.settings.loss == "squared" else e.abs()).mean(-1)

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the error of each row, (B,)."""
        with self.training(batch, key):
            answer = self.apply(params, batch["x"])
        return self.errors(answer, batch["x"])

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the error of each row, (B,), of reconstructions (B, *input_shape)."""
        return {"loss": self.errors(p, batch["x"])}

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return `metrics`; a reconstruction itself is known to nobody else."""
        return self.metrics(params, batch)

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return auroc, ap and recall@fpr5 of a set of rows; NaN where it has no anomalies, or nothing else, or where
        an error is no number."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        odd, error = np.isin(batch["y"], self._anomalies), np.asarray(rows["loss"])
        if odd.all() or not odd.any() or not np.isfinite(error).all():
            return dict.fromkeys(("auroc", "ap", "recall@fpr5"), math.nan)
        return {
            "auroc": float(roc_auc_score(odd, error)),
            "ap": float(average_precision_score(odd, error)),
            "recall@fpr5": float((error[odd] > np.quantile(error[~odd], 0.95)).mean()),
        }


def _anomalies(settings: Any, federation: Federation) -> np.ndarray:
    """Return the numbers of the classes that are anomalies."""
    if settings.anomalies is not None:
        return np.flatnonzero(np.isin(federation.label_names, settings.anomalies))
    return np.setdiff1d(np.arange(federation.classes), federation.arrays["y"][federation.train.rows])
