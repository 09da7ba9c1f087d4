"""Retrieval: embed a question near the passage that answers it, and find it among all passages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from rayfed.lazy import F, torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree


class Pairs(TaskKind):
    """Learn an encoder of pairs x (B, 2, L) of a question and its passage: `apply(params, x)` gives (B, 2, d), whose length does not count.

    S[i, j] is the cosine of question i and passage j. loss: of row i -log softmax_j(S[i, j] / `temperature`) at j = i over the batch's
    passages (in-batch contrast), without padding and without other rows that have the same passage. The measures are of a set of rows, a
    client's or a pool's: every question is looked for among all of its passages, each once. hit@k: its passage is among the first k, of
    equal cosines it is the last; mrr@10: 1 / rank up to 10, else 0; loss: as in training, over the whole set. cosine: of a row's own pair.
    """

    class Settings(TaskSettings):
        temperature: float = Field(0.05, gt=0, description="What cosines are divided by (FedE4RAG's code: 1).")
        k: list[int] = Field([1, 5], min_length=1, description="Lengths of the lists of which hit@k is.")

    reads: ClassVar[tuple[str, ...]] = ("pairs",)
    offers: ClassVar[frozenset[str]] = frozenset({"pairs"})
    models: ClassVar[tuple[str, ...]] = ("bag",)
    pooled: ClassVar[bool] = False
    measures: tuple[Measure, ...] = (
        Measure("cosine", "higher", "-1 to 1", "cosine of a question and its passage"),
        MEASURES["loss"]._replace(of="set", text="contrast of a question's passage with all passages of the set"),
        Measure("mrr@10", "higher", "fraction", "1 / rank of a question's passage, 0 beyond the tenth", "set"),
    )

    @classmethod
    def measured(cls, settings: Any) -> tuple[Measure, ...]:
        """Return cosine, loss, mrr@10 and hit@k of each k."""
        return cls.measures + tuple(
            Measure(f"hit@{k}", "higher", "fraction", f"share of questions whose passage is among the first {k}", "set")
            for k in settings.k
        )

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why these pairs cannot be learned as asked."""
        wrong = [k for k in cls.Settings(**config.task.kind.options).k if k < 1]
        return [f"task.kind.k: {wrong[0]} found, allowed: whole numbers >= 1"] if wrong else []

    def answer_shape(self, rows: int) -> tuple[tuple[int | None, str], ...]:
        """Return (rows, 2, d) of any d."""
        return (rows, "rows"), (2, "question and passage"), (None, "d")

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return embeddings of length 1, (B, 2, d)."""
        return F.normalize(self.apply(params, batch["x"]), dim=-1)

    def similarities(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the cosines (B, B) of questions and passages; with a training step's key, of a training step's forward pass."""
        with self.training(batch, key):
            e = self.predict(params, batch)
        return e[:, 0] @ e[:, 1].T

    def contrast(self, s: Tensor, batch: Any) -> Tensor:
        """Return the loss of each row, (B,), of cosines (B, B)."""
        passage = batch["x"][:, 1]
        own = torch.eye(len(s), dtype=torch.bool, device=s.device)
        twice = (passage[:, None] == passage[None]).all(-1)
        counts = own | (~twice & (batch["w"] > 0)[None])
        logits = (s / self.settings.temperature).masked_fill(~counts, -torch.inf)
        return torch.logsumexp(logits, 1) - logits.diagonal()

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the loss of each row, (B,)."""
        return self.contrast(self.similarities(params, batch, key), batch)

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the cosine of each row's pair, (B,), of embeddings (B, 2, d)."""
        return {"cosine": (p[:, 0] * p[:, 1]).sum(-1)}

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return loss, mrr@10 and hit@k of a set of rows, each passage standing once among those that are searched."""
        e, passage = np.asarray(rows["prediction"]), np.asarray(batch["x"])[:, 1]
        _, first, which = np.unique(passage, axis=0, return_index=True, return_inverse=True)
        s = e[:, 0] @ e[first, 1].T
        own = s[np.arange(len(s)), which.reshape(-1)]
        rank = (s >= own[:, None]).sum(1)
        logits = s / self.settings.temperature
        top = logits.max(1)
        loss = top + np.log(np.exp(logits - top[:, None]).sum(1)) - own / self.settings.temperature
        found = {"loss": loss.mean(), "mrr@10": np.where(rank <= 10, 1 / rank, 0).mean()}
        return {n: float(v) for n, v in {**found, **{f"hit@{k}": (rank <= k).mean() for k in self.settings.k}}.items()}
