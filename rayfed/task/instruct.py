"""Instruction tuning of causal language models: next-token prediction on the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rayfed.errors import ConfigError
from rayfed.lazy import torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree

ROWS = ("loss", "accuracy", "exact")  # of each record
AT_ONCE = 2**25  # logits of one piece of a scored batch: 128 MiB in float32


class Instruct(Task):
    """A causal language model on records x (B, 2, L): token ids and targets (see `rayfed.data.instruct`).

    loss: the mean over a record's answer tokens, its end token among them, of -log p(token | what is before it), so that every
    record counts the same whatever its length. accuracy: the share of a record's answer tokens that are the most probable ones.
    exact: 1 where all of them are, which is where greedy decoding gives the very answer. All are averaged over records; the
    category y is read by partitions only.
    `task.data.loss_on: all` trains on the prompt's tokens too (Shepherd's default); what is measured stays the answer.

    Mixtures of served models (`@ensemble`) are scored by what can be added up in bounded memory: loss by the mixture's
    probability of each target token, accuracy and exact by the means of the models' own.
    """

    per_class: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("records",)
    offers: ClassVar[frozenset[str]] = frozenset({"tokens"})
    predicts: ClassVar[str] = ""
    measures: tuple[Measure, ...] = (
        MEASURES["loss"],
        MEASURES["accuracy"],
        MEASURES["exact"],
    )
    mixture: ClassVar[str] = (
        "accuracy/global and exact/global are means of the served models' own, loss/global that of their mixture"
    )

    def apply(self, params: Tree, x: Tensor) -> Tensor:
        """Return logits (B, L, V) of records (B, 2, L): at each place, of the token that comes next."""
        return super().apply(params, x[:, 0])

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return mean negative log-likelihood of each record's answer tokens, or of all but its first, (B,)."""
        with self.training(batch, key):
            logits, target, counts = self._next(params, batch["x"])
        if self.config.task.data.options.get("loss_on") == "all":
            target = batch["x"][:, 0, 1:].to(torch.int64)
            counts = (target >= 0).to(logits.dtype)
            target = target.clamp(min=0)
        return _mean(_nll(logits, target, self.config.local.label_smoothing if key is not None else 0), counts)

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return (B, L - 1, 3): the probability of each target token, 1 where it is the most probable one, and 1 where all of its
        record's are; 0 off the answer."""

        def one(x: Tensor) -> Tensor:
            logits, target, answer = self._next(params, x)
            hit = (logits.argmax(-1) == target).to(logits.dtype)
            exact = _all(hit, answer)[:, None].expand_as(hit)
            return torch.stack([(-_nll(logits, target)).exp(), hit, exact], -1) * answer[..., None]

        return self._in_pieces(one, batch["x"])

    def metrics(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return loss, accuracy and exact of each record, (B,)."""

        def one(x: Tensor) -> Tensor:
            logits, target, answer = self._next(params, x)
            hit = (logits.argmax(-1) == target).to(logits.dtype)
            return torch.stack([_mean(_nll(logits, target), answer), _mean(hit, answer), _all(hit, answer)], -1)

        got = self._in_pieces(one, batch["x"])
        return dict(zip(ROWS, got.unbind(-1), strict=True))

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return `metrics`: what a model says of every token is too much to bring to the server."""
        return self.metrics(params, batch)

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return loss, accuracy and exact (B,) of a weighted mean of `predict`s, (B, L - 1, 3)."""
        answer = (batch["x"][:, 1, 1:] >= 0).to(p.dtype)
        found = (-torch.log(p[..., 0].clamp(min=1e-12)), p[..., 1], p[..., 2])
        return {n: _mean(x, answer) for n, x in zip(ROWS, found, strict=True)}

    def _next(self, params: Tree, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (logits (B, L - 1, V), the tokens they are of (B, L - 1), 1 on answer tokens and 0 elsewhere)."""
        target = x[:, 1, 1:]
        answer = target >= 0
        logits = self.apply(params, x)[:, :-1]
        return logits, target.clamp(min=0).to(torch.int64), answer.to(logits.dtype)

    def _in_pieces(self, f: Any, x: Tensor) -> Tensor:
        """Return f(x) row by row in pieces whose logits fit into `AT_ONCE`."""
        rows = max(1, AT_ONCE // (x.shape[-1] * self.vocabulary))
        return torch.cat([f(piece) for piece in x.split(rows)]) if len(x) > rows else f(x)

    @property
    def _classifier(self) -> tuple[str, Any]:
        raise ConfigError(
            f"method.name: {self.config.method.name} reads features of whole inputs; task.data holds instructions, for which a model "
            "gives probabilities of tokens"
        )

    @property
    def vocabulary(self) -> int:
        """Return V, the number of tokens of the model."""
        return int(self._module.vocabulary)


def _nll(logits: Tensor, target: Tensor, smoothing: float = 0) -> Tensor:
    """Return -log softmax(logits)[target], (B, L - 1); smoothing: the share of the target that is spread over all tokens."""
    hit = logits.gather(-1, target[..., None])[..., 0]
    hit = (1 - smoothing) * hit + smoothing * logits.mean(-1) if smoothing else hit
    return torch.logsumexp(logits, -1) - hit


def _all(hit: Tensor, w: Tensor) -> Tensor:
    """Return 1 for each row that hits wherever w is 1, (B,)."""
    return (hit >= w).all(-1).to(hit.dtype)


def _mean(x: Tensor, w: Tensor) -> Tensor:
    """Return mean of each row where w is 1, (B,)."""
    return (x * w).sum(-1) / w.sum(-1).clamp(min=1)
