"""Retrieval across two modalities: find a row's text by its picture, and its picture by its text; rows with one of them have a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from rayfed.lazy import F, torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskSettings
from rayfed.task.modalities import Modalities

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree


class Retrieval(Modalities):
    """Learn embeddings of two modalities in which a row's own two are near: `embed(params, x)` (B, 2, d), of length 1, is what the
    network's `encoders` answer.

    loss of a row with both: the mean over both directions of -log softmax_j(cos(i, j) / `temperature`) at j = i, over the batch's rows
        with both;
    of a row with one of them: cross-entropy of its class, by the network's classifier. recall@k is of a set of rows, those with both: the
    share, over both directions, whose own is among the first k of all, of equal ones the last. accuracy and loss are of the classifier,
    which rows with both do not train.
    """

    class Settings(TaskSettings):
        temperature: float = Field(0.1, gt=0, description="What cosines are divided by.")
        k: list[int] = Field([1], min_length=1, description="Lengths of the lists of which recall@k is.")

    offers: ClassVar[frozenset[str]] = Modalities.offers | {"two sides"}
    models: ClassVar[tuple[str, ...]] = ("modalities",)
    pooled: ClassVar[bool] = False
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(text="cross-entropy of the class"),
        MEASURES["accuracy"],
    )

    @classmethod
    def measured(cls, settings: Any) -> tuple[Measure, ...]:
        """Return loss, accuracy and recall@k of each k."""
        return cls.measures + tuple(
            Measure(
                f"recall@{k}",
                "higher",
                "fraction",
                f"share of rows whose other side is among the first {k}, of both ways",
                "set",
            )
            for k in settings.k
        )

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why these rows cannot be looked for."""
        wrong = [k for k in cls.Settings(**config.task.kind.options).k if k < 1]
        found = [f"task.kind.k: {wrong[0]} found, allowed: whole numbers >= 1"] if wrong else []
        names = [m.name for m in federation.modalities]
        if len(names) != 2:
            found.append(f"task.kind: retrieval found, task.data holds {', '.join(names)}; allowed: two modalities")
        return found

    def embed(self, params: Tree, x: Tensor) -> Tensor:
        """Return embeddings of length 1, (B, 2, d), of rows (B, D); of an absent modality one that means nothing."""
        return F.normalize(self.watch(params, x, ["encoders"])["encoders"], dim=-1)

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the loss of each row, (B,)."""
        both = self.there(batch["x"]).prod(1) > 0
        with self.training(batch, key):
            seen = self.watch(params, batch["x"], ["encoders", ""])
        e = F.normalize(seen["encoders"], dim=-1)
        paired = contrast(e, both & (batch["w"] > 0), self.settings.temperature)
        y = batch["y"]  # -1 of public rows, which have both
        return torch.where(both, paired, torch.where(y < 0, 0.0, self.cross_entropy(seen[""], y.clamp(min=0), key)))

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return loss and accuracy of each row, (B,), and what recall is worked out from: its embeddings, (B, 2, d)."""
        seen = self.watch(params, batch["x"], ["encoders", ""])
        logp = torch.log_softmax(seen[""], -1)
        embedding = F.normalize(seen["encoders"], dim=-1)
        return {**self.judge(logp, batch["y"]), "prediction": logp.exp(), "embedding": embedding}

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return recall@k of the rows with both modalities; NaN where there is none."""
        both = (np.asarray(batch["x"])[:, -2:] > 0).all(1)
        e = np.asarray(rows["embedding"])[both]
        if not len(e):
            return {f"recall@{k}": float("nan") for k in self.settings.k}
        s = e[:, 0] @ e[:, 1].T
        ranks = np.concatenate([(s >= s.diagonal()[:, None]).sum(1), (s >= s.diagonal()[None]).sum(0)])
        return {f"recall@{k}": float((ranks <= k).mean()) for k in self.settings.k}


def contrast(e: Tensor, among: Tensor, temperature: float) -> Tensor:
    """Return the contrast of each row's two embeddings e (B, 2, d) with those of the rows `among` (B,), both ways, (B,)."""
    s = e[:, 0] @ e[:, 1].T / temperature
    own = torch.eye(len(s), dtype=torch.bool, device=s.device)
    forth, back = (torch.where(among[None] | own, x, -1e30) for x in (s, s.T))
    return (torch.logsumexp(forth, 1) + torch.logsumexp(back, 1)) / 2 - s.diagonal()
